"""Tables of a comparison, each once for the terminal and once for Markdown."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import torch
from measure import STEPS, Comparison
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from sides import BARE, OURS, PLAIN, XAUTODL, XAUTODL_CHANNELS_LAST
from work import Case, least_bytes, multiply_adds

# side: for a weight step and an architecture step the ratio side/ours to reach, in the median and on the worst path.
TARGETS: dict[str, tuple[tuple[float, float], tuple[float, float] | None]] = {
    XAUTODL: ((6.5, 8.0), (4.0, 5.0)),
    XAUTODL_CHANNELS_LAST: ((4.2, 5.0), (2.8, 3.5)),
    PLAIN: ((2.6, 3.2), None),
    BARE: ((1.4, 1.1), None),
}
MEMORY_TARGETS = (0.55, 0.5)  # ours / xautodl, at most

KEY = "ms: of a step, median and range over the paths; ratio: side/ours on the same path, its median and the worst path"


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
            table.add_column(
                escape(name), justify="left" if i < self.text_columns else "right", no_wrap=i >= self.text_columns
            )
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        rule = ["---" if i < self.text_columns else "---:" for i in range(len(self.header))]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


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
    date = datetime.date.today().isoformat()
    return Machine(_cpu_name(), torch.__version__, platform.python_version(), threads, date)


def _cpu_name() -> str:
    info = FilePath("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def describe(case: Case) -> str:
    size = case.image_size
    return f"C = {case.channels}, N = {case.cells}, batch {case.batch_size}, {size}x{size}"


def times(comparison: Comparison, title: str) -> Sheet:
    sheet = Sheet(title, ("step", "side", "ms", "[min - max]", "ratio", "worst"), 2)
    for (name, to_gates), side in comparison.items():
        span = f"[{min(side.ms):.1f} - {max(side.ms):.1f}]"
        ratios = ["", ""] if name == OURS else [f"{side.ratio:.2f}x", f"{side.worst:.2f}x"]
        sheet.rows.append([STEPS[to_gates], name, f"{side.median:.1f}", span, *ratios])
    return sheet


Memory = dict[tuple[str | None, bool], float]  # side (None: the imports alone), to_gates: MiB


def memory(peaks: Memory) -> Sheet:
    imports = peaks[None, False]
    sheet = Sheet(
        f"Peak memory of a process of its own, MiB; the imports alone {imports:.0f}",
        ("side", "weight", "architecture", "ours/side: weight", "architecture"),
    )
    for name in dict.fromkeys(name for name, _ in peaks if name is not None):
        ratios = ["", ""] if name == OURS else [f"{peaks[OURS, step] / peaks[name, step]:.2f}x" for step in STEPS]
        sheet.rows.append([name, *(f"{peaks[name, step]:.0f}" for step in STEPS), *ratios])
    return sheet


def targets(comparison: Comparison, peaks: Memory | None) -> Sheet:
    sheet = Sheet("Targets", ("what", "target", "weight", "architecture", "reached"), 1)
    for name, (medians, worst) in TARGETS.items():
        if (name, True) not in comparison:
            continue
        both = [comparison[name, to_gates] for to_gates in STEPS]
        sheet.rows.append(_target(f"{name} / ours, median", medians, [side.ratio for side in both], "at least"))
        if worst is not None:
            sheet.rows.append(_target(f"{name} / ours, worst path", worst, [side.worst for side in both], "at least"))
    if peaks is not None and (XAUTODL, True) in peaks:
        reached = [peaks[OURS, step] / peaks[XAUTODL, step] for step in STEPS]
        sheet.rows.append(_target(f"memory, ours / {XAUTODL}", MEMORY_TARGETS, reached, "at most"))
    return sheet


def _target(what: str, wanted: Sequence[float], reached: Sequence[float], bound: str) -> list[str]:
    pairs = zip(reached, wanted, strict=True)
    met = [value >= limit if bound == "at least" else value <= limit for value, limit in pairs]
    return [
        what,
        f"{bound} {wanted[0]:g}x / {wanted[1]:g}x",
        *(f"{value:.3f}x" for value in reached),
        " / ".join("yes" if each else "no" for each in met),
    ]


@dataclass(frozen=True)
class Roofline:
    """Of one kind of step, averages over the paths. A multiply-add is two FLOPs; rates are totals over total times."""

    gflop: float
    gb: float
    gflops: float
    gbs: float


def roofline(comparison: Comparison, case: Case, paths: list[list[int]]) -> dict[bool, Roofline]:
    found = {}
    for to_gates in STEPS:
        seconds = sum(comparison[OURS, to_gates].ms) / 1e3
        gflop = sum(2e-9 * multiply_adds(ops, case, to_gates) for ops in paths)
        gb = sum(1e-9 * least_bytes(ops, case, to_gates) for ops in paths)
        found[to_gates] = Roofline(gflop / len(paths), gb / len(paths), gflop / seconds, gb / seconds)
    return found


def roofline_sheet(found: dict[bool, Roofline], comparison: Comparison) -> Sheet:
    sheet = Sheet(
        "What ours does, averages over the paths: GFLOP of the convolutions, GB at least (model: benchmarks/work.py)",
        ("step", "mean ms", "GFLOP", "GB", "GFLOP/s", "GB/s"),
    )
    for to_gates, step in STEPS.items():
        each = found[to_gates]
        mean = statistics.mean(comparison[OURS, to_gates].ms)
        numbers = (f"{mean:.1f}", f"{each.gflop:.2f}", f"{each.gb:.3f}", f"{each.gflops:.1f}", f"{each.gbs:.2f}")
        sheet.rows.append([step, *numbers])
    return sheet
