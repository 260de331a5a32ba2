"""Time of a weight step and of an architecture step beside plain PyTorch one-path code, interleaved in one process.

The NAS-Bench-201 supernet; both sides have the same weights, the same batch and the same random paths, in channels_last. A weight
step is forward and backward to the weights; an architecture step is forward and backward to the gates alone. First both sides are
compared in float64, where no ReLU flips by rounding.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from advnas.spaces.nasbench201 import Network
from advnas_ext import OnePathCell, Path, reference


class PlainCell(OnePathCell):
    """The same cell, run by the plain PyTorch specification."""

    def forward(self, x: Tensor, path: Path) -> Tensor:
        return reference.cell(x, path, self._candidates(), self.num_nodes)


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    """Cells a stage."""
    batch_size: int = 64
    image_size: int = 32
    paths: int = 40
    threads: int = 2
    seed: int = 0


def plain_twin(network: Network) -> Network:
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if isinstance(module, OnePathCell):
            module.__class__ = PlainCell
    return twin


def step(network: Network, x: Tensor, y: Tensor, ops: Tensor, to_gates: bool) -> tuple[Tensor, Path]:
    path = Path.from_ops(ops, dtype=x.dtype)
    loss = cross_entropy(network(x, path if to_gates else path.detach()), y)
    if to_gates:
        loss.backward(inputs=[path.gates])
    else:
        loss.backward()
        network.zero_grad()
    return loss, path


def check(network: Network, x: Tensor, y: Tensor, ops: Tensor) -> float:
    """The largest difference of loss and gate gradients in float64, relative to the largest entry."""
    twins = [copy.deepcopy(network).double(), plain_twin(network).double()]
    (loss, path), (plain_loss, plain_path) = (step(twin, x[:8].double(), y[:8], ops, True) for twin in twins)
    assert path.gates.grad is not None
    assert plain_path.gates.grad is not None
    error = (path.gates.grad - plain_path.gates.grad).abs().max() / plain_path.gates.grad.abs().max()
    return max(error.item(), abs((loss - plain_loss).item()) / plain_loss.item())


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = Network(channels=settings.channels, cells=settings.cells).to(memory_format=torch.channels_last)
    sides = {"advnas_ext": network, "plain PyTorch": plain_twin(network)}
    size = settings.image_size
    x = torch.randn(settings.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (settings.batch_size,))
    paths = torch.randint(5, (settings.paths, 6))
    error = check(network, x, y, paths[0])
    if error > 1e-9:
        raise SystemExit(f"the two sides differ by {error:.1e} in float64")

    times: dict[tuple[bool, str], list[float]] = {}
    for ops in track([paths[0], *paths], description="timing"):  # the first one warms up
        for to_gates in (False, True):
            for name, side in sides.items():
                begin = time.perf_counter()
                step(side, x, y, ops, to_gates)
                times.setdefault((to_gates, name), []).append(1e3 * (time.perf_counter() - begin))
    table = Table(
        title=f"ms a step: N = {settings.cells}, C = {settings.channels}, batch {settings.batch_size}, {size}x{size}, "
        f"{settings.threads} threads, {settings.paths} random paths; float64 difference {error:.0e}"
    )
    for column in ("step", "side", "median", "min", "max"):
        table.add_column(column, justify="left" if column in ("step", "side") else "right")
    for (to_gates, name), values in times.items():
        values = values[1:]
        numbers = (statistics.median(values), min(values), max(values))
        table.add_row("architecture" if to_gates else "weight", name, *(f"{v:.1f}" for v in numbers))
    console = Console()
    console.print(table)
    for to_gates in (False, True):
        plain, ours = (times[to_gates, name][1:] for name in ("plain PyTorch", "advnas_ext"))
        ratios = [a / b for a, b in zip(plain, ours, strict=True)]
        console.print(
            f"{'architecture' if to_gates else 'weight'} step: plain PyTorch takes {statistics.median(ratios):.2f}x as long "
            f"(median over paths; {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
