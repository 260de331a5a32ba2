"""Every CUDA kernel once, at the smallest sizes with an uneven border: what compute-sanitizer runs. Results are not looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import tyro
from torch.nn.functional import cross_entropy

from advnas.networks.nasbench201 import Network
from advnas_ext import DartsRecurrentCell, OnePathCell, OnePathRecurrentCell, Path, gate
from benchmarks.cuda import shim
from benchmarks.cuda.own import own_conv3x3

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((2, 16, 5, 7), (3, 3, 4, 3))  # with packs of channels, and without
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
PATHS = ([3, 2, 1, 4, 5, 2], [5, 4, 3, 1, 2, 3])


def cells(device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for affine in (False, True):
            cell = OnePathCell(shape[1], OPS, affine=affine, track_running_stats=affine).to(device, dtype)
            for ops in PATHS:
                for layout in (torch.contiguous_format, torch.channels_last):
                    x = torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=layout)
                    cell.train()(x.requires_grad_(), Path.from_ops(ops).with_offsets()).sum().backward()
                with torch.no_grad():
                    cell.eval()(x, Path.from_ops(ops))


def own_convolutions(device: str, dtype: torch.dtype) -> None:
    """With channels in one part and slice, and in several."""
    with own_conv3x3():
        for channels in (16, 64):
            cell = OnePathCell(channels, num_nodes=2).to(device, dtype)
            x = torch.randn(3, channels, 5, 7, dtype=dtype, device=device, requires_grad=True)
            cell(x, Path.from_ops([3])).sum().backward()


def networks(device: str, dtype: torch.dtype) -> None:
    network = Network(8, 1).to(device, dtype)
    x, labels = torch.randn(4, 3, 9, 9, dtype=dtype, device=device), torch.arange(4, device=device)
    cross_entropy(network(x, Path.from_ops([3, 2, 1, 4, 2, 3])), labels).backward()


def recurrent(device: str, dtype: torch.dtype) -> None:
    for kind in (OnePathRecurrentCell, DartsRecurrentCell):
        for units in (16, 5):
            cell = kind(units, 3).to(device, dtype)
            x = torch.randn(2, 3, units, dtype=dtype, device=device, requires_grad=True)
            cell(x, Path.from_ops([1, 2, 3, 0, 4, 1]).with_offsets())[0].sum().backward()


def gates(device: str, dtype: torch.dtype) -> None:
    for size in (1, 7, 1031):
        x = torch.randn(size, dtype=dtype, device=device, requires_grad=True)
        for baseline in (None, torch.ones_like(x)):
            gate(x, torch.tensor(1.5, requires_grad=True), baseline).sum().backward()


@dataclass
class Settings:
    dry: bool = False
    """On the host, our kernels on the shim."""


@contextlib.contextmanager
def device_of(dry: bool) -> Iterator[str]:
    """Where to run; on the host what runs natively goes to the shim."""
    with shim.launches().counted() if dry else contextlib.nullcontext():
        yield "cpu" if dry else "cuda"


def main(settings: Settings) -> None:
    torch.manual_seed(0)
    with device_of(settings.dry) as device:
        for dtype in DTYPES:
            for run in (cells, own_convolutions, networks, recurrent, gates):
                run(device, dtype)
                print(f"{run.__name__}, {dtype}", flush=True)
        if not settings.dry:
            torch.cuda.synchronize()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
