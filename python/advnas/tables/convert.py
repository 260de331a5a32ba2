"""From the files that benchmarks come in to one Parquet file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from advnas.checkpoint import whole
from advnas.files import at_home
from advnas.report.console import Rounds
from advnas.tables import sources
from advnas.tables.parquet import ARCH, INDEX, MAGIC, Writer, write_rows
from advnas.tables.table import Table
from advnas.tables.trials import Cell


def convert(source: Path, dest: Path, space: Any, console: Console) -> dict[str, str]:
    """Make a table that is quick to open: NAS-Bench-201's ``.pth``, NATS-Bench's folder or file, HW-NAS-Bench's pickle, or a CSV
    table.

    Pickles are read as data: nothing in them is called. A file of cells with trainings is never in memory as a whole. DEST is
        whole or
    not there, and what was there stays until then.

    Args:
        source: file or folder.
        dest: the new file, ``.parquet``; one that is there is replaced.
        space: of a CSV table.
        console: for the bar.

    Returns:
        what was made, for people.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: the source is nothing that is known, or damaged; or DEST does not end with ``.parquet``.
        OSError: DEST cannot be written.
    """
    source, dest = at_home(source), at_home(dest)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if dest.suffix != ".parquet":
        raise ValueError(f"DEST: must end with .parquet, got {dest}")
    if source.is_file() and _begins_with(source, MAGIC):
        raise ValueError(f"{source}: is a Parquet file already; give it to advnas query, or to --table")
    with whole(dest) as partial, partial.open("wb") as file:
        making = _Making(file, console)
        try:
            if not sources.read(source, making):
                table = Table.load(source, space)
                numbers = {name: [row[name] for row in table.rows.values()] for name in table.columns}
                making.rows("csv", space.name, {INDEX: list(table.index), ARCH: list(table.index.values()), **numbers})
        finally:
            making.stop()
    return {"benchmark": making.benchmark, "cells": f"{making.count:,}", "written to": str(dest)}


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


class _Making:
    """A table that is being written: a :class:`sources.Sink`."""

    def __init__(self, file: BinaryIO, console: Console) -> None:
        self._file, self._console = file, console
        self._writer: Writer | None = None
        self._rounds: Rounds | None = None
        self.benchmark, self.count = "", 0

    def begin(self, benchmark: sources.Benchmark, archs: Sequence[str]) -> None:
        self.benchmark = benchmark.name
        self._writer = Writer(self._file, benchmark.name, benchmark.space, archs, benchmark.hps, benchmark.settle)
        self._rounds = Rounds("converting cells", len(archs), self._console)
        self._rounds.__enter__()

    def add(self, cell: Cell) -> None:
        assert self._writer is not None
        assert self._rounds is not None
        self._writer.add(cell)
        self._rounds.advance()
        self.count += 1

    def finish(self, evaluated: Collection[int]) -> None:
        assert self._writer is not None
        self._writer.close(evaluated)
        self._writer = None

    def rows(self, benchmark: str, space: str, columns: Mapping[str, Sequence[Any]]) -> None:
        write_rows(self._file, benchmark, space, columns)
        self.benchmark, self.count = benchmark, len(columns[INDEX])

    def stop(self) -> None:
        if self._rounds is not None:
            self._rounds.__exit__()
        if self._writer is not None:
            self._writer.abandon()
