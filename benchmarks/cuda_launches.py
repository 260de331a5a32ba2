"""How many kernels a step launches on a GPU, ours beside plain PyTorch. Counted on the host, with our kernels on the shim; needs no
GPU. Writes cuda-launches.md to --out.

The count does not depend on the sizes of batch and images, so both are small.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path as FilePath

import sides
import torch
import tyro
from measure import STEPS
from operators import Operators
from report import Sheet
from shim import Launches
from sides import OURS, PLAIN, PLAIN_TO_INPUTS, NetworkSide
from torch import Tensor
from work import Case

from advnas.report.console import console

NAMES = {False: (OURS, PLAIN), True: (OURS, PLAIN, PLAIN_TO_INPUTS)}
LIBRARY = "library: "


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    """Cells a stage."""
    paths: int = 40
    """Random paths."""
    seed: int = 0
    out: FilePath = FilePath(__file__).parent / "results"
    """Folder of the tables."""

    @property
    def case(self) -> Case:
        return Case(self.channels, self.cells, batch_size=2, image_size=8, seed=self.seed)


Counts = dict[tuple[str, bool], list[Counter[str]]]  # side, to_gates: of each path the launches by kernel


def count(case: Case, paths: Tensor) -> Counts:
    """The launches of a step of either kind, loss, head and the loss's backward pass included, the optimizer not."""
    network, batch = sides.make_network(case)
    launches = Launches()
    found: Counts = {}
    for to_gates, names in NAMES.items():
        for name in names:
            side = sides.make_side(name, network, batch, case)
            assert isinstance(side, NetworkSide)
            found[name, to_gates] = [count_step(launches, side, ops, to_gates) for ops in paths]
    return found


def count_step(launches: Launches, side: NetworkSide, ops: Tensor, to_gates: bool) -> Counter[str]:
    with launches.counted() as kernels, Operators() as operators:
        side.step(ops, to_gates)
    result = Counter[str]()
    for launch, times in kernels.items():
        result[launch.kernel] += times
    for operator in operators.found:
        result[LIBRARY + operator.name] += operator.launches
    return result


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


HOW = """How it is counted. Our kernels run on the host's shim, which counts what is launched. Operators of PyTorch are counted
as they are dispatched, on either side by the same rules: one launch each, none for views and allocations; two for batch norm each
way; one for a convolution, one more to add its bias, and one for each gradient that is wanted. A library's convolution may launch
more than one kernel; that is not counted on either side. Loss and head are plain PyTorch on both sides and counted, the optimizer
is not. Copies of the gates between host and device are not launches: ours makes one each way in an architecture step."""


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    found = count(settings.case, sides.make_paths(settings.paths, settings.seed))
    tables = [totals(found), by_kernel(found)]
    for table in tables:
        console().print(table.rich())
    console().print(verdict(found))
    title = f"C = {settings.channels}, N = {settings.cells}, float32, {settings.paths} random paths. {verdict(found)}."
    text = "\n".join([title, "", HOW, "", *(table.markdown() for table in tables)])
    (settings.out / "cuda-launches.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
