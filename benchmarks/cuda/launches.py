"""How many kernels a step launches on a GPU, ours beside plain PyTorch. Counted on the host; needs no GPU. Writes cuda-launches.md
to --out.

The count does not depend on the sizes of batch and images, so both are small.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
import tyro

from benchmarks.cuda.model import label, works_of
from benchmarks.cuda.operators import Work
from benchmarks.sheet import RESULTS, Page, Sheet
from benchmarks.steps.sides import OURS, PLAIN, STEPS, make_paths
from benchmarks.steps.work import Case


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    """Cells a stage."""
    paths: int = 40
    """Random paths."""
    seed: int = 0
    out: FilePath = RESULTS
    """Folder of the tables."""


Counts = dict[tuple[str, bool], list[Counter[str]]]  # side, to_gates: of each path the launches by kernel


def count(work: Sequence[Work]) -> Counter[str]:
    found = Counter[str]()
    for each in work:
        found[label(each)] += each.launches
    return found


def totals(found: Counts) -> Sheet:
    table = Sheet("Launches of a step", ("step", "side", "mean", "min", "max", "ours/side: mean", "at most"), 2)
    for (name, to_gates), counters in found.items():
        sums = [counter.total() for counter in counters]
        ratios = ratios_of(found, name, to_gates)
        beside = ["", ""] if name == OURS else [f"{statistics.mean(ratios):.2f}", f"{max(ratios):.2f}"]
        numbers = (f"{statistics.mean(sums):.0f}", str(min(sums)), str(max(sums)))
        table.rows.append([STEPS[to_gates], name, *numbers, *beside])
    return table


def ratios_of(found: Counts, name: str, to_gates: bool) -> list[float]:
    """Ours / side, on each path."""
    pairs = zip(found[OURS, to_gates], found[name, to_gates], strict=True)
    return [ours.total() / theirs.total() for ours, theirs in pairs]


def by_kernel(found: Counts) -> Sheet:
    """Means over the paths, the most frequent first."""
    header = ("kernel or operator", *(f"{name}, {STEPS[to_gates]}" for name, to_gates in found))
    table = Sheet("Launches by kernel, mean over the paths", header)
    sums = {key: sum(counters, Counter[str]()) for key, counters in found.items()}
    for name, _ in sum(sums.values(), Counter[str]()).most_common():
        means = [sums[key][name] / len(found[key]) for key in found]
        table.rows.append([name, *(f"{mean:.1f}" if mean else "" for mean in means)])
    return table


def verdict(found: Counts) -> str:
    lines = []
    for to_gates, step in STEPS.items():
        mean = statistics.mean(ratios_of(found, PLAIN, to_gates))
        reached = "at most a third" if mean <= 1 / 3 else "more than a third"
        lines.append(f"{step.capitalize()} step: ours launches {mean:.2f} of what plain PyTorch does, {reached}")
    return ". ".join(lines)


HOW = """How it is counted. Our passes run on the host's shim, which writes down what is launched. Operators of PyTorch are counted
as they are dispatched, on either side by the same rules: one launch each, none for views and allocations; two for batch norm each
way; one for a convolution, one more to add its bias, and one for each gradient that is wanted. A library's convolution may launch
more than one kernel; that is not counted on either side. Loss and head are plain PyTorch on both sides and counted, the optimizer
is not. Copies of the gates between host and device are not launches: ours makes one each way in an architecture step."""


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    paths = make_paths(settings.paths, settings.seed)
    case = Case(settings.channels, settings.cells, batch_size=2, image_size=8, seed=settings.seed)
    found: Counts = {
        (name, to_gates): list(map(count, works))
        for to_gates in STEPS
        for name, works in works_of(case, torch.float32, paths, to_gates).items()
    }
    page = Page()
    page.show(totals(found), by_kernel(found))
    page.console.print(verdict(found))
    title = f"C = {settings.channels}, N = {settings.cells}, float32, {settings.paths} random paths. {verdict(found)}."
    page.write(settings.out / "cuda-launches.md", f"{title}\n\n{HOW}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
