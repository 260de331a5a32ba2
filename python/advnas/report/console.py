"""What people see in a terminal: progress, tables, facts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

Row = Mapping[str, Any]


def console() -> Console:
    """On standard output. A file or a pipe is wide, so that nothing is broken over lines there."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def facts(values: Mapping[str, str]) -> None:
    """Print a fact a line."""
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value}")


def _bar(console: Console) -> Bar:
    """Shown on a terminal only."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=120,
    )


class Progress:
    """A bar with the time left on a terminal, and a line for each epoch everywhere.

    Args:
        label: shown before the bar.
        epochs: how many there will be.
        columns: of the history that are worth a place in the line, with the format of each.
        console: where to; None: standard output.
    """

    def __init__(self, label: str, epochs: int, columns: Mapping[str, str], console: Console | None = None) -> None:
        self.console = console or Console()
        self.label = label
        self.epochs = epochs
        self.columns = columns
        self._bar = _bar(self.console)

    def start(self, done: int, total: int) -> None:
        self._task = self._bar.add_task(self.label, total=total, completed=done)
        self._bar.start()

    def advance(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def line(self, row: Row, unit: str = "epoch") -> None:
        values = "  ".join(
            f"{name.replace('_', ' ')} {row[name]:{form}}" for name, form in self.columns.items() if name in row
        )
        self.console.print(f"{unit} {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  {values}", highlight=False)

    def stop(self) -> None:
        self._bar.stop()


class Rounds:
    """A bar with the time left, on a terminal: ``with Rounds(label, total) as rounds:`` around ``total`` calls of ``advance``."""

    def __init__(self, label: str, total: int, console: Console | None = None) -> None:
        self._bar = _bar(console or Console())
        self._task = self._bar.add_task(label, total=total)

    def advance(self) -> None:
        self._bar.advance(self._task)

    def __enter__(self) -> Rounds:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Text in the first column, numbers in the others."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    console().print(table(title, columns, rows))
