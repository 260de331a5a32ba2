"""Tables, each once for the terminal and once for Markdown, and what a page of them has in common."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cpuinfo import get_cpu_info
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from advnas.report.console import console

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass
class Sheet:
    title: str
    header: Sequence[str]
    text_columns: int = 1
    """How many of the first columns are text."""
    rows: list[list[str]] = field(default_factory=list)

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", box=SIMPLE)
        for i, name in enumerate(self.header):
            is_text = i < self.text_columns
            table.add_column(escape(name), justify="left" if is_text else "right", no_wrap=not is_text)
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        rule = ["---" if i < self.text_columns else "---:" for i in range(len(self.header))]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


class Page:
    """Sheets in the order in which they were shown."""

    def __init__(self) -> None:
        self.console = console()
        self.sheets: list[Sheet] = []

    def show(self, *sheets: Sheet) -> None:
        for sheet in sheets:
            self.sheets.append(sheet)
            self.console.print(sheet.rich())

    def write(self, path: Path, head: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([head, "", *(sheet.markdown() for sheet in self.sheets)]))
        self.console.print(f"written to {path}")


@dataclass(frozen=True)
class Machine:
    cpu: str
    torch: str
    python: str
    threads: int
    date: str

    def __str__(self) -> str:
        return f"{self.cpu}, {count(self.threads, 'thread')}, torch {self.torch}, Python {self.python}, {self.date}"


def machine(threads: int) -> Machine:
    cpu = get_cpu_info().get("brand_raw", platform.machine())
    return Machine(cpu, torch.__version__, platform.python_version(), threads, datetime.date.today().isoformat())


def count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
