"""Pickles read as data. Nothing in one can call anything: names of functions and classes stay names, and the few that benchmark
files need (ordered dicts, sets, numpy's numbers and arrays) are rebuilt here. torch's own restricted reader does not know numpy's
numbers, which these files are full of, and no reader that is ready-made can let go of what it has read, so that all of a file of
5 GB would be in memory, as Python's objects.

Two things keep it small and quick. A dict of numbers, such as an accuracy for each epoch, is a :class:`Run` of arrays, found by a
regular expression. And the items of one large dict can be handed out as they come, and forgotten.
"""

from __future__ import annotations

import itertools
import re
import struct
from bz2 import BZ2File
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

CHUNK = 1 << 22
AHEAD = 1 << 16  # bytes in sight when a run is looked for; a longer one is found in pieces

STOP = ord(".")
DAMAGE = (
    *(IndexError, KeyError, TypeError, AttributeError, StopIteration),
    *(OverflowError, UnicodeDecodeError, struct.error),
)

RUNS = object()  # the key under which a dict keeps its runs
PRUNED = object()  # what the memo has in the place of an item that was handed out

# Items of a dict: a key, and a number of eight bytes behind a G. Keys are numbers of one byte, names that come for the first time
# (as part@epoch, the place in the memo behind them), or places in the memo of names that came before, of one byte or four.
BY_BYTE = re.compile(rb"(?:K.G.{8})+", re.S)
BY_PLACE = re.compile(rb"(?:h.G.{8})+", re.S)
BY_LONG_PLACE = re.compile(rb"(?:j.{4}G.{8})+", re.S)
NAMED = rb"(?:X(.)\0\0\0|\x8c(.))([a-z][a-z-]{0,30}@[0-9]{1,9})(q.|r.{4}|\x94)G(.{8})"
BY_NAME = re.compile(rb"(?:%s)+" % NAMED, re.S)
NAME = re.compile(NAMED, re.S)
BYTE_ITEM = np.dtype([("k", "u1"), ("key", "u1"), ("g", "u1"), ("value", ">f8")])
LONG_ITEM = np.dtype([("j", "u1"), ("key", "<u4"), ("g", "u1"), ("value", ">f8")])


class Run(NamedTuple):
    """Items of a dict: keys (integers or strings) and values, float64 [items]."""

    keys: Sequence[str] | np.ndarray
    values: np.ndarray


class _Decoded(dict[bytes, str]):
    """One string for all occurrences of a name."""

    def __missing__(self, name: bytes) -> str:
        return self.setdefault(name, name.decode())


class Name(str):
    """A function or class that the pickle names, as module.name."""


class Array:
    """A numpy array before its content has come."""

    value: Any = None


def items(mapping: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The items of a dict that was read, those of its runs included."""
    for key, value in mapping.items():
        if key is RUNS:
            for run in value:
                keys = run.keys.tolist() if isinstance(run.keys, np.ndarray) else run.keys
                yield from zip(keys, run.values.tolist(), strict=True)
        else:
            yield key, value


def _scalar(kind: np.dtype, content: bytes) -> Any:
    return np.frombuffer(content, kind)[0].item()


def _dtype(code: str, *_: Any) -> np.dtype:
    if not re.fullmatch(r"[<>=|]?[fiub][1248]|O8", code):
        raise ValueError(f"an array of {code!r}")
    return np.dtype(code)


def _filled(array: Array, state: tuple[Any, ...]) -> None:
    _, shape, kind, by_column, content = state
    if kind.hasobject:
        array.value = content  # a list already
        return
    array.value = np.frombuffer(content, kind).reshape(shape, order="F" if by_column else "C")


REBUILT: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),
    **dict.fromkeys(("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"), set),
    "__builtin__.bytes": lambda: b"",
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.multiarray.{name}": made
        for core in ("core", "_core")
        for name, made in (("scalar", _scalar), ("_reconstruct", lambda *_: Array()))
    },
    # Weights of trained networks, which no table keeps.
    **dict.fromkeys(("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"), lambda *_: None),
}


class Elsewhere(Exception):
    """What those who take the items raise, which says nothing of the pickle."""


class Reader:
    """Reads pickles of protocol 2 to 5 from a file, one after another.

    Args:
        file: open for reading.
        section, each: the items of the dict under this key are given to ``each(key, value)`` a thousand at a time, and not kept.
    """

    def __init__(
        self, file: BinaryIO | BZ2File, section: str = "", each: Callable[[Any, Any], None] | None = None
    ) -> None:
        self._file, self._section, self._each = file, section, each
        self._data, self._place, self._ended = b"", 0, False
        self._clear = 0  # up to here there is as much in sight as a run may take

    def load(self) -> Any:
        """The next object.

        Raises:
            ValueError: the file is no pickle, ends within one, or holds something that is not data.
        """
        self._stack: list[Any] = []
        self._frames: list[list[Any]] = []
        self._memo: list[Any] = []
        self._pruned = 0
        self._names = _Decoded()
        try:
            while True:
                if self._place < self._clear:
                    op = self._data[self._place]
                    self._place += 1
                else:
                    op = self._take(1)[0]
                if op == STOP:
                    return self._stack.pop()
                if op not in ACTIONS:
                    raise ValueError(f"the operation {op:#x}")
                ACTIONS[op](self)
        except Elsewhere as error:
            raise error.args[0] from None
        except EOFError:
            raise ValueError("the pickle ends in the middle; the file may be truncated, get it again") from None
        except DAMAGE as error:
            raise ValueError(f"not a pickle of data, or a damaged one ({type(error).__name__})") from None
        except ValueError as error:
            raise ValueError(f"holds {error}, which is not read from a pickle; get a file of the benchmark") from None

    def pending(self, key: str) -> Any:
        """A value of the dict in which the section lies, while that is being read; None: it has not come yet."""
        for place in range(0, len(self._stack) - 1, 2):
            if self._stack[place] == key:
                return self._stack[place + 1]
        return None

    def _take(self, count: int) -> bytes:
        if not self._ended and len(self._data) - self._place < max(count, AHEAD):
            self._look_ahead(max(count, AHEAD))
        start, self._place = self._place, self._place + count
        if self._place > len(self._data):
            raise EOFError
        return self._data[start : self._place]

    def _look_ahead(self, count: int) -> None:
        """Bring so many bytes into sight, or all that are left; in pieces, as a damaged file may ask for any number."""
        pieces, size = [self._data[self._place :]], len(self._data) - self._place
        while size < count and not self._ended:
            pieces.append(self._file.read(CHUNK))
            size += len(pieces[-1])
            self._ended = not pieces[-1]
        self._data, self._place, self._clear = b"".join(pieces), 0, size - AHEAD

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        self._take(0)  # brings the next bytes into sight
        end = self._data.find(b"\n", self._place)
        return self._take(max(1, end + 1 - self._place))[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _open(self) -> None:
        self._frames.append(self._stack)
        self._stack = []
        self._find_runs()

    def _close(self) -> list[Any]:
        content, self._stack = self._stack, self._frames.pop()
        return content

    def _spread(self, content: list[Any]) -> list[Any]:
        """Without runs: of a tuple or a list, which are no items after all."""
        flat: list[Any] = []
        for item in content:
            flat += itertools.chain(*items({RUNS: [item]})) if isinstance(item, Run) else [item]
        return flat

    def _extend(self, content: list[Any]) -> None:
        target = self._stack[-1]
        (target.update if isinstance(target, set) else target.extend)(content)

    def _find_runs(self) -> None:
        """Push the runs that start here, if any."""
        while self._frames and (run := self._run()):
            self._stack.append(run)

    def _run(self) -> Run | None:
        start = self._place
        if found := BY_BYTE.match(self._data, start):
            these = np.frombuffer(found[0], BYTE_ITEM)
            run = Run(these["key"].copy(), these["value"].astype("f8"))
        elif found := BY_LONG_PLACE.match(self._data, start):
            these = np.frombuffer(found[0], LONG_ITEM)
            run = Run([self._memo[place] for place in these["key"].tolist()], these["value"].astype("f8"))
        elif found := BY_PLACE.match(self._data, start):
            these = np.frombuffer(found[0], BYTE_ITEM)
            run = Run([self._memo[place] for place in these["key"].tolist()], these["value"].astype("f8"))
        elif found := BY_NAME.match(self._data, start):
            lengths, other, names, places, values = zip(*NAME.findall(found[0]), strict=True)
            # A name may be longer than it looks. They are kept in the memo one after the other, unless somebody has cleaned the
            # pickle.
            if b"".join(lengths) + b"".join(other) != bytes(map(len, names)) or (
                len(places[0]) > 1 and int.from_bytes(places[0][1:], "little") != len(self._memo)
            ):
                return None
            keys = [self._names[name] for name in names]
            self._memo += keys
            run = Run(keys, np.frombuffer(b"".join(values), ">f8").astype("f8"))
        else:
            return None
        self._place = found.end()
        return run

    def _remember(self, place: int) -> None:
        if place > len(self._memo) + AHEAD:
            raise IndexError
        self._memo += [PRUNED] * (place + 1 - len(self._memo))
        self._memo[place] = self._stack[-1]

    def _recall(self, place: int) -> None:
        if self._memo[place] is PRUNED:
            raise ValueError("an item that refers to another")
        self._stack.append(self._memo[place])

    def _set_items(self, content: list[Any]) -> None:
        target, flow = self._stack[-1], iter(content)
        hands_out = self._each is not None and len(self._stack) > 1 and self._stack[-2] == self._section
        for item in flow:
            if isinstance(item, Run):
                target.setdefault(RUNS, []).append(item)
            elif hands_out and self._each is not None:
                self._hand_out(self._each, item, next(flow))
            else:
                target[item] = next(flow)
        if hands_out:
            for place in range(self._pruned, len(self._memo)):
                if isinstance(self._memo[place], (dict, list)):
                    self._memo[place] = PRUNED
            self._pruned = len(self._memo)

    @staticmethod
    def _hand_out(each: Callable[[Any, Any], None], key: Any, value: Any) -> None:
        try:
            each(key, value)
        except Exception as error:
            raise Elsewhere(error) from error

    def _set_item(self) -> None:
        last = self._stack.pop()
        self._set_items([last] if isinstance(last, Run) else [self._stack.pop(), last])

    def _tuple(self, count: int) -> None:
        if any(isinstance(item, Run) for item in self._stack[-count:]):
            self._stack[:] = self._spread(self._stack)
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _call(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, Name) or name not in REBUILT:
            raise ValueError(f"{name}")
        self._stack.append(REBUILT[name](*arguments))

    def _refuse(self) -> None:
        raise ValueError(f"an object of {self._stack[-2]}")

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Array):
            _filled(target, state)
        elif not isinstance(target, np.dtype):
            raise ValueError(f"a changed {type(target).__name__}")

    def _global(self) -> None:
        module = self._line()
        self._stack.append(Name(f"{module}.{self._line()}"))

    def _stacked_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(Name(f"{module}.{name}"))

    def _weights(self) -> None:
        """A storage by its name, for which nothing stands; or a class, for which its name does."""
        found = self._stack[-1]
        self._stack[-1] = found[1] if isinstance(found[1], Name) and found[0] == "module" else None

    def _framed(self) -> None:
        self._take(8)
        self._find_runs()


def _sized(form: str) -> Callable[[Reader], bytes]:
    return lambda reader: reader._take(reader._number(form))


def _pushes(value: Callable[[Reader], Any]) -> Callable[[Reader], None]:
    return lambda reader: reader._push(value(reader))


ACTIONS: dict[int, Callable[[Reader], Any]] = {
    ord(b"\x80"): lambda reader: reader._take(1),  # the protocol
    ord(b"\x95"): Reader._framed,
    ord(b"("): Reader._open,
    ord(b"0"): lambda reader: reader._stack.pop(),
    ord(b"N"): _pushes(lambda reader: None),
    ord(b"\x88"): _pushes(lambda reader: True),
    ord(b"\x89"): _pushes(lambda reader: False),
    ord(b"K"): _pushes(lambda reader: reader._take(1)[0]),
    ord(b"M"): _pushes(lambda reader: reader._number("<H")),
    ord(b"J"): _pushes(lambda reader: reader._number("<i")),
    ord(b"\x8a"): _pushes(lambda reader: int.from_bytes(_sized("<B")(reader), "little", signed=True)),
    ord(b"G"): _pushes(lambda reader: reader._number(">d")),
    ord(b"X"): _pushes(lambda reader: _sized("<I")(reader).decode()),
    ord(b"\x8c"): _pushes(lambda reader: _sized("<B")(reader).decode()),
    ord(b"\x8d"): _pushes(lambda reader: _sized("<Q")(reader).decode()),
    ord(b"C"): _pushes(_sized("<B")),
    ord(b"B"): _pushes(_sized("<I")),
    ord(b"\x8e"): _pushes(_sized("<Q")),
    ord(b"]"): _pushes(lambda reader: []),
    ord(b"}"): _pushes(lambda reader: {}),
    ord(b")"): _pushes(lambda reader: ()),
    ord(b"\x8f"): _pushes(lambda reader: set()),
    ord(b"\x85"): lambda reader: reader._tuple(1),
    ord(b"\x86"): lambda reader: reader._tuple(2),
    ord(b"\x87"): lambda reader: reader._tuple(3),
    ord(b"t"): lambda reader: reader._push(tuple(reader._spread(reader._close()))),
    ord(b"a"): lambda reader: reader._extend([reader._stack.pop()]),
    ord(b"e"): lambda reader: reader._extend(reader._spread(reader._close())),
    ord(b"\x90"): lambda reader: reader._extend(reader._spread(reader._close())),
    ord(b"s"): Reader._set_item,
    ord(b"u"): lambda reader: reader._set_items(reader._close()),
    ord(b"q"): lambda reader: reader._remember(reader._take(1)[0]),
    ord(b"r"): lambda reader: reader._remember(reader._number("<I")),
    ord(b"\x94"): lambda reader: reader._remember(len(reader._memo)),
    ord(b"h"): lambda reader: reader._recall(reader._take(1)[0]),
    ord(b"j"): lambda reader: reader._recall(reader._number("<I")),
    ord(b"c"): Reader._global,
    ord(b"\x93"): Reader._stacked_global,
    ord(b"R"): Reader._call,
    ord(b"\x81"): Reader._refuse,
    ord(b"b"): Reader._build,
    ord(b"Q"): lambda reader: reader._weights(),
}
