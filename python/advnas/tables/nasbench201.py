"""A NAS-Bench-201 table as a CSV file: a row for each cell, with ``arch_str`` and numbers such as ``cifar10_test_200``."""

from __future__ import annotations

import csv
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
            ValueError: it is not such a table, a row is incomplete or not a number, or a cell is there twice; with the line.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table")
        rows: dict[str, dict[str, float]] = {}
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.reader(file, strict=True)
                header = next(reader, [])
                if ARCH not in header or ACCURACY not in header:
                    raise ValueError(
                        f"{path}: must be a CSV table with columns {ARCH} and {ACCURACY}, got {header[:5]}"
                    )
                columns = tuple(name for name in header if name not in (ARCH, "index"))
                for cells in reader:
                    arch, numbers = cls._row(f"{path}, line {reader.line_num}", header, columns, cells)
                    if arch in rows:
                        raise ValueError(f"{path}, line {reader.line_num}: {arch} is there twice")
                    rows[arch] = numbers
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV table: {error}") from None
        if not rows:
            raise ValueError(f"{path}: has no rows")
        return cls(path, columns, rows)

    @staticmethod
    def _row(where: str, header: list[str], columns: tuple[str, ...], cells: list[str]) -> tuple[str, dict[str, float]]:
        if len(cells) != len(header):
            raise ValueError(f"{where}: must have {len(header)} values, got {len(cells)}; the file may be truncated")
        values = dict(zip(header, cells, strict=True))
        try:
            numbers = {name: float(values[name]) for name in columns}
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not math.isfinite(numbers[ACCURACY]):
            raise ValueError(f"{where}: {ACCURACY} must be a number, got {values[ACCURACY]}")
        return values[ARCH], numbers

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
