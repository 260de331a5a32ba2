"""Time, launches and memory of a weight step and an architecture step on a GPU, beside what else its user has, and the model.

First ours is compared with plain PyTorch in float64, operation by operation; then each side's result with that of plain PyTorch;
then the sides are timed interleaved, by events on the GPU's stream. All have the same weights, batch and random paths. A rival that
fails is left out, and the page says why. Writes cuda.md to --out after each case. Without a GPU it ends with exit code 2.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import gc
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path as FilePath
from typing import Any

import torch
import tyro
from torch import Tensor

from advnas_ext import _C, NAS_BENCH_201, OnePathCell, Path, reference
from benchmarks.cuda import predict, rivals, shim
from benchmarks.cuda.machines import Cuda, Host, Machine
from benchmarks.cuda.model import PRECISIONS
from benchmarks.cuda.own import OURS_OWN, own_conv3x3
from benchmarks.sheet import RESULTS, Page, Sheet, count
from benchmarks.steps import sides
from benchmarks.steps.measure import KEY, Comparison, interleave, times
from benchmarks.steps.sides import OURS, PLAIN, PLAIN_TO_INPUTS, STEPS, XAUTODL, XAUTODL_CHANNELS_LAST, Outcome
from benchmarks.steps.work import NUM_EDGES, Case

# Norm of the difference over the norm: rounding, and ReLU inputs that change sign by it.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
CHECKED_SHAPE = (8, 16, 16, 16)
COMMON = (PLAIN, OURS, PLAIN_TO_INPUTS)
PEERS = (XAUTODL, XAUTODL_CHANNELS_LAST)  # as they are shipped they know float32 only
ALL = (*COMMON, *PEERS, *rivals.RIVALS)
FAST = (*COMMON, rivals.OURS_OWN, *PEERS, rivals.OURS_IN_A_GRAPH, rivals.OURS_OWN_IN_A_GRAPH, rivals.PLAIN_IN_A_GRAPH)
SLOW = (*COMMON, rivals.GRAPHED, *rivals.MODES)  # captured or compiled for minutes
# What moves the same bytes, step by step.
MODELLED = {
    (rivals.OURS_IN_A_GRAPH, False): OURS,
    (rivals.OURS_IN_A_GRAPH, True): OURS,
    (rivals.OURS_OWN_IN_A_GRAPH, False): OURS_OWN,
    (rivals.OURS_OWN_IN_A_GRAPH, True): OURS_OWN,
    (rivals.PLAIN_IN_A_GRAPH, False): PLAIN,
    (rivals.PLAIN_IN_A_GRAPH, True): PLAIN_TO_INPUTS,
}


@dataclass(frozen=True)
class Run:
    """What is timed together."""

    case: Case
    precision: str
    names: tuple[str, ...]


# The most worth knowing first, what compiles for long last.
SHORT = (
    Run(Case(16, 5, 64), "float32", FAST),
    Run(Case(16, 5, 64), "bfloat16", FAST),
    Run(Case(16, 5, 256), "float32", FAST),
    Run(Case(16, 5, 256), "bfloat16", FAST),
    Run(Case(16, 1, 64), "bfloat16", (*COMMON, rivals.OURS_IN_A_GRAPH, rivals.GRAPHED)),
    Run(Case(16, 5, 64), "float32 without TF32", COMMON),
    Run(Case(16, 5, 64), "float16", COMMON),
    Run(Case(32, 5, 256), "bfloat16", FAST),
    Run(Case(16, 1, 64), "bfloat16", (*COMMON, rivals.COMPILED)),
    Run(Case(16, 1, 64), "bfloat16", (*COMMON, rivals.MAX_AUTOTUNE)),
)


@dataclass
class Settings:
    channels: tuple[int, ...] = predict.CHANNELS
    cells: tuple[int, ...] = predict.CELLS
    """Cells a stage."""
    batch_sizes: tuple[int, ...] = predict.BATCHES
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    image_size: int = 32
    paths: int = predict.PATHS
    """Random paths; the model's numbers are for those of the default."""
    seed: int = 0
    short: bool = False
    """The few cases that are most worth knowing, in place of all."""
    dry: bool = False
    """On the host in place of a GPU, our kernels on the shim: the same code on a small network, with times that say nothing."""
    out: FilePath = RESULTS
    """Folder of the tables."""

    def runs(self) -> tuple[Run, ...]:
        if self.dry:
            case = Case(4, 1, 2, 8)
            uncompiled = (*FAST, rivals.GRAPHED)
            return (Run(case, "float32", ALL), *(Run(case, name, uncompiled) for name in ("bfloat16", "float16")))
        if self.short:
            return SHORT
        cases = product((FAST, SLOW), self.channels, self.cells, self.batch_sizes, self.precisions)
        return tuple(Run(Case(*case, self.image_size, self.seed), name, names) for names, *case, name in cases)


def differences(machine: Machine, dtype: torch.dtype) -> dict[str, float]:
    """Of ours against plain PyTorch in float64, for each operation in a cell with one edge: the largest of output and gradients."""
    with tf32(False):
        return {op: _difference(machine, dtype, place) for place, op in enumerate(NAS_BENCH_201)}


def own_difference(machine: Machine, dtype: torch.dtype) -> float:
    """The same of our own 3x3 convolution, which rounds float32 to TF32."""
    with tf32(True), own_conv3x3():
        return _difference(machine, dtype, NAS_BENCH_201.index("nor_conv_3x3"))


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Of the library's convolutions in float32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


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
    wanted = wanted.detach().cpu().double()
    distance = (value.detach().cpu().double() - wanted).norm()
    return (distance / wanted.norm().clamp(min=torch.finfo(torch.float64).tiny)).item()


def require_small(found: dict[str, float], dtype: torch.dtype) -> None:
    worst = max(found, key=found.__getitem__)
    if not found[worst] <= TOLERANCES[dtype]:
        raise SystemExit(
            f"cuda/steps.py: {worst} in {dtype} differs from plain PyTorch in float64 by {found[worst]:.0e}, "
            f"more than {TOLERANCES[dtype]:.0e}"
        )


class Sides:
    """Those of a run that can be timed: made, warmed up, and their results compared with those of plain PyTorch.

    Attributes:
        made: by name.
        compared: of each, by how much its loss and its gates' gradients differ, the largest over the paths; None: it has none.
        left_out: of the others, why.
    """

    def __init__(self, machine: Machine, run: Run, paths: Tensor) -> None:
        self.made: dict[str, Any] = {}
        self.compared: dict[str, tuple[float, float | None]] = {}
        self.left_out: list[str] = []
        self._machine, self._run, self._paths = machine, run, paths
        self._expected: list[Outcome] = []
        dtype = PRECISIONS[run.precision].dtype
        network, batch = sides.make_network(run.case)
        self._network = network.to(machine.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._batch = batch.to(dtype, machine.device)
        for name in run.names:
            if name in PEERS and (dtype != torch.float32 or not sides.has_xautodl()):
                continue
            if name in rivals.OWN and not PRECISIONS[run.precision].has_own_conv3x3:
                continue  # it would be ours once more
            try:
                self._add(name)
            except Exception as error:  # whatever a rival meets here must not end the others
                if name in COMMON:
                    raise
                first_line = next(iter(str(error).strip().splitlines()), "")
                self.left_out.append(f"{name}: {type(error).__name__}: {first_line}")
        # Ours goes first where the sides are listed.
        self.made = {name: self.made[name] for name in (OURS, *self.made)}

    def _add(self, name: str) -> None:
        given = (self._network, self._batch, self._run.case)
        is_rival = name in rivals.RIVALS
        side = rivals.make_rival(name, self._machine, *given) if is_rival else sides.make_sides([name], *given)[name]
        side.clock = self._machine.clock
        if not isinstance(side, rivals.InAGraph):
            warm_up(side)
        self._compare(name, side)
        self.made[name] = side

    def _compare(self, name: str, side: Any) -> None:
        found = [side.step(ops, True) for ops in self._paths[:2]]
        self._expected = self._expected or found  # plain PyTorch is the first
        pairs = list(zip(found, self._expected, strict=True))
        loss = max(_relative(one.loss, other.loss) for one, other in pairs)
        gates = None
        if found[0].gate_grads is not None:
            gates = max(_relative(one.gate_grads, other.gate_grads) for one, other in pairs)  # type: ignore[arg-type]
        self.compared[name] = loss, gates
        tolerance = PRECISIONS[self._run.precision].loss
        if not loss <= tolerance:
            raise ValueError(f"its loss differs from plain PyTorch's by {loss:.0e} of it, more than {tolerance:.0e}")


def warm_up(side: Any) -> None:
    """Every operation once: the library chooses its kernels at the first use of a shape."""
    for op in range(len(NAS_BENCH_201)):
        for to_gates in STEPS:
            if to_gates or side.weight_step:
                side.step(torch.full((NUM_EDGES,), op), to_gates)


class Benchmark(Page):
    """Runs on ``machine``; prints its tables and keeps them."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        super().__init__()
        self.settings = settings
        self.machine = machine
        self.paths = sides.make_paths(2 if settings.dry else settings.paths, settings.seed)
        # The model's numbers are of these paths only.
        usual = (settings.paths, settings.seed, settings.image_size) == (predict.PATHS, 0, 32)
        self.expected = predict.read() if usual and not settings.dry else {}
        self.few = self.paths[: 1 if settings.short or settings.dry else 4]
        self.checked: list[str] = []
        self.left_out: list[str] = []

    def run(self) -> None:
        runs = self.settings.runs()
        for dtype in dict.fromkeys(PRECISIONS[run.precision].dtype for run in runs):
            found = differences(self.machine, dtype)
            require_small(found, dtype)
            own = own_difference(self.machine, dtype)
            # TF32 has the mantissa of float16.
            require_small({"our own 3x3 convolution": own}, torch.float16 if dtype == torch.float32 else dtype)
            self.checked.append(f"{str(dtype).removeprefix('torch.')} {max(found.values()):.0e} (own 3x3 {own:.0e})")
        self.console.print(self.head())
        for run in runs:
            with tf32(PRECISIONS[run.precision].tf32):
                self.compare(run)
            self.write(self.settings.out / "cuda.md", self.head())
            gc.collect()
            torch.cuda.empty_cache()

    def head(self) -> str:
        gpu = self.machine.gpu
        figures = f"published figures of {gpu.name}" if gpu else "no published figures in benchmarks/cuda/gpus.py"
        text = (
            f"{self.machine.name} ({figures}), torch {torch.__version__}, CUDA {torch.version.cuda}, "
            f"{datetime.date.today().isoformat()}. {KEY.capitalize()}. Ours against plain PyTorch in float64, operation by "
            f"operation, norm of the difference: {', '.join(self.checked)}. Predicted: benchmarks/cuda/model.py. Loss, gates: "
            "how much they differ from plain PyTorch's in the same precision, norm over norm, the larger of two paths; gradients "
            f"of gates jump where a ReLU's input changes its sign by rounding. {rivals.__doc__}"
        )
        return "\n".join([text, *(f"- left out: {each}" for each in self.left_out)])

    def compare(self, run: Run) -> None:
        title = f"{run.case}, {run.precision}"
        found = Sides(self.machine, run, self.paths)
        for each in found.left_out:
            self.left_out.append(f"{title}: {each}")
            self.console.print(f"left out: {self.left_out[-1]}", markup=False)
        comparison = interleave(found.made, self.paths, lambda: None)
        self.show(times(comparison, f"{title}, {count(len(self.paths), 'random path')}"))
        self.show(self.beside_the_model(run, found, comparison))

    def beside_the_model(self, run: Run, found: Sides, comparison: Comparison) -> Sheet:
        """Means over the paths; launches and memory over the first few."""
        numbers = ("loss", "gates", "mean ms", "predicted", "measured / predicted", "MB predicted")
        header = ("step", "side", *numbers, "launches", "predicted", "peak MiB")
        table = Sheet("Differences; beside the model; launches and memory", header, 2)
        gpu = self.machine.gpu
        for (name, to_gates), measured in comparison.items():
            mean = statistics.mean(measured.ms)
            side = MODELLED.get((name, to_gates), name)
            expected = self.expected.get(predict.key_of(run.case, run.precision, to_gates, side))
            predicted = ["", ""]
            if expected is not None and gpu is not None:
                predicted = [f"{expected.ms[gpu.name]:.2f}", f"{mean / expected.ms[gpu.name]:.2f}x"]
            moved, launches = (f"{expected.megabytes:.0f}", f"{expected.launches:.0f}") if expected else ("", "")
            launched, memory = "a graph", ""
            if not isinstance(found.made[name], rivals.InAGraph):  # which would be counted while it is captured
                few = [partial(found.made[name].step, ops, to_gates) for ops in self.few]
                launched = f"{statistics.mean(self.machine.launches(step) for step in few):.0f}"
                memory = f"{max(self.machine.peak_mib(step) for step in few):.0f}"
            loss, gates = found.compared[name]
            compared = [f"{loss:.0e}", "" if gates is None else f"{gates:.0e}"]
            row = [STEPS[to_gates], name, *compared, f"{mean:.2f}", *predicted, moved, launched, launches, memory]
            table.rows.append(row)
        return table


def missing() -> str | None:
    """Why this cannot run, in one line."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and PyTorch finds none; --dry runs it on the host"
    if not _C.cuda:
        return "the extension was built without CUDA: install a CUDA build of PyTorch and the CUDA toolkit, and build again"
    return None


def main(settings: Settings) -> None:
    if settings.dry:
        torch.set_num_threads(1)
        with shim.launches().counted():
            Benchmark(settings, Host()).run()
        return
    reason = missing()
    if reason is not None:
        print(f"cuda/steps.py: {reason}", file=sys.stderr)
        raise SystemExit(2)
    torch.backends.cudnn.benchmark = True  # on every side the library measures which of its kernels is the fastest
    Benchmark(settings, Cuda()).run()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
