"""Pickles as data: what comes out is what went in, and nothing in them is called."""

import bz2
import contextlib
import io
import pickle
import pickletools
import random
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advnas.tables.pickles import AHEAD, RUNS, Array, Reader, items


def plain(value):
    """Without runs, for comparison."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in items(value)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value.value.tolist() if isinstance(value, Array) else value


def read(content):
    return plain(Reader(io.BytesIO(content)).load())


NUMBERS = st.floats(allow_nan=False)
NAMES = st.from_regex(r"[a-z][a-z-]{0,9}@[0-9]{1,3}", fullmatch=True)
KEYS = st.one_of(st.integers(-3, 300), NAMES, st.text(max_size=5))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), NUMBERS, st.text(), st.binary(max_size=300)),
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner, inner, inner),
        st.dictionaries(KEYS, inner),
        st.dictionaries(KEYS, NUMBERS),
    ),
    max_leaves=30,
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(value=VALUES)
@settings(max_examples=60, deadline=None)
def test_round_trip(protocol, value):
    content = pickle.dumps(value, protocol)
    assert read(content) == value
    assert read(pickletools.optimize(content)) == value  # whoever cleans up renumbers what is kept for later


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("count", [1, 2, 12, 200, 256, 257, 1000, 1001, 5000])
def test_runs_of_any_length(protocol, count):
    """Shared keys, more of them than are in sight at once, over the bounds of a frame."""
    names = [f"{part}@{epoch}" for part in ("x-valid", "ori-test") for epoch in range(count)]
    value = [
        {
            "by_epoch": {epoch: epoch / 7 for epoch in range(count)},
            "loss": {name: place / 3 for place, name in enumerate(names)},
            "accuracy": {name: place / 9 for place, name in enumerate(names)},
            "pairs": ([1, 0.5, 2, 0.25], (3, 1.5, 4, 1.25), {5: 0.5}),
        }
        for _ in range(3)
    ]
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 4])
def test_names_that_look_like_items(protocol):
    value = {f"x@{n}q\x05G{'a' * 8}": n / 2 for n in range(3)} | {"y@1\x94Gabcdefgh": 0.5, "z@1": 1.5}
    assert read(pickle.dumps(value, protocol)) == value


def test_runs_are_arrays():
    loaded = Reader(io.BytesIO(pickle.dumps(dict.fromkeys(range(200), 0.5), 2))).load()
    [run] = loaded[RUNS]
    assert run.values.dtype == np.float64
    assert len(run.keys) == 200
    assert len(loaded) == 1


def test_what_files_of_benchmarks_need():
    array = np.arange(6.0).reshape(2, 3)
    value = {
        "ordered": OrderedDict(a=1),
        "set": {1, 2},
        "scalar": np.float64(0.25),
        "whole": np.int64(7),
        "array": array,
        "by_column": np.asfortranarray(array),
        "objects": np.array(["a", 1], object),
    }
    for protocol in (2, 3, 4):
        loaded = Reader(io.BytesIO(pickle.dumps(value, protocol))).load()
        assert loaded["ordered"] == {"a": 1}
        assert loaded["set"] == {1, 2}
        assert (loaded["scalar"], loaded["whole"]) == (0.25, 7)
        assert (loaded["array"].value == array).all()
        assert (loaded["by_column"].value == array).all()
        assert loaded["objects"].value == ["a", 1]


def test_several_in_one_file():
    reader = Reader(io.BytesIO(pickle.dumps([1], 2) + pickle.dumps({"a": 2.5}, 2)))
    assert [reader.load(), reader.load()] == [[1], {"a": 2.5}]
    with pytest.raises(ValueError, match="ends in the middle"):
        reader.load()


@pytest.mark.parametrize("error", [ValueError, KeyError, EOFError])
def test_what_others_do_with_the_items_is_theirs(error):
    def each(key, value):
        raise error("of mine")

    with pytest.raises(error) as raised:
        Reader(io.BytesIO(pickle.dumps({"cells": {1: 2}})), "cells", each).load()
    assert raised.value.args == ("of mine",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("count", [1, 5, 2500])
def test_items_of_a_section_are_handed_out(protocol, count):
    draw, found = random.Random(0), {}
    value = {
        "first": ["x"],
        "cells": {place: {"full": {epoch: draw.random() for epoch in range(9)}} for place in range(count)},
        "last": "y",
    }
    seen = []

    def each(key, content):
        seen.append(reader.pending("first"))
        found[key] = plain(content)

    reader = Reader(io.BytesIO(pickle.dumps(value, protocol)), "cells", each)
    assert plain(reader.load()) == {"first": ["x"], "cells": {}, "last": "y"}
    assert found == value["cells"]
    assert seen == [["x"]] * count


class Calls:
    """Pickled, it is a call of whatever it is given."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Plain:
    pass


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value, named",
    [
        (Calls(print, ("called",)), "print"),
        (Calls(eval, ("1 / 0",)), "eval"),
        (Calls(__import__, ("antigravity",)), "__import__"),
        (Calls(getattr, (OrderedDict, "fromkeys")), "getattr"),
        (defaultdict(list), "defaultdict"),
        (slice(1), "slice"),
        (Calls(io.open, ("/nowhere", "w")), "open"),
    ],
)
def test_nothing_is_called(protocol, value, named, capsys):
    with pytest.raises(ValueError, match=rf"holds .*{named}.* which is not read from a pickle"):
        Reader(io.BytesIO(pickle.dumps({"a": value}, protocol))).load()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_are_not_made(protocol):
    with pytest.raises(ValueError, match=r"holds an object of .*Plain, which is not read from a pickle"):
        Reader(io.BytesIO(pickle.dumps(Plain(), protocol))).load()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", b"\x80\x02]q\x00(K\x01", b"\x80\x02X\xff\xff\xff\x7fabc", b"\x80\x04\x95"]
)
def test_truncated(content):
    with pytest.raises(ValueError, match="ends in the middle; the file may be truncated, get it again"):
        Reader(io.BytesIO(content)).load()


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_any_damage_is_a_sentence(noise, place):
    """Whatever is in the file: a value or a ValueError, and no more memory than the file is large."""
    content = bytearray(pickle.dumps({"a": [1, 2.5, "x"], "b": {n: n / 2 for n in range(20)}, "c": np.float64(1)}, 2))
    content[place : place + len(noise)] = noise
    with contextlib.suppress(ValueError):
        Reader(io.BytesIO(bytes(content))).load()


def test_any_file_that_can_be_read():
    """Compressed, and giving less than it is asked for."""
    value = [{f"part@{epoch}": epoch / 7 for epoch in range(300)} for _ in range(AHEAD // 2000)]
    content = pickle.dumps(value, 4)

    class Slow(io.BytesIO):
        def read(self, count):
            return super().read(min(count, 1000))

    assert plain(Reader(Slow(content)).load()) == value
    with bz2.open(io.BytesIO(bz2.compress(content))) as file:
        assert plain(Reader(file).load()) == value
