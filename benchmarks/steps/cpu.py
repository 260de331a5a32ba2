"""Time and memory of a weight step and an architecture step on the CPU, beside xautodl, plain PyTorch and bare convolutions.

All sides have the same weights, the same batch, the same random paths and the same number of threads. First their results are
compared; then they are timed interleaved in one process; then the peak memory of each is measured in a process of its own. Writes
cpu.json, cpu.md and growth.svg to --out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch
import tyro
from torch import Tensor

from advnas.report.console import Rounds
from advnas.spaces.nasbench201 import NASBENCH201
from benchmarks.sheet import RESULTS, Page, count, machine
from benchmarks.steps import growth, report, sides
from benchmarks.steps.measure import KEY, Comparison, Times, compare, differences, times
from benchmarks.steps.sides import BARE, OURS, PLAIN, PLAIN_TO_INPUTS, STEPS, XAUTODL, XAUTODL_CHANNELS_LAST
from benchmarks.steps.work import Case


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
    out: FilePath = RESULTS
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


class Benchmark(Page):
    """Runs the sections one after another; each prints its tables and keeps them and its numbers."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.case = settings.case
        self.paths = sides.make_paths(settings.paths, settings.seed)
        self.machine = machine(settings.threads)
        self.results: dict[str, Any] = {
            "machine": asdict(self.machine),
            "case": asdict(self.case),
            "paths": [NASBENCH201.format(ops) for ops in self.paths],
        }

    def run(self) -> None:
        self.console.print(f"{self.machine}\n{KEY}")
        self.check()
        names = self.settings.names(OURS, PLAIN, PLAIN_TO_INPUTS, XAUTODL, XAUTODL_CHANNELS_LAST, BARE)
        comparison = self.compare("times", self.case, names, self.paths, self.settings.threads, self.settings.turns)
        peaks = self.memory() if self.settings.memory else None
        self.show(report.targets(comparison, peaks))
        sheet, self.results["roofline"] = report.roofline(comparison, self.case, self.paths.tolist())
        self.show(sheet)
        if self.settings.further:
            self.further()
        if self.settings.growth:
            self.growth()
        (self.settings.out / "cpu.json").write_text(json.dumps(self.results, indent=1) + "\n")
        self.write(self.settings.out / "cpu.md", f"{self.machine}. {KEY.capitalize()}.")

    def check(self) -> None:
        found = differences(self.case, self.paths[:4], self.settings.xautodl)
        self.console.print(f"differences of ours {found}")
        found.require_small()
        self.results["differences"] = asdict(found)

    def compare(
        self, what: str, case: Case, names: list[str], paths: Tensor, threads: int, turns: int = 1
    ) -> Comparison:
        title = f"{case}, {count(threads, 'thread')}, {count(len(paths), 'random path')}"
        title += f", median of {turns} turns each" if turns > 1 else ""
        torch.set_num_threads(threads)
        with Rounds(str(case), len(paths) + 1, self.console) as rounds:
            comparison = compare(case, names, paths, rounds.advance, turns)
        torch.set_num_threads(self.settings.threads)
        self.show(times(comparison, title))
        self.results[what] = {name: {} for name in names}
        for (name, to_gates), found in comparison.items():
            self.results[what][name][STEPS[to_gates]] = _numbers(found)
        return comparison

    def memory(self) -> report.Memory:
        names = self.settings.names(OURS, PLAIN, XAUTODL, XAUTODL_CHANNELS_LAST)
        wanted = [(None, False), *((name, to_gates) for name in names for to_gates in STEPS)]
        peaks: report.Memory = {}
        with Rounds("memory", len(wanted), self.console) as rounds:
            for side, to_gates in wanted:
                of_side = sides.peak_of(side, to_gates, self.case, self.paths[:4], self.settings.threads)
                peaks[side, to_gates] = of_side
                rounds.advance()
        self.show(report.memory(peaks))
        self.results["memory_mib"] = {
            f"{name}, {STEPS[to_gates]} step" if name else "imports": value for (name, to_gates), value in peaks.items()
        }
        return peaks

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
        with Rounds("growth", growth.points(), self.console) as rounds:
            curves = growth.measure(self.case, self.paths[:3], self.settings.threads, rounds.advance)
        self.show(growth.sheet(curves))
        growth.draw(curves, self.settings.out / "growth.svg")
        self.results["growth"] = {
            axis.field: {"sizes": axis.values, **{side: asdict(curves[axis.field, side]) for side in growth.SIDES}}
            for axis in growth.AXES
        }


def _numbers(found: Times) -> dict[str, Any]:
    ms = [round(value, 3) for value in found.ms]
    return {"median_ms": found.median, "ratio": found.ratio, "worst_ratio": found.worst, "ms": ms}


def main(settings: Settings) -> None:
    if settings.xautodl and not sides.has_xautodl():
        raise SystemExit(
            "cpu.py: xautodl is not installed; `make bench-cpu` installs it, `--no-xautodl` goes without it"
        )
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    Benchmark(settings).run()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
