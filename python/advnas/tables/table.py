"""A table as a CSV file: a row for each cell of a space, with ``arch_str`` and numbers such as ``cifar10_test_200``."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from advnas.spaces import Space

ARCH = "arch_str"


@dataclass(frozen=True)
class Table:
    """Rows by architecture string; every row has the same columns.

    Attributes:
        path: where it was read.
        space: whose cells it has.
        columns: names of the numbers.
        rows: architecture string to its numbers by column.
    """

    path: Path
    space: Space
    columns: tuple[str, ...]
    rows: dict[str, dict[str, float]]

    @classmethod
    def load(cls, path: Path, space: Space) -> Table:
        """Read a table of some cells of a space.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no table knows the space, the file is not such a table, a row is incomplete or has no number where one
                belongs, or a cell is there twice; with the line.
        """
        path = Path(path).expanduser()
        if not space.columns:
            raise ValueError(f"{path}: there are no tables of the space {space.name}; leave --table out")
        accuracy = space.columns[0]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table")
        rows: dict[str, dict[str, float]] = {}
        try:
            text = path.read_bytes().decode("utf-8-sig")  # with or without a byte-order mark
            reader = csv.reader(io.StringIO(text.rstrip("\r\n") + "\n"), strict=True)  # without blank lines at the end
            header = next(reader, [])
            if ARCH not in header or accuracy not in header:
                raise ValueError(f"{path}: must be a CSV table with columns {ARCH} and {accuracy}, got {header[:5]}")
            columns = {name: place for place, name in enumerate(header) if name not in (ARCH, "index")}
            for cells in reader:
                try:
                    arch, numbers = _row(header, columns, cells)
                    if arch in rows:
                        raise ValueError(f"{arch} is there twice")
                except ValueError as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
                rows[arch] = numbers
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV table: {error}") from None
        if not rows:
            raise ValueError(f"{path}: has no rows")
        if not text.endswith(("\n", "\r")):  # its last number may have lost digits
            raise ValueError(
                f"{path}, line {reader.line_num}: must end with a line break; the file may be truncated, get it again"
            )
        return cls(path, space, tuple(columns), rows)

    @classmethod
    def load_whole(cls, path: Path, space: Space) -> Table:
        """Read a table that has every cell of the space; raises as :meth:`load`."""
        table = cls.load(path, space)
        if len(table.rows) < len(space.ops) ** space.num_edges:
            raise ValueError(f"{path}: must hold every cell of the space, got {len(table.rows)}; it may be truncated")
        return table

    def lookup(self, arch: str) -> dict[str, float]:
        """The numbers of one cell, by column.

        Raises:
            ValueError: the string is no architecture, or the table does not have it.
        """
        self.space.parse(arch)
        if arch not in self.rows:
            raise ValueError(
                f"{self.path}: has no row for {arch}; the whole space has {len(self.space.ops) ** self.space.num_edges}, this "
                f"table {len(self.rows)}"
            )
        return self.rows[arch]

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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
