"""Time and memory of a weight step and an architecture step on the CPU, beside xautodl, plain PyTorch and bare convolutions.

All sides have the same weights, the same batch, the same random paths and the same number of threads. First their results are
compared; then they are timed interleaved in one process; then the peak memory of each is measured in a process of its own. Writes
cpu.json, cpu.md and growth.svg to --out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import growth
import peak
import report
import sides
import torch
import tyro
from measure import STEPS, Comparison, compare, differences
from report import Sheet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sides import BARE, OURS, PLAIN, PLAIN_TO_INPUTS, XAUTODL, XAUTODL_CHANNELS_LAST
from torch import Tensor
from work import Case

from advnas.report.console import console as wide_console
from advnas.spaces.nasbench201 import NASBENCH201


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    """Cells a stage."""
    batch_size: int = 64
    image_size: int = 32
    """Height and width; a multiple of 4."""
    paths: int = 40
    """Random paths."""
    turns: int = 3
    """Times that each path is run in the first table; the median counts, so that one hiccup does not make a worst path."""
    threads: int = 2
    seed: int = 0
    quick: bool = False
    """4 paths and no growth."""
    xautodl: bool = True
    """Compare with xautodl, which `make bench-cpu` installs."""
    memory: bool = True
    """Measure peak memory."""
    further: bool = True
    """Time further configurations: twice the channels, one cell a stage, four times the batch, one thread."""
    growth: bool = True
    """Measure how time and memory grow."""
    out: FilePath = FilePath(__file__).parent / "results"
    """Folder of the results."""

    def __post_init__(self) -> None:
        if self.quick:
            self.paths, self.turns, self.growth = min(self.paths, 4), 1, False
        if self.image_size % 4:
            raise SystemExit(
                f"cpu.py: image_size must be a multiple of 4, got {self.image_size}: xautodl rounds odd sizes down"
            )

    @property
    def case(self) -> Case:
        return Case(self.channels, self.cells, self.batch_size, self.image_size, self.seed)

    def names(self, *wanted: str) -> list[str]:
        """Those of ``wanted`` that can run."""
        return [name for name in wanted if self.xautodl or name not in (XAUTODL, XAUTODL_CHANNELS_LAST)]


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar with the time left; gives the function that advances it."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


class Benchmark:
    """Runs the sections one after another; each prints its tables and keeps them and its numbers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.case = settings.case
        self.paths = sides.make_paths(settings.paths, settings.seed)
        self.machine = report.machine(settings.threads)
        self.console = wide_console()
        self.sheets: list[Sheet] = []
        self.results: dict[str, Any] = {
            "machine": asdict(self.machine),
            "case": asdict(self.case),
            "paths": [NASBENCH201.format(ops) for ops in self.paths],
        }

    def run(self) -> None:
        self.console.print(f"{self.machine}\n{report.KEY}")
        self.check()
        comparison = self.main_case()
        peaks = self.memory() if self.settings.memory else None
        self.show(report.targets(comparison, peaks))
        self.roofline(comparison)
        if self.settings.further:
            self.further()
        if self.settings.growth:
            self.growth()

    def show(self, sheet: Sheet) -> None:
        self.sheets.append(sheet)
        self.console.print(sheet.rich())

    def check(self) -> None:
        found = differences(self.case, self.paths[:4], self.settings.xautodl)
        self.console.print(f"differences of ours {found}")
        found.require_small()
        self.results["differences"] = asdict(found)

    def main_case(self) -> Comparison:
        names = self.settings.names(OURS, PLAIN, PLAIN_TO_INPUTS, XAUTODL, XAUTODL_CHANNELS_LAST, BARE)
        return self.compare("times", self.case, names, self.paths, self.settings.threads, self.settings.turns)

    def compare(
        self, what: str, case: Case, names: list[str], paths: Tensor, threads: int, turns: int = 1
    ) -> Comparison:
        title = f"{report.describe(case)}, {report.count(threads, 'thread')}, {report.count(len(paths), 'random path')}"
        title += f", median of {turns} turns each" if turns > 1 else ""
        torch.set_num_threads(threads)
        with progress(self.console, report.describe(case), len(paths) + 1) as advance:
            comparison = compare(case, names, paths, advance, turns)
        torch.set_num_threads(self.settings.threads)
        self.show(report.times(comparison, title))
        self.results[what] = {
            name: {
                step: _numbers(comparison, name, to_gates)
                for to_gates, step in STEPS.items()
                if (name, to_gates) in comparison
            }
            for name in names
        }
        return comparison

    def memory(self) -> report.Memory:
        names = self.settings.names(OURS, PLAIN, XAUTODL, XAUTODL_CHANNELS_LAST)
        wanted = [(None, False), *((name, to_gates) for name in names for to_gates in STEPS)]
        peaks: report.Memory = {}
        with progress(self.console, "memory", len(wanted)) as advance:
            for name, to_gates in wanted:
                peaks[name, to_gates] = peak.in_own_process(
                    name, to_gates, self.case, self.paths[:4], self.settings.threads
                )
                advance()
        self.show(report.memory(peaks))
        self.results["memory_mib"] = {
            f"{name}, {STEPS[to_gates]} step" if name else "imports": value for (name, to_gates), value in peaks.items()
        }
        return peaks

    def roofline(self, comparison: Comparison) -> None:
        found = report.roofline(comparison, self.case, self.paths.tolist())
        self.show(report.roofline_sheet(found, comparison))
        self.results["roofline"] = {STEPS[to_gates]: asdict(each) for to_gates, each in found.items()}

    def further(self) -> None:
        case, threads = self.case, self.settings.threads
        configurations = {
            "channels": (replace(case, channels=2 * case.channels), threads),
            "one_cell": (replace(case, cells=1), threads),
            "batch": (replace(case, batch_size=4 * case.batch_size), threads),
            "one_thread": (case, 1),
        }
        names = self.settings.names(OURS, PLAIN, XAUTODL_CHANNELS_LAST)
        paths = self.paths[: max(1, self.settings.paths // 4)]
        for what, (other, its_threads) in configurations.items():
            self.compare(f"times_{what}", other, names, paths, its_threads)

    def growth(self) -> None:
        with progress(self.console, "growth", growth.points()) as advance:
            curves = growth.measure(self.case, self.paths[:3], self.settings.threads, advance)
        self.show(growth.sheet(curves))
        growth.draw(curves, self.settings.out / "growth.svg")
        self.results["growth"] = {
            axis.field: {"sizes": axis.values, **{side: asdict(curves[axis.field, side]) for side in growth.SIDES}}
            for axis in growth.AXES
        }

    def write(self) -> None:
        out = self.settings.out
        (out / "cpu.json").write_text(json.dumps(self.results, indent=1) + "\n")
        text = [f"{self.machine}. {report.KEY.capitalize()}.", "", *(sheet.markdown() for sheet in self.sheets)]
        (out / "cpu.md").write_text("\n".join(text))
        self.console.print(f"written to {out}")


def _numbers(comparison: Comparison, name: str, to_gates: bool) -> dict[str, Any]:
    side = comparison[name, to_gates]
    ms = [round(value, 3) for value in side.ms]
    return {"median_ms": side.median, "ratio": side.ratio, "worst_ratio": side.worst, "ms": ms}


def main(settings: Settings) -> None:
    if settings.xautodl and not sides.has_xautodl():
        raise SystemExit(
            "cpu.py: xautodl is not installed; `make bench-cpu` installs it, `--no-xautodl` goes without it"
        )
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(settings)
    benchmark.run()
    benchmark.write()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
