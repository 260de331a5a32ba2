"""A NAS-Bench-201 table as a CSV file: a row for each cell, with ``arch_str`` and numbers such as ``cifar10_test_200``."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from advnas.spaces.nasbench201 import parse_arch

ARCH = "arch_str"
ACCURACY = "cifar10_test_200"  # percent, after 200 epochs


@dataclass(frozen=True)
class Table:
    """Rows by architecture string; every row has the same columns.

    Attributes:
        path: where it was read.
        columns: names of the numbers.
        rows: architecture string to its numbers by column.
    """

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, dict[str, float]]

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read a table.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not such a table, a row is incomplete or has no number where one belongs, or a cell is there
                twice; with the line.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table")
        rows: dict[str, dict[str, float]] = {}
        try:
            text = path.read_bytes().decode()
            reader = csv.reader(io.StringIO(text), strict=True)
            header = next(reader, [])
            if ARCH not in header or ACCURACY not in header:
                raise ValueError(f"{path}: must be a CSV table with columns {ARCH} and {ACCURACY}, got {header[:5]}")
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
        return cls(path, tuple(columns), rows)

    def lookup(self, arch: str) -> dict[str, float]:
        """The numbers of one cell, by column.

        Raises:
            ValueError: the string is no architecture, or the table does not have it.
        """
        parse_arch(arch)
        if arch not in self.rows:
            raise ValueError(
                f"{self.path}: has no row for {arch}; the whole space has 15625, this table {len(self.rows)}"
            )
        return self.rows[arch]

    def top(self, k: int, column: str = ACCURACY) -> list[tuple[str, dict[str, float]]]:
        """The ``k`` cells with the largest values of ``column``, best first.

        Raises:
            ValueError: there is no such column, or ``k`` is below 1.
        """
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
