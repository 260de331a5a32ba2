"""Time, launches and memory of a weight step and an architecture step on a GPU, beside plain PyTorch, xautodl and the model.

First ours is compared with plain PyTorch in float64 on the host; then the sides are timed interleaved, by events on the GPU's
stream. All have the same weights, batch and random paths. Writes cuda.md to --out. Without a GPU it ends with exit code 2.
"""

from __future__ import annotations

import copy
import datetime
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from torch import Tensor

from advnas_ext import _C, NAS_BENCH_201, OnePathCell, Path, reference
from benchmarks.cuda import model
from benchmarks.cuda.machines import Cuda, Machine
from benchmarks.cuda.model import DTYPES
from benchmarks.sheet import Page, Sheet, count
from benchmarks.steps import sides
from benchmarks.steps.measure import KEY, Comparison, interleave, times
from benchmarks.steps.sides import OURS, PLAIN, PLAIN_TO_INPUTS, STEPS, XAUTODL
from benchmarks.steps.work import NUM_EDGES, Case

# Norm of the difference over the norm: rounding, and ReLU inputs that change sign by it.
TOLERANCES = {"float32": 1e-4, "bfloat16": 6e-2}
CHECKED_SHAPE = (8, 16, 16, 16)
FEW = 4  # paths whose launches and memory are looked at


@dataclass
class Settings(model.Settings):
    batch_sizes: tuple[int, ...] = model.BATCHES


def differences(machine: Machine, dtype: torch.dtype) -> dict[str, float]:
    """Of ours against plain PyTorch in float64, for each operation in a cell with one edge: the largest of output and gradients."""
    found = {}
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        for place, op in enumerate(NAS_BENCH_201):
            found[op] = _difference(machine, dtype, place)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return found


def _difference(machine: Machine, dtype: torch.dtype, op: int) -> float:
    torch.manual_seed(op)
    cell = OnePathCell(CHECKED_SHAPE[1], num_nodes=2).to(dtype)
    truth = copy.deepcopy(cell).double()
    cell.to(machine.device)
    x, dy = (torch.randn(CHECKED_SHAPE, dtype=dtype) for _ in range(2))
    mine = x.to(machine.device).contiguous(memory_format=torch.channels_last).requires_grad_()
    wide = x.double().requires_grad_()
    path, exact = (Path.from_ops([op], dtype=t) for t in (torch.float32, torch.float64))
    y, expected = cell(mine, path), reference.cell(wide, exact, list(truth.edges.values()), 2)  # type: ignore[arg-type]
    y.backward(dy.to(machine.device))
    expected.backward(dy.double())
    pairs = [(y, expected), (mine.grad, wide.grad), (path.gates.grad, exact.gates.grad)]
    weights = zip(cell.named_parameters(), truth.parameters(), strict=True)
    # Batch norm cancels the bias before it: its gradient is 0 but for rounding.
    pairs += [(p.grad, q.grad) for (name, p), q in weights if name.endswith("weight") and q.grad is not None]
    return max(_relative(value, wanted) for value, wanted in pairs if wanted is not None)


def _relative(value: Tensor | None, wanted: Tensor) -> float:
    if value is None:
        return 0.0 if wanted.norm() == 0 else float("inf")
    distance = (value.detach().cpu().double() - wanted).norm()
    return (distance / wanted.norm().clamp(min=torch.finfo(torch.float64).tiny)).item()


def require_small(found: dict[str, float], dtype: str) -> None:
    worst = max(found, key=found.__getitem__)
    if not found[worst] <= TOLERANCES[dtype]:
        raise SystemExit(
            f"cuda/steps.py: {worst} in {dtype} differs from plain PyTorch in float64 by {found[worst]:.0e}"
        )


def make_sides(machine: Machine, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """xautodl as it is shipped knows float32 only."""
    network, batch = sides.make_network(case)
    names = [OURS, PLAIN, PLAIN_TO_INPUTS]
    if dtype == torch.float32 and sides.has_xautodl():
        names.append(XAUTODL)
    network = network.to(machine.device, dtype, memory_format=torch.channels_last)
    made = sides.make_sides(names, network, batch.to(dtype, machine.device), case)
    for side in made.values():
        side.clock = machine.clock
    return made


def warm_up(made: dict[str, Any]) -> None:
    """Every operation once: the library chooses its kernels at the first use of a shape."""
    for op in range(len(NAS_BENCH_201)):
        for side in made.values():
            for to_gates in STEPS:
                if to_gates or side.weight_step:
                    side.step(torch.full((NUM_EDGES,), op), to_gates)


class Benchmark(Page):
    """Runs on ``machine``; prints its tables and keeps them."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        super().__init__()
        self.settings = settings
        self.machine = machine
        self.paths = sides.make_paths(settings.paths, settings.seed)
        self.checked: list[str] = []

    def run(self) -> None:
        for name, dtype in DTYPES.items():
            found = differences(self.machine, dtype)
            require_small(found, name)
            self.checked.append(f"{name} {max(found.values()):.0e}")
        self.console.print(self.head())
        for name in DTYPES:
            for batch_size in self.settings.batch_sizes:
                self.compare(self.settings.case(batch_size), name)
        self.write(self.settings.out / "cuda.md", self.head())

    def head(self) -> str:
        gpu = self.machine.gpu
        figures = f"published figures of {gpu.name}" if gpu else "no published figures in benchmarks/cuda/gpus.py"
        return (
            f"{self.machine.name} ({figures}), torch {torch.__version__}, CUDA {torch.version.cuda}, "
            f"{datetime.date.today().isoformat()}. {KEY.capitalize()}. Ours against plain PyTorch in float64, operation by "
            f"operation, norm of the difference: {', '.join(self.checked)}. Predicted: benchmarks/cuda/model.py."
        )

    def compare(self, case: Case, dtype: str) -> None:
        made = make_sides(self.machine, case, DTYPES[dtype])
        warm_up(made)
        comparison = interleave(made, self.paths, lambda: None)
        self.show(times(comparison, f"{case}, {dtype}, {count(len(self.paths), 'random path')}"))
        works = {to_gates: model.works_of(case, DTYPES[dtype], self.paths, to_gates) for to_gates in STEPS}
        self.show(self.beside_the_model(made, comparison, works, DTYPES[dtype]))

    def beside_the_model(
        self, made: dict[str, Any], comparison: Comparison, works: dict[bool, model.Works], dtype: torch.dtype
    ) -> Sheet:
        """Means over the paths; launches and memory over the first few."""
        header = ("step", "side", "mean ms", "predicted", "measured / predicted", "launches", "predicted", "peak MiB")
        table = Sheet(f"Beside the model; launches and memory of {count(len(self.paths[:FEW]), 'path')}", header, 2)
        for (name, to_gates), found in comparison.items():
            mean, work = statistics.mean(found.ms), works[to_gates].get(name, [])
            predicted = ["", ""]
            if work and self.machine.gpu is not None:
                ms = 1e3 * statistics.mean(model.seconds(each, self.machine.gpu, dtype) for each in work)
                predicted = [f"{ms:.2f}", f"{mean / ms:.2f}x"]
            few = [partial(made[name].step, ops, to_gates) for ops in self.paths[:FEW]]
            launched = f"{statistics.mean(self.machine.launches(step) for step in few):.0f}"
            expected = f"{statistics.mean(map(model.launches, work[:FEW])):.0f}" if work else ""
            memory = f"{max(self.machine.peak_mib(step) for step in few):.0f}"
            table.rows.append([STEPS[to_gates], name, f"{mean:.2f}", *predicted, launched, expected, memory])
        return table


def missing() -> str | None:
    """Why this cannot run, in one line."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and PyTorch finds none"
    if not _C.cuda:
        return "the extension was built without CUDA: install a CUDA build of PyTorch and the CUDA toolkit, and build again"
    return None


def main(settings: Settings) -> None:
    reason = missing()
    if reason is not None:
        print(f"cuda/steps.py: {reason}", file=sys.stderr)
        raise SystemExit(2)
    torch.backends.cudnn.benchmark = True  # on every side the library measures which of its kernels is the fastest
    Benchmark(settings, Cuda()).run()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
