"""The files that benchmarks come in, recognised by their content, not by their names, and read cell by cell."""

from __future__ import annotations

import bz2
import contextlib
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from advnas.tables.pickles import Array, Reader
from advnas.tables.sizes import SIZES
from advnas.tables.trials import Cell, cell

META = "meta.pickle.pbz2"
TORCH = 0x1950A86A20F9469CFC6C  # the first of four pickles in a file that torch saved before it took to zip archives
KEYS = ("meta_archs", "arch2infos", "evaluated_indexes")


@dataclass(frozen=True)
class Benchmark:
    """What the cells of one benchmark have in common.

    Attributes:
        name, space: for the table's metadata.
        hps: hyper-parameters, named by their epochs, the longest last.
        keys: what the file calls them, where it is something else.
        settle: whether FLOPs that disagree are settled as NATS-Bench does it.
    """

    name: str
    space: str
    hps: tuple[str, ...]
    keys: tuple[str, ...]
    settle: bool


NAS_BENCH_201 = Benchmark("nas-bench-201", "nasbench201", ("12", "200"), ("less", "full"), False)
TOPOLOGY = Benchmark("nats-topology", "nasbench201", ("12", "200"), ("12", "200"), True)
SIZE = Benchmark("nats-size", SIZES.name, ("01", "12", "90"), ("01", "12", "90"), True)


class Sink(Protocol):
    """Where cells go."""

    def begin(self, benchmark: Benchmark, archs: Sequence[str]) -> None: ...
    def add(self, cell: Cell) -> None: ...
    def finish(self, evaluated: Collection[int]) -> None: ...
    def rows(self, benchmark: str, space: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A whole table of numbers, in place of cells with trainings."""


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What is wrong with the content of a file names the file."""
    try:
        yield
    except EOFError:
        raise ValueError(f"{path}: ends in the middle; it may be truncated, get it again") from None
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        if error.strerror:
            raise
        raise ValueError(f"{path}: damaged ({error}); get it again") from None


def read(path: Path, sink: Sink) -> bool:
    """Read a benchmark's file or folder; False: it is neither, and may be a CSV table.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not what it seems to be, or damaged.
    """
    if path.is_dir():
        _read_folder(path, sink)
        return True
    with path.open("rb") as file, readable(path):
        start = file.read(4)
        file.seek(0)
        if start.startswith(b"BZh"):
            with bz2.open(file) as inner:
                _read_file(inner, sink)
        elif start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if not names:
                    raise ValueError("is an archive, but none that torch saved; unpack it, or choose a file in it")
                with archive.open(names[0]) as inner:
                    _read_file(inner, sink)
        elif start.startswith(b"\x80"):
            _read_file(file, sink)
        else:
            return False
    return True


class _Cells:
    """Takes cells as a pickle gives them. The strings come before them in every official file; where not, the cells wait."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._benchmark: Benchmark | None = None
        self._waiting: list[tuple[int, dict[str, Any]]] = []

    def add(self, index: int, found: dict[str, Any], archs: Any) -> None:
        if archs is None:
            self._waiting.append((index, found))
            return
        if self._benchmark is None:
            self._benchmark = benchmark_of(archs, found)
            self._sink.begin(self._benchmark, archs)
        names = dict(zip(self._benchmark.keys, self._benchmark.hps, strict=True))
        if not isinstance(found, dict) or (other := [key for key in found if key not in names]):
            got = other[0] if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"cell {index} must have results under {' or '.join(names)}, got {got!r}")
        self._sink.add(cell(index, {names[key]: result for key, result in found.items()}))

    def finish(self, archs: Any, evaluated: Any) -> None:
        for index, found in self._waiting:
            self.add(index, found, archs)
        if self._benchmark is None:
            raise ValueError("has no results of any cell; choose a whole file of the benchmark")
        if not isinstance(evaluated, (list, set, tuple)) or not all(isinstance(index, int) for index in evaluated):
            raise ValueError("evaluated_indexes must be a list or set of cells' numbers")
        self._sink.finish(evaluated)


def benchmark_of(archs: Any, found: Any) -> Benchmark:
    """By the cells' strings, and what is known of one.

    Raises:
        ValueError: they are no strings of cells.
    """
    if not isinstance(archs, list) or not archs or not all(isinstance(arch, str) for arch in archs):
        raise ValueError("meta_archs must be a list of the cells' strings")
    if len(set(archs)) < len(archs):
        raise ValueError("meta_archs must have every cell once")
    if re.fullmatch(SIZES.form, archs[0]):
        return SIZE
    return NAS_BENCH_201 if isinstance(found, dict) and set(found) & set(NAS_BENCH_201.keys) else TOPOLOGY


def _read_file(file: Any, sink: Sink) -> None:
    """NAS-Bench-201 and NATS-Bench as one file, HW-NAS-Bench: a pickle, with others around it where torch saved it."""
    cells = _Cells(sink)
    reader = Reader(file, "arch2infos", lambda index, found: cells.add(index, found, reader.pending("meta_archs")))
    content = reader.load()
    if content == TORCH:
        for _ in ("torch's protocol", "the machine that saved it"):
            reader.load()
        content = reader.load()
    if isinstance(content, dict) and all(key in content for key in KEYS):
        cells.finish(content["meta_archs"], content["evaluated_indexes"])
    elif isinstance(content, dict) and "nasbench201" in content:
        sink.rows("hw-nas-bench", "nasbench201", hardware(content["nasbench201"]))
    else:
        got = (
            f"one with {', '.join(map(str, list(content)[:3]))}"
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise ValueError(
            f"must be a dict with {', '.join(KEYS)} (NAS-Bench-201, NATS-Bench) or nasbench201 (HW-NAS-Bench), got {got}"
        )


def _read_folder(path: Path, sink: Sink) -> None:
    """NATS-Bench's ``-simple`` folders: a file for each cell, and one for their strings."""
    if not (path / META).is_file():
        raise ValueError(
            f"{path}: must be a folder of NATS-Bench, with {META} in it; for a folder of other files choose one of them"
        )
    meta = _unpacked(path / META)
    if not isinstance(meta, dict) or not isinstance(meta.get("meta_archs"), list):
        raise ValueError(f"{path / META}: must be a dict with meta_archs, the cells' strings")
    cells, evaluated = _Cells(sink), []
    for index in range(len(meta["meta_archs"])):
        files = [path / f"{name}.pickle.pbz2" for name in (f"{index:06d}", str(index))]
        if file := next((file for file in files if file.is_file()), None):
            found = _unpacked(file)
            with readable(file):
                cells.add(index, found, meta["meta_archs"])
            evaluated.append(index)
    with readable(path):
        cells.finish(meta["meta_archs"], evaluated)


def _unpacked(path: Path) -> Any:
    with readable(path), bz2.open(path) as file:
        return Reader(file).load()


def hardware(found: Any) -> dict[str, list[Any]]:
    """The columns of HW-NAS-Bench: milliseconds, millijoules, and a ratio, by data set and device."""
    columns: dict[str, list[Any]] = {}
    try:
        for dataset, numbers in found.items():
            archs = [str(config["arch_str"]) for config in _listed(numbers["config"])]
            if columns and columns["arch_str"] != archs:
                raise ValueError("the data sets must have the same cells in the same order")
            columns |= {"index": list(range(len(archs))), "arch_str": archs}
            for name, values in numbers.items():
                if name != "config":
                    values = [float(value) for value in _listed(values)]
                    if len(values) != len(archs):
                        raise ValueError(f"{dataset}, {name}: must have {len(archs)} numbers, got {len(values)}")
                    columns[f"{dataset.lower().replace('-', '_')}_{name}"] = values
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the layout of HW-NAS-Bench: {error!r}") from None
    return columns


def _listed(values: Any) -> list[Any]:
    values = values.value if isinstance(values, Array) else values
    return list(values if isinstance(values, list) else values.tolist())
