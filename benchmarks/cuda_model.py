"""A model of a step's time on GPUs, ours beside plain PyTorch.

Bytes and multiply-adds of every launch, over published bandwidths and peaks. Nothing is measured; needs no GPU. Writes
cuda-model.md to --out.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import cuda_walk
import sides
import torch
import tyro
from cuda_traffic import Work
from gpus import GPUS, Gpu
from measure import STEPS
from operators import Operator, Operators
from report import Sheet
from sides import OURS, PLAIN, PLAIN_TO_INPUTS
from torch import Tensor
from torch.nn.functional import cross_entropy
from work import Case

from advnas.report.console import console

LAUNCH = 2.5e-6  # seconds that a launch costs at least, an assumption: launches follow each other without a CUDA graph
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCHES = (64, 256)


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    """Cells a stage."""
    image_size: int = 32
    paths: int = 40
    """Random paths."""
    seed: int = 0
    out: FilePath = FilePath(__file__).parent / "results"
    """Folder of the tables."""

    def case(self, batch_size: int) -> Case:
        return Case(self.channels, self.cells, batch_size, self.image_size, self.seed)


def seconds(work: Sequence[Work], gpu: Gpu, dtype: torch.dtype) -> float:
    """The predicted time of a step."""
    return sum(_seconds(each, gpu, dtype) for each in work)


def _seconds(work: Work, gpu: Gpu, dtype: torch.dtype) -> float:
    float32 = gpu.fp32 if work.own else gpu.tf32
    peak = float32 if dtype == torch.float32 else gpu.bf16
    return max(work.moved / gpu.bandwidth / 1e9, work.flops / peak / 1e12) + work.launches * LAUNCH


def ours(case: Case, dtype: torch.dtype, ops: Tensor, to_gates: bool) -> list[Work]:
    return [*cuda_walk.step(case, ops.tolist(), to_gates, dtype.itemsize), *head(case, dtype, to_gates)]


class Plain:
    """Plain PyTorch on tensors that have a shape and no data."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        one = replace(case, batch_size=1)
        network, batch = sides.make_network(one)
        images = batch.images.expand(case.batch_size, -1, -1, -1).to(memory_format=torch.channels_last)
        batch = sides.Batch(images, batch.labels.expand(case.batch_size)).to(dtype)
        self.sides: list[sides.Plain] = [maker(network, batch, case) for maker in (sides.Plain, sides.PlainToInputs)]
        for side in self.sides:
            side.network.to("meta")
            side.batch = batch.to(dtype, "meta")

    def work(self, ops: Tensor, to_gates: bool, to_inputs: bool = False) -> list[Work]:
        with Operators() as operators:
            self.sides[to_inputs].step(ops, to_gates)
        return [_work(operator) for operator in operators.found]


def head(case: Case, dtype: torch.dtype, to_gates: bool) -> list[Work]:
    """What follows the last cell, and the loss; on CUDA both sides have it in plain PyTorch."""
    network = sides.make_network(replace(case, batch_size=1, cells=1))[0].to("meta", dtype)
    size = case.image_size // 4
    x = torch.empty(case.batch_size, 4 * case.channels, size, size, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    labels = torch.empty(case.batch_size, dtype=torch.int64, device="meta")
    with Operators() as operators:
        loss = cross_entropy(network.classifier(network.lastact(x)), labels)
        if to_gates:
            loss.backward(inputs=[x])
        else:
            loss.backward()
    return [_work(operator) for operator in operators.found]


def _work(operator: Operator) -> Work:
    return Work(operator.name, operator.bytes, operator.bytes, operator.flops, operator.launches, own=False)


@dataclass(frozen=True)
class Row:
    """One kind of step: mean over the paths of each side's work."""

    dtype: str
    batch: int
    to_gates: bool
    works: dict[str, list[list[Work]]]

    @property
    def what(self) -> list[str]:
        return [STEPS[self.to_gates], self.dtype, str(self.batch)]

    def mean(self, side: str, of: Callable[[list[Work]], float]) -> float:
        return statistics.mean(of(work) for work in self.works[side])

    def seconds(self, side: str, gpu: Gpu) -> float:
        return self.mean(side, lambda work: seconds(work, gpu, DTYPES[self.dtype]))


def works_of(case: Case, dtype: torch.dtype, paths: Tensor, to_gates: bool) -> dict[str, list[list[Work]]]:
    """side: of each path its work."""
    plain = Plain(case, dtype)
    works = {
        OURS: [ours(case, dtype, ops, to_gates) for ops in paths],
        PLAIN: [plain.work(ops, to_gates) for ops in paths],
    }
    if to_gates:
        works[PLAIN_TO_INPUTS] = [plain.work(ops, to_gates, to_inputs=True) for ops in paths]
    return works


def rows(settings: Settings) -> list[Row]:
    paths = sides.make_paths(settings.paths, settings.seed)
    return [
        Row(name, batch, to_gates, works_of(settings.case(batch), dtype, paths, to_gates))
        for name, dtype in DTYPES.items()
        for batch in BATCHES
        for to_gates in STEPS
    ]


def least(work: Sequence[Work]) -> float:
    return sum(each.least for each in work) / 1e6


def moved(work: Sequence[Work]) -> float:
    return sum(each.moved for each in work) / 1e6


def launches(work: Sequence[Work]) -> int:
    return sum(each.launches for each in work)


def gpus() -> Sheet:
    header = ("GPU", "GB/s", "float32 TFLOP/s", "TF32 TFLOP/s, library", "bfloat16 TFLOP/s")
    table = Sheet("Published bandwidth and peaks, dense", header)
    for gpu in GPUS:
        table.rows.append([gpu.name, *(f"{number:g}" for number in (gpu.bandwidth, gpu.fp32, gpu.tf32, gpu.bf16))])
    return table


def times(found: Sequence[Row]) -> Sheet:
    header = ("step", "type", "batch", "side", "launches, ms", *(f"{gpu.name}, ms" for gpu in GPUS))
    table = Sheet("Predicted time of a step, mean over the paths, and side / ours", header, 4)
    for row in found:
        for side in row.works:
            cells = [row.what[0], row.what[1], row.what[2], side, f"{1e3 * LAUNCH * row.mean(side, launches):.2f}"]
            for gpu in GPUS:
                ms = 1e3 * row.seconds(side, gpu)
                ratio = "" if side == OURS else f" ({ms / 1e3 / row.seconds(OURS, gpu):.2f}x)"
                cells.append(f"{ms:.2f}{ratio}")
            table.rows.append(cells)
    return table


def traffic(found: Sequence[Row]) -> Sheet:
    header = ("step", "type", "batch", "GFLOP", "least MB", "moved MB", "plain MB", "plain / ours", "launches", "plain")
    table = Sheet("Bytes and launches of a step, mean over the paths", header, 3)
    for row in found:
        gflop = row.mean(OURS, lambda work: sum(each.flops for each in work) / 1e9)
        mine, plain = row.mean(OURS, moved), row.mean(PLAIN, moved)
        numbers = [
            f"{gflop:.1f}",
            *(f"{mb:.0f}" for mb in (row.mean(OURS, least), mine, plain)),
            f"{plain / mine:.2f}x",
        ]
        table.rows.append([*row.what, *numbers, *(f"{row.mean(side, launches):.0f}" for side in (OURS, PLAIN))])
    return table


def by_kernel(row: Row) -> Sheet:
    title = f"Ours by kernel, {row.dtype}, batch {row.batch}, {STEPS[row.to_gates]} step, mean over the paths"
    table = Sheet(
        title, ("kernel or operator", "launches", "least MB", "moved MB", "moved / least", "part of the bytes")
    )
    kernels: dict[str, list[Work]] = defaultdict(list)
    for work in row.works[OURS]:
        for each in work:
            kernels[each.name if each.own else f"library: {each.name}"].append(each)
    paths = len(row.works[OURS])
    total = sum(moved(works) for works in kernels.values())
    others: list[Work] = []
    for name, works in sorted(kernels.items(), key=lambda item: -moved(item[1])):
        if moved(works) < 0.001 * total:
            others += works
        else:
            table.rows.append(_kernel_row(name, works, paths, total))
    table.rows.append(_kernel_row("all others", others, paths, total))
    return table


def _kernel_row(name: str, works: Sequence[Work], paths: int, total: float) -> list[str]:
    numbers = [launches(works) / paths, least(works) / paths, moved(works) / paths]
    ratio = moved(works) / least(works)
    return [name, *(f"{number:.1f}" for number in numbers), f"{ratio:.3f}", f"{100 * moved(works) / total:.1f} %"]


HOW = f"""A model, not a measurement: no GPU ran any of this. The time of a step is the sum over its launches of the larger of
bytes / bandwidth and FLOPs / peak, plus {LAUNCH * 1e6:g} microseconds for each launch, an assumption. Bytes:
benchmarks/cuda_traffic.py for ours, benchmarks/operators.py for PyTorch's operators, each of which reads what it takes and writes
what it gives; batch norm reads twice. Caches are perfect within a launch and empty before it, on both sides; a GPU whose
second-level cache holds an activation (4 MB here at batch 64 in float32) does better on both. Least: what the arguments of ours
make necessary; moved: with the partial sums of blocks. A library's convolution counts as one launch that reads x and the weight and
writes the output once; in float32 it may use TF32, as PyTorch does by default for convolutions; our own 1x1 convolutions do not.
The T4 has no bfloat16 in its tensor cores. Real kernels reach less than bandwidth and peak, small grids much less, and the host may
launch more slowly than {LAUNCH * 1e6:g} microseconds each: Python's part of a step is not in the model. Head and loss are in, the
optimizer is not. The launches and shapes of ours are those of the passes: tests/test_cuda_model.py compares them with what the
passes launch on the shim."""


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    found = rows(settings)
    first = found[: len(STEPS)]
    tables = [times(found), traffic(found), *map(by_kernel, first), gpus()]
    for table in tables:
        console().print(table.rich())
    size = settings.image_size
    title = f"C = {settings.channels}, N = {settings.cells}, {size}x{size}, {settings.paths} random paths."
    text = "\n".join([title, "", HOW, "", *(table.markdown() for table in tables)])
    (settings.out / "cuda-model.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
