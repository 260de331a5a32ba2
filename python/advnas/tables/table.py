"""A table of numbers: a row for each cell of a space, with ``arch_str`` and numbers such as ``cifar10_test_200``. A CSV file, or a
Parquet file that ``advnas table convert`` made."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from advnas.files import at_home
from advnas.spaces import SPACES, Space
from advnas.tables import parquet
from advnas.tables.parquet import ARCH, INDEX
from advnas.tables.sizes import SIZES, Sizes

AnySpace: TypeAlias = Space | Sizes
USUAL = "nasbench201"  # the space of a CSV table that nothing else says


class Rows(Mapping[str, dict[str, float]]):
    """Rows of columns, each made when it is asked for, so that a file opens at once.

    Args:
        places: of each cell in the columns.
        columns: lists of numbers by name.
    """

    def __init__(self, places: dict[str, int], columns: dict[str, list[float]]) -> None:
        self._places, self._columns = places, columns

    def __getitem__(self, arch: str) -> dict[str, float]:
        place = self._places[arch]
        return {name: values[place] for name, values in self._columns.items()}

    def __contains__(self, arch: object) -> bool:
        return arch in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class Table:
    """Rows by architecture string; every row has the same columns.

    Attributes:
        path: where it was read.
        space: whose cells it has.
        columns: names of the numbers.
        rows: architecture string to its numbers by column.
        index: number of a cell, as the benchmark counts them, to its architecture string.
    """

    path: Path
    space: AnySpace
    columns: tuple[str, ...]
    rows: Mapping[str, dict[str, float]]
    index: dict[int, str]

    @classmethod
    def load(cls, path: Path, space: Space | None = None) -> Table:
        """Read a table of some cells of a space.

        Of a Parquet file it has the cells with results, and the columns that have a number for every one of them.

        Args:
            path: CSV or Parquet, by its content.
            space: that it must be of; None: the one that a Parquet file names, NAS-Bench-201's for a CSV file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no table knows the space, the file is not such a table, a row is incomplete or has no number where one
                belongs, or a cell is there twice; with the line.
        """
        path = at_home(path)
        if space is not None and not space.columns:
            raise ValueError(f"{path}: there are no tables of the space {space.name}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table")
        with path.open("rb") as file:
            is_parquet = file.read(len(parquet.MAGIC)) == parquet.MAGIC
        return cls._of_parquet(path, space) if is_parquet else cls._of_csv(path, space or SPACES[USUAL])

    @classmethod
    def _of_parquet(cls, path: Path, space: Space | None) -> Table:
        file = parquet.opened(path)
        named = parquet.metadata(file, path)["space"]
        if named not in (SIZES.name, *SPACES):
            raise ValueError(f"{path}: is a table of the space {named}, which this version does not know")
        found: AnySpace = SIZES if named == SIZES.name else SPACES[named]
        if space is not None and space is not found:
            raise ValueError(f"{path}: must be a table of the space {space.name}, got one of {named}")
        numbers = [column.name for column in file.schema_arrow if pa.types.is_floating(column.type)]
        try:
            content = file.read([INDEX, ARCH, *numbers])
        except (pa.ArrowException, OSError) as error:
            raise parquet.damaged(path, error) from None
        columns = {name: content[name].to_numpy() for name in numbers}  # NaN where there is none
        known = ~np.isnan(columns.get(found.columns[0], np.zeros(len(content))))
        columns = {name: values[known] for name, values in columns.items()}
        columns = {name: values.tolist() for name, values in columns.items() if not np.isnan(values).any()}
        archs = [arch for arch, there in zip(content[ARCH].to_pylist(), known.tolist(), strict=True) if there]
        if not archs or not columns:
            raise ValueError(f"{path}: has no rows")
        rows = Rows({arch: place for place, arch in enumerate(archs)}, columns)
        index = dict(zip(content[INDEX].to_numpy()[known].tolist(), archs, strict=True))
        return cls(path, found, tuple(columns), rows, index)

    @classmethod
    def _of_csv(cls, path: Path, space: Space) -> Table:
        accuracy = space.columns[0]
        rows: dict[str, dict[str, float]] = {}
        index: dict[int, str] = {}
        try:
            text = path.read_bytes().decode("utf-8-sig")  # with or without a byte-order mark
            reader = csv.reader(io.StringIO(text.rstrip("\r\n") + "\n"), strict=True)  # without blank lines at the end
            header = next(reader, [])
            if ARCH not in header or accuracy not in header:
                raise ValueError(f"{path}: must be a CSV table with columns {ARCH} and {accuracy}, got {header[:5]}")
            columns = {name: place for place, name in enumerate(header) if name not in (ARCH, INDEX)}
            numbered = header.index(INDEX) if INDEX in header else None
            for cells in reader:
                try:
                    arch, numbers = _row(header, columns, cells)
                    if arch in rows:
                        raise ValueError(f"{arch} is there twice")
                    number = len(rows) if numbered is None else _place(cells[numbered])
                    if number in index:
                        raise ValueError(f"{INDEX} {number} is there twice")
                except ValueError as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
                rows[arch] = numbers
                index[number] = arch
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV table: {error}") from None
        if not rows:
            raise ValueError(f"{path}: has no rows")
        if not text.endswith(("\n", "\r")):  # its last number may have lost digits
            raise ValueError(
                f"{path}, line {reader.line_num}: must end with a line break; the file may be truncated, get it again"
            )
        return cls(path, space, tuple(columns), rows, index)

    @classmethod
    def load_whole(cls, path: Path, space: Space) -> Table:
        """Read a table that has every cell of the space; raises as :meth:`load`."""
        table = cls.load(path, space)
        if space.columns[0] not in table.columns:
            raise ValueError(f"{path}: must have a column {space.columns[0]}, got {', '.join(table.columns)}")
        if len(table.rows) < space.num_cells:
            raise ValueError(f"{path}: must hold every cell of the space, got {len(table.rows)}; it may be truncated")
        return table

    def lookup(self, arch: str) -> dict[str, float]:
        """The numbers of one cell, by column.

        Args:
            arch: its string, or its number as digits.

        Raises:
            ValueError: the string is no architecture, or the table does not have it.
        """
        return self.rows[arch if arch in self.rows else self.named(arch)]

    def named(self, arch: str) -> str:
        """The string of a cell that is given by its string or its number; raises as :meth:`lookup`."""
        if arch.isdecimal():
            arch = self.index.get(int(arch), arch)
        if arch not in self.rows:
            if not arch.isdecimal():
                self.space.parse(arch)
            raise ValueError(
                f"{self.path}: has no row for {arch}; the whole space has {self.space.num_cells}, this table {len(self.rows)}"
            )
        return arch

    def top(self, k: int, column: str | None = None) -> list[tuple[str, dict[str, float]]]:
        """The ``k`` cells with the largest values of ``column`` (None: the space's first), best first.

        Raises:
            ValueError: there is no such column, or ``k`` is below 1.
        """
        column = self.space.columns[0] if column is None else column
        if column not in self.columns:
            raise ValueError(f"{self.path}: has no column {column!r}; choose among {', '.join(self.columns)}")
        if k < 1:
            raise ValueError(f"top: must be at least 1, got {k}")
        return sorted(self.rows.items(), key=lambda row: -row[1][column])[:k]


def _row(header: list[str], columns: dict[str, int], cells: list[str]) -> tuple[str, dict[str, float]]:
    if len(cells) != len(header):
        raise ValueError(f"must have {len(header)} values, got {len(cells)}; the file may be truncated, get it again")
    numbers = {name: _number(cells[place]) for name, place in columns.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {cells[columns[name]]!r}")
    return cells[header.index(ARCH)], numbers


def _place(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{INDEX} must be a whole number, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
