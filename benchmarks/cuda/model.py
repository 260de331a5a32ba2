"""A model of a step's time on GPUs, ours beside plain PyTorch.

Bytes and FLOPs of every launch, over published bandwidths and peaks. Nothing is measured; needs no GPU. Writes cuda-model.md to
--out.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

import torch
import tyro
from torch import Tensor

from benchmarks.cuda import shim
from benchmarks.cuda.gpus import GPUS, Gpu
from benchmarks.cuda.operators import Work, operators_of
from benchmarks.cuda.own import OURS_OWN, WithOwnConv3x3
from benchmarks.sheet import RESULTS, Page, Sheet
from benchmarks.steps.sides import OURS, PLAIN, PLAIN_TO_INPUTS, STEPS, Ours, make_network, make_paths, make_sides
from benchmarks.steps.work import Case

LAUNCH = 2.5e-6  # seconds that a launch costs at least, an assumption: launches follow each other without a CUDA graph
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """``tf32``: whether 3x3 convolutions in float32 may use it; ``loss``: by which part of it losses may differ."""

    dtype: torch.dtype
    loss: float
    tf32: bool = False

    @property
    def has_own_conv3x3(self) -> bool:
        """Our own 3x3 convolutions round float32 to TF32."""
        return self.tf32 or self.dtype.itemsize == 2


PRECISIONS = {
    "float32": Precision(torch.float32, 1e-2, tf32=True),  # as PyTorch runs convolutions unless told otherwise
    "float32 without TF32": Precision(torch.float32, 1e-3),
    "bfloat16": Precision(torch.bfloat16, 5e-2),
    "float16": Precision(torch.float16, 2e-2),
}
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
    out: FilePath = RESULTS
    """Folder of the tables."""

    def case(self, batch_size: int) -> Case:
        return Case(self.channels, self.cells, batch_size, self.image_size, self.seed)


Works = dict[str, list[list[Work]]]  # side: of each path its work


def works_of(case: Case, dtype: torch.dtype, paths: Tensor, to_gates: bool) -> Works:
    """Of a step, head and loss included, the optimizer not. Ours runs dry; plain PyTorch on tensors without data."""
    network, batch = make_network(case)
    network, batch = network.to(dtype), batch.to(dtype)
    works = {}
    for name, each in ((OURS, network), (OURS_OWN, WithOwnConv3x3(network))):
        ours = Ours(each, batch)
        works[name] = [shim.launches().work(partial(ours.step, ops, to_gates)) for ops in paths]
    plain = make_sides((PLAIN, PLAIN_TO_INPUTS)[: 1 + to_gates], network.to("meta"), batch.to(dtype, "meta"), case)
    for name, side in plain.items():
        works[name] = [operators_of(partial(side.step, ops, to_gates)) for ops in paths]
    return works


def works_on(gpu: Gpu, works: Works, side: str) -> list[list[Work]]:
    """Where tensor cores are older than sm_80, the library runs our own 3x3 convolutions."""
    return works[OURS if side == OURS_OWN and gpu.target < 80 else side]


def seconds(work: Sequence[Work], gpu: Gpu, dtype: torch.dtype, tf32: bool = True) -> float:
    """The predicted time of a step."""
    return sum(_seconds(each, gpu, dtype, tf32) for each in work)


def _seconds(work: Work, gpu: Gpu, dtype: torch.dtype, tf32: bool) -> float:
    float32 = gpu.tf32 if tf32 and work.has_tf32 else gpu.fp32
    peak = float32 if dtype == torch.float32 else gpu.bf16
    return max(work.moved / gpu.bandwidth / 1e9, work.flops / peak / 1e12) + work.launches * LAUNCH


def least(work: Sequence[Work]) -> float:
    return sum(each.least for each in work) / 1e6


def moved(work: Sequence[Work]) -> float:
    return sum(each.moved for each in work) / 1e6


def launches(work: Sequence[Work]) -> int:
    return sum(each.launches for each in work)


@dataclass(frozen=True)
class Row:
    """One kind of step: the works of all paths."""

    dtype: str
    batch: int
    to_gates: bool
    works: Works

    @property
    def what(self) -> list[str]:
        return [STEPS[self.to_gates], self.dtype, str(self.batch)]

    def mean(self, side: str, of: Callable[[list[Work]], float]) -> float:
        return statistics.mean(of(work) for work in self.works[side])

    def seconds(self, side: str, gpu: Gpu) -> float:
        found = works_on(gpu, self.works, side)
        return statistics.mean(seconds(work, gpu, DTYPES[self.dtype]) for work in found)


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
            cells = [*row.what, side, f"{1e3 * LAUNCH * row.mean(side, launches):.2f}"]
            for gpu in GPUS:
                taken, of_ours = row.seconds(side, gpu), row.seconds(OURS, gpu)
                cells.append(f"{1e3 * taken:.2f}" + ("" if side == OURS else f" ({taken / of_ours:.2f}x)"))
            table.rows.append(cells)
    return table


def traffic(found: Sequence[Row]) -> Sheet:
    numbers = (
        "GFLOP",
        "least MB",
        "moved MB",
        "own 3x3 MB",
        "plain MB",
        "plain / ours",
        "launches",
        "own 3x3",
        "plain",
    )
    header = ("step", "type", "batch", *numbers)
    table = Sheet("Bytes and launches of a step, mean over the paths", header, 3)
    for row in found:
        gflop = row.mean(OURS, lambda work: sum(each.flops for each in work) / 1e9)
        mine, own, plain = (row.mean(side, moved) for side in (OURS, OURS_OWN, PLAIN))
        megabytes = (f"{mb:.0f}" for mb in (row.mean(OURS, least), mine, own, plain))
        counts = (f"{row.mean(side, launches):.0f}" for side in (OURS, OURS_OWN, PLAIN))
        table.rows.append([*row.what, f"{gflop:.1f}", *megabytes, f"{plain / mine:.2f}x", *counts])
    return table


def by_kernel(row: Row, side: str = OURS) -> Sheet:
    title = f"{side} by kernel, {row.dtype}, batch {row.batch}, {STEPS[row.to_gates]} step, mean over the paths"
    header = ("kernel or operator", "launches", "least MB", "moved MB", "moved / least", "part of the bytes")
    table = Sheet(title, header)
    kernels: dict[str, list[Work]] = defaultdict(list)
    for work in row.works[side]:
        for each in work:
            kernels[label(each)].append(each)
    total = sum(moved(works) for works in kernels.values())
    large = {name: works for name, works in kernels.items() if moved(works) >= 0.001 * total}
    listed = dict(sorted(large.items(), key=lambda item: -moved(item[1])))
    listed["all others"] = [work for name, works in kernels.items() if name not in large for work in works]
    for name, works in listed.items():
        numbers = (f"{number / len(row.works[OURS]):.1f}" for number in (launches(works), least(works), moved(works)))
        part = f"{100 * moved(works) / total:.1f} %"
        table.rows.append([name, *numbers, f"{moved(works) / least(works):.3f}" if works else "", part])
    return table


def label(work: Work) -> str:
    return work.name if work.own else f"library: {work.name}"


HOW = f"""A model, not a measurement: no GPU ran any of this. The time of a step is the sum over its launches of the larger of
bytes / bandwidth and FLOPs / peak, plus {LAUNCH * 1e6:g} microseconds for each launch, an assumption. The launches of ours are
those of the passes themselves, which run on the host's shim at these sizes without their kernels; bytes and FLOPs of each are read
off its arguments (tests/cuda_shim/work.h, which `make test-native` holds against every byte that the kernels touch). Bytes of
PyTorch's operators: benchmarks/cuda/operators.py; each reads what it takes and writes what it gives; batch norm reads twice. Caches
are perfect within a launch and empty before it, on both sides; a GPU whose second-level cache holds an activation (4 MB here at
batch 64 in float32) does better on both. Least: what the arguments of ours make necessary; moved: with the partial sums of blocks.
A library's convolution counts as one launch that reads x and the weight and writes the output once; in float32 it may use TF32, as
PyTorch does by default for convolutions; our own 3x3 convolutions do so too, our 1x1 ones do not. The T4 has no bfloat16 in its
tensor cores, and runs none of our own 3x3 convolutions. Real kernels reach less than bandwidth and peak, small grids much less, and
the host may launch more slowly than {LAUNCH * 1e6:g} microseconds each: Python's part of a step is not in the model.
Head and loss are in, the optimizer is not."""


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    paths = make_paths(settings.paths, settings.seed)
    found = [
        Row(name, batch, to_gates, works_of(settings.case(batch), dtype, paths, to_gates))
        for name, dtype in DTYPES.items()
        for batch in BATCHES
        for to_gates in STEPS
    ]
    page = Page()
    kernels = (by_kernel(row, side) for row in found[: len(STEPS)] for side in (OURS, OURS_OWN))
    page.show(times(found), traffic(found), *kernels, gpus())
    size = settings.image_size
    title = f"C = {settings.channels}, N = {settings.cells}, {size}x{size}, {settings.paths} random paths."
    page.write(settings.out / "cuda-model.md", f"{title}\n\n{HOW}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
