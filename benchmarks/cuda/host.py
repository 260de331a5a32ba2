"""What a step of ours costs the host on a GPU, and how much of it each launch: measured without one. Writes cuda-host.md to --out.

The passes run on the shim, which writes launches down and runs none; images are tiny. The thread's processor time is taken, the
least of several turns, so that other processes disturb little.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path as FilePath
from typing import Any
from unittest.mock import patch

import torch
import tyro
from torch import Tensor
from torch.nn.functional import cross_entropy

from advnas_ext import Path, native
from benchmarks.cuda import shim
from benchmarks.cuda.own import WithOwnConv3x3
from benchmarks.sheet import RESULTS, Page, Sheet, count, machine
from benchmarks.steps.sides import PLAIN, STEPS, Ours, make_network, make_paths, make_sides
from benchmarks.steps.work import Case

SIZE = (2, 4)  # images and their pixels a side: batch norm needs some
LAUNCH = 2.5  # microseconds that the driver takes for a launch, an assumption: the model's

HOW = f"""Microseconds of processor time, the least of several turns, mean over the paths. Without the kernels and without the
driver, which takes about {LAUNCH:g} microseconds a launch more; an allocation is one of the host's allocator, not of the GPU's.
Graph: the checks of python/advnas_ext/fidelity.py and the graph of the step, in Python. Passes: ours in C++, forward and backward,
with what autograd does with the weights' gradients, without the library's convolutions. Library: as many of the host's own
convolutions, bare, of images this small, in place of cuDNN's calls. Rest: loss, and dropping the gradients. Plain PyTorch beside:
all of its step on the same images, whose operators compute something, if little."""


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    """Cells a stage."""
    paths: int = 12
    turns: int = 15
    out: FilePath = RESULTS
    """Folder of the table."""


def microseconds(step: Callable[[], object]) -> float:
    begin = time.thread_time_ns()
    step()
    return (time.thread_time_ns() - begin) / 1e3


class Watched:
    """Steps of ours whose parts are timed: graph, passes (library included), the rest."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self._native = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        run = native._run

        def timed(*arguments: object) -> Tensor:
            begin = time.thread_time_ns()
            y = run(*arguments)
            self._native += (time.thread_time_ns() - begin) / 1e3
            return y

        with patch.object(native, "_run", timed):
            yield

    def parts(self, ops: Tensor, to_gates: bool) -> dict[str, float]:
        self._native = 0.0
        network, batch, kept = self.ours.network, self.ours.batch, {}

        def forward() -> None:
            path = kept["path"] = Path.from_ops(ops, requires_grad=to_gates)
            kept["y"] = network(batch.images, path)

        def loss() -> None:
            kept["loss"] = cross_entropy(kept["y"], batch.labels)

        def backward() -> None:
            kept["loss"].backward(inputs=[kept["path"].gates] if to_gates else None)

        python = microseconds(forward) - self._native
        others = microseconds(loss)
        passes = microseconds(backward) + self._native
        return {"graph": python, "passes": passes, "rest": others + microseconds(self.ours.clear)}


class Library:
    """A 3x3 convolution of ``case`` and its backward pass, bare: to input and weight, or in an architecture step to the input.

    Taken turn by turn beside the steps, so that both meet the same disturbances; the least of all turns counts.
    """

    def __init__(self, case: Case) -> None:
        channels, size = case.channels, case.image_size
        self.x = torch.randn(case.batch_size, channels, size, size).contiguous(memory_format=torch.channels_last)
        self.weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        self.forward = self.backward = float("inf")

    def take(self, to_gates: bool) -> None:
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        wanted = [True, not to_gates, False]
        y = torch.ops.aten.convolution(self.x, self.weight, None, *geometry)
        forward = microseconds(lambda: torch.ops.aten.convolution(self.x, self.weight, None, *geometry))
        backward = microseconds(
            lambda: torch.ops.aten.convolution_backward(y, self.x, self.weight, None, *geometry, wanted)
        )
        self.forward, self.backward = min(self.forward, forward), min(self.backward, backward)


PARTS = ("graph", "passes", "library", "rest")


def measure(settings: Settings) -> Sheet:
    header = ("step", "3x3", "launches", "of ours", *PARTS, "sum", "passes a launch of ours", PLAIN)
    table = Sheet("The host's microseconds of a step", header, 2)
    case = Case(settings.channels, settings.cells, *SIZE)
    network, batch = make_network(case)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours, plain = Ours(network, batch), make_sides([PLAIN], network, batch, case)[PLAIN]
    own = Ours(WithOwnConv3x3(network), batch)
    for (to_gates, step), (side, convolutions) in product(STEPS.items(), ((ours, "library"), (own, "own"))):
        found = mean_of(side, plain, case, to_gates, settings)
        numbers = [found[part] for part in ("launches", "of ours", *PARTS)] + [sum(found[part] for part in PARTS)]
        each = f"{found['passes'] / found['of ours']:.1f}"
        table.rows.append([step, convolutions, *(f"{number:.0f}" for number in numbers), each, f"{found[PLAIN]:.0f}"])
    return table


def mean_of(ours: Ours, plain: Any, case: Case, to_gates: bool, settings: Settings) -> dict[str, float]:
    watched, library, each_path = Watched(ours), Library(case), []
    for ops in make_paths(settings.paths, seed=0):
        turns = []
        for _ in range(settings.turns):
            with shim.launches().counted(dry=True), watched.watching():
                turns.append(watched.parts(ops, to_gates))
            turns[-1][PLAIN] = microseconds(lambda: plain.step(ops, to_gates))  # noqa: B023
            library.take(to_gates)
        least = {part: min(turn[part] for turn in turns) for part in turns[0]}
        work = shim.launches().work(lambda: ours.step(ops, to_gates))  # noqa: B023
        calls = [each.name for each in work if not each.own and "convolution" in each.name]
        least["backwards"] = sum("backward" in call for call in calls)
        least["forwards"] = len(calls) - least["backwards"]
        least["launches"] = sum(each.launches for each in work)
        least["of ours"] = sum(each.own for each in work)
        each_path.append(least)
    mean = {part: statistics.mean(path[part] for path in each_path) for part in each_path[0]}
    mean["library"] = mean["forwards"] * library.forward + mean["backwards"] * library.backward
    mean["passes"] -= mean["library"]
    return mean


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    gc.disable()
    page = Page()
    page.show(measure(settings))
    title = (
        f"C = {settings.channels}, N = {settings.cells}, float32, {count(settings.paths, 'random path')}. {machine(1)}."
    )
    page.write(settings.out / "cuda-host.md", f"{title}\n\n{HOW}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
