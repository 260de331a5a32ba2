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

import cuda_model
import report
import sides
import torch
import tyro
from cuda_model import DTYPES
from machines import Cuda, Machine
from measure import STEPS, Comparison, interleave
from report import Sheet
from sides import OURS, PLAIN, PLAIN_TO_INPUTS, XAUTODL, NetworkSide
from torch import Tensor
from work import Case

from advnas.report.console import console
from advnas.spaces.nasbench201 import NASBENCH201
from advnas_ext import _C, NAS_BENCH_201, OnePathCell, Path, reference

# Norm of the difference over the norm: rounding, and ReLU inputs that change sign by it.
TOLERANCES = {"float32": 1e-4, "bfloat16": 6e-2}
CHECKED_SHAPE = (8, 16, 16, 16)
FEW = 4  # paths whose launches and memory are looked at


@dataclass
class Settings(cuda_model.Settings):
    batch_sizes: tuple[int, ...] = cuda_model.BATCHES


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
            f"cuda_steps.py: {worst} in {dtype} differs from plain PyTorch in float64 by {found[worst]:.0e}"
        )


def make_sides(machine: Machine, case: Case, dtype: torch.dtype) -> dict[str, NetworkSide]:
    """xautodl as it is shipped knows float32 only."""
    network, batch = sides.make_network(case)
    network.to(machine.device, dtype)
    batch = batch.to(dtype, machine.device)
    names = [OURS, PLAIN, PLAIN_TO_INPUTS]
    if dtype == torch.float32 and sides.has_xautodl():
        names.append(XAUTODL)
    made = {}
    for name in names:
        side = sides.make_side(name, network, batch, case)
        assert isinstance(side, NetworkSide)
        side.clock = machine.clock
        made[name] = side
    return made


def warm_up(made: dict[str, NetworkSide]) -> None:
    """Every operation once: the library chooses its kernels at the first use of a shape."""
    for op in range(len(NAS_BENCH_201)):
        for side in made.values():
            for to_gates in STEPS:
                if to_gates or side.weight_step:
                    side.step(torch.full((NASBENCH201.num_edges,), op), to_gates)


@dataclass
class Configuration:
    case: Case
    dtype: str
    paths: Tensor

    def __str__(self) -> str:
        return f"{report.describe(self.case)}, {self.dtype}, {report.count(len(self.paths), 'random path')}"


class Benchmark:
    """Runs on ``machine``; prints its tables and keeps them."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self.settings = settings
        self.machine = machine
        self.console = console()
        self.paths = sides.make_paths(settings.paths, settings.seed)
        self.sheets: list[Sheet] = []
        self.checked: list[str] = []

    def run(self) -> None:
        for name, dtype in DTYPES.items():
            found = differences(self.machine, dtype)
            require_small(found, name)
            self.checked.append(f"{name} {max(found.values()):.0e}")
        self.console.print(self.head())
        for name in DTYPES:
            for batch_size in self.settings.batch_sizes:
                self.compare(Configuration(self.settings.case(batch_size), name, self.paths))

    def head(self) -> str:
        gpu = self.machine.gpu
        figures = f"published figures of {gpu.name}" if gpu else "no published figures in benchmarks/gpus.py"
        return (
            f"{self.machine.name} ({figures}), torch {torch.__version__}, CUDA {torch.version.cuda}, "
            f"{datetime.date.today().isoformat()}. {report.KEY.capitalize()}. Ours against plain PyTorch in float64, operation by "
            f"operation, norm of the difference: {', '.join(self.checked)}. Predicted: benchmarks/cuda_model.py."
        )

    def compare(self, configuration: Configuration) -> None:
        made = make_sides(self.machine, configuration.case, DTYPES[configuration.dtype])
        warm_up(made)
        comparison = interleave(made, self.paths, lambda: None)
        self.show(report.times(comparison, str(configuration)))
        self.show(beside_the_model(self.machine, made, comparison, configuration))

    def show(self, sheet: Sheet) -> None:
        self.sheets.append(sheet)
        self.console.print(sheet.rich())

    def write(self) -> None:
        text = "\n".join([self.head(), "", *(sheet.markdown() for sheet in self.sheets)])
        (self.settings.out / "cuda.md").write_text(text)
        self.console.print(f"written to {self.settings.out / 'cuda.md'}")


def beside_the_model(
    machine: Machine, made: dict[str, NetworkSide], comparison: Comparison, configuration: Configuration
) -> Sheet:
    """Means over the paths; launches and memory over the first few."""
    dtype, paths = DTYPES[configuration.dtype], configuration.paths
    header = ("step", "side", "mean ms", "predicted", "measured / predicted", "launches", "predicted", "peak MiB")
    table = Sheet(f"Beside the model; launches and memory of {report.count(len(paths[:FEW]), 'path')}", header, 2)
    works = {to_gates: cuda_model.works_of(configuration.case, dtype, paths, to_gates) for to_gates in STEPS}
    for (name, to_gates), times in comparison.items():
        mean = statistics.mean(times.ms)
        model = works[to_gates].get(name)
        predicted = ["", ""]
        if model is not None and machine.gpu is not None:
            ms = 1e3 * statistics.mean(cuda_model.seconds(work, machine.gpu, dtype) for work in model)
            predicted = [f"{ms:.2f}", f"{mean / ms:.2f}x"]
        few = [partial(made[name].step, ops, to_gates) for ops in paths[:FEW]]
        launched = f"{statistics.mean(machine.launches(step) for step in few):.0f}"
        expected = "" if model is None else f"{statistics.mean(map(cuda_model.launches, model[:FEW])):.0f}"
        memory = f"{max(machine.peak_mib(step) for step in few):.0f}"
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
        print(f"cuda_steps.py: {reason}", file=sys.stderr)
        raise SystemExit(2)
    torch.backends.cudnn.benchmark = True  # on every side the library measures which of its kernels is the fastest
    benchmark = Benchmark(settings, Cuda())
    benchmark.run()
    benchmark.write()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
