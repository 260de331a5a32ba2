"""What our own 3x3 convolutions can reach on an H100 by what they move and compute, beside the library's with the passes over
memory that it needs around it. A model; nothing is measured, and no GPU is needed. Writes cuda-conv3x3.md to --out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path as FilePath

import torch
import tyro

from advnas_ext import OnePathCell, Path
from benchmarks.cuda import shim
from benchmarks.cuda.gpus import GPUS
from benchmarks.cuda.model import BATCHES, DTYPES, LAUNCH
from benchmarks.cuda.operators import Work
from benchmarks.cuda.own import own_conv3x3
from benchmarks.sheet import RESULTS, Page, Sheet

SIZES = ((16, 32), (32, 16), (64, 8))  # channels, pixels a side: the stages of a NAS-Bench-201 supernet
H100 = next(gpu for gpu in GPUS if gpu.name == "H100 SXM")
# Assumptions: of one SM bytes of shared memory a cycle, and cycles of all SMs a second; bytes that the second-level cache gives a
# second; the part of the peak that mma instructions reach, which is meant for Hopper's own.
SHARED = 128 * 132 * 1.755e9
LEVEL_2 = 5.5e12
MMA = 0.6
FORWARD, INPUT, WEIGHT = (f"conv3x3_{way}_kernel" for way in ("forward", "input", "weight"))


@dataclass(frozen=True)
class Way:
    """``tensors``, ``launches``: that the library's convolutions and the passes around them read and write, of x, z, dy, dz, dp."""

    kernels: tuple[str, ...]
    tensors: int
    launches: int


WAYS = {
    "forward": Way((FORWARD,), 3, 2),
    "backward, architecture step": Way((INPUT,), 5, 2),
    "backward, weight step": Way((INPUT, WEIGHT), 7, 3),
}


@dataclass(frozen=True)
class Launched:
    """One kernel on ``channels`` to as many, ``size`` pixels a side; bytes and seconds are of all blocks together."""

    channels: int
    size: int
    batch: int
    dtype: torch.dtype
    launch: shim.Launch
    work: tuple[Work, ...]

    @property
    def positions(self) -> int:
        """Of the tiles, with the borders."""
        positions = self.batch * (self.size + 1) ** 2
        return -(-positions // self.tile) * self.tile

    @property
    def is_to_weight(self) -> bool:
        return self.launch.kernel == WEIGHT

    @property
    def tile(self) -> int:
        """Positions of one; to the weight as many as rows of shared memory allow (conv3x3.cu)."""
        if not self.is_to_weight:
            return self.launch.block
        row = 24 * self.dtype.itemsize
        return 256 if self.launch.shared >= row * (512 + 2 * (self.size + 2)) else 128

    @property
    def slices(self) -> int:
        return self.launch.grid[1]

    @property
    def loaded(self) -> int:
        """From the second-level cache: tiles with their borders, once for each slice, and weights."""
        tiles, border, element = self.positions // self.tile, 2 * (self.size + 2), self.dtype.itemsize
        if self.is_to_weight:
            return tiles * self.slices * 16 * element * (3 * self.tile + border)
        tensors = 2 if self.launch.kernel == INPUT else 1
        times = tiles if self.channels * element > 64 else min(tiles, self.launch.grid[0])
        weights = times * 9 * self.channels**2 * element
        return tiles * self.slices * (self.tile + border) * self.channels * element * tensors + weights

    @property
    def shared(self) -> int:
        """Bytes that fragments are read from: 512 for 16 x 32 bytes."""
        element = self.dtype.itemsize
        if self.is_to_weight:  # 2 left and 9 right ones for 64 bytes of positions, by each of two warps
            return self.positions * element // 64 * self.slices * 2 * 11 * 512
        slice_ = self.channels // self.slices
        steps = self.positions // 32 * 9 * (self.channels * element // 32) * self.slices
        return steps * (2 + slice_ // 16) * 512

    @property
    def flops(self) -> int:
        return 2 * 9 * self.positions * self.channels**2

    @property
    def moved(self) -> int:
        return sum(each.moved for each in self.work)

    @property
    def limit(self) -> str:
        return max(self.limits, key=self.limits.__getitem__)

    @property
    def limits(self) -> dict[str, float]:
        """Seconds, by what may be the limit."""
        moved = self.moved
        peak = H100.tf32 if self.dtype == torch.float32 else H100.bf16
        return {
            "memory": moved / H100.bandwidth / 1e9,
            "second-level cache": (self.loaded + moved / 2) / LEVEL_2,
            "shared memory": self.shared / SHARED,
            "tensor cores": self.flops / peak / 1e12 / MMA,
        }


def launched(channels: int, size: int, batch: int, dtype: torch.dtype) -> dict[str, Launched]:
    """Of a weight step, by the way."""
    cell = OnePathCell(channels, ("nor_conv_3x3",), num_nodes=2).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with own_conv3x3():
        found = shim.launches().launched(lambda: cell(x, Path.from_ops([0])).sum().backward())
    work = {launch.kernel: (launch.work,) for launch in found if launch.kernel.startswith("conv3x3")}
    if "conv3x3_sum_kernel" in work:
        work[WEIGHT] += work["conv3x3_sum_kernel"]
    by_kernel = {launch.kernel: launch for launch in found}
    return {
        kernel: Launched(channels, size, batch, dtype, by_kernel[kernel], work[kernel])
        for kernel in (FORWARD, INPUT, WEIGHT)
    }


def sheet() -> Sheet:
    beside = ("library: launches", "MB", "own: launches", "MB", "saved")
    own = ("us of memory", "us of the limits", "part of the bandwidth", "what else", "us with launches")
    table = Sheet("One convolution on an H100", ("C, image", "type", "batch", "way", *beside, *own), 4)
    for (channels, size), (name, dtype), batch in product(SIZES, DTYPES.items(), BATCHES):
        kernels = launched(channels, size, batch, dtype)
        tensor, weight = (count * dtype.itemsize / 1e6 for count in (batch * size**2 * channels, 9 * channels**2))
        for title, way in WAYS.items():
            found = [kernels[kernel] for kernel in way.kernels]
            library, mine = way.tensors * tensor + weight, sum(each.moved for each in found) / 1e6
            seconds = sum(each.limits[each.limit] for each in found)
            memory, count = sum(each.limits["memory"] for each in found), sum(len(each.work) for each in found)
            limits = dict.fromkeys(each.limit for each in found if each.limit != "memory")
            what = f"{channels}, {size}x{size}", "TF32" if dtype == torch.float32 else name, str(batch), title
            launches = (
                str(way.launches),
                f"{library:.1f}",
                str(count),
                f"{mine:.1f}",
                f"{100 * (1 - mine / library):.0f} %",
            )
            times = f"{1e6 * memory:.1f}", f"{1e6 * seconds:.1f}", f"{100 * memory / seconds:.0f} %", ", ".join(limits)
            table.rows.append([*what, *launches, *times, f"{1e6 * (seconds + count * LAUNCH):.1f}"])
    return table


HOW = f"""A prediction, not a measurement. Library: cuDNN's convolutions as one launch each, with the passes over memory that our
kernels have in them: the batch statistics of z, and batch norm's gradient. MB: what is read and written, each tensor once; own with
the sums that blocks leave, of the weight's gradient many, so that all of the GPU works. Limits: of each kernel the longest of four
times, each at full speed: memory at {H100.bandwidth:g} GB/s; the second-level cache at {LEVEL_2 / 1e12:g} TB/s, from which
every tile is loaded with its borders, and again for every slice of channels; shared memory at 128 bytes a cycle and SM, from which
fragments are read; tensor cores at {100 * MMA:g} % of the published peak, which mma instructions reach on Hopper, with the
positions between the images that are multiplied for nothing. Part of the bandwidth: the time of memory over that of the limits, at
most; what else: the limits other than memory. Latencies are not in it, of which a kernel of a few microseconds consists for the
most part. The last column adds {LAUNCH * 1e6:g} us for each launch. At batch 64 an activation fits in the second-level cache."""


@dataclass
class Settings:
    out: FilePath = RESULTS
    """Folder of the table."""


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    page = Page()
    page.show(sheet())
    page.write(settings.out / "cuda-conv3x3.md", HOW)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
