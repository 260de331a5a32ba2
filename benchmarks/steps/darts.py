"""Steps of a DARTS supernet on one path: this package, the same path in plain PyTorch, and the step of all operations of
first-order DARTS. All have the same weights and the same batch, in channels_last; they are timed interleaved in one process.

    python -m benchmarks.steps.darts

Writes darts.md to --out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import cross_entropy

from advnas.networks.darts import DartsNetwork
from advnas.report.console import Rounds
from advnas.spaces.darts import DARTS
from advnas_ext import Path
from benchmarks.sheet import RESULTS, Page, Sheet, count, machine
from benchmarks.steps.measure import KEY, interleave, times
from benchmarks.steps.peak import in_own_process
from benchmarks.steps.sides import OURS, PLAIN, STEPS, Batch, NetworkSide, Ours, Outcome

MODULE = "benchmarks.steps.darts"  # also where it is run as a script
ALL = "DARTS, all operations"


@dataclass
class Settings:
    channels: int = 16
    cells: int = 2
    """Normal cells a stage; two reduction cells come besides."""
    batch_size: int = 64
    image_size: int = 32
    paths: int = 10
    """Random paths."""
    turns: int = 3
    threads: int = 2
    out: FilePath = RESULTS
    """Folder of the results."""


class Plain(NetworkSide):
    """The same path in plain PyTorch. A step of the architecture asks for the gates' gradients alone."""

    def __init__(self, network: DartsNetwork, batch: Batch) -> None:
        self.network = copy.deepcopy(network).to(memory_format=torch.channels_last)
        self.batch = batch

    def path(self, ops: Tensor, to_gates: bool) -> Path:
        return Path.from_ops(ops, requires_grad=to_gates, dtype=self.batch.images.dtype)

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        path = self.path(ops, to_gates)
        loss = cross_entropy(self.network.plain(self.batch.images, path), self.batch.labels)  # type: ignore[operator]
        loss.backward(inputs=[path.gates] if to_gates else None)
        self.clear()
        return Outcome(loss.detach(), path.gates.grad)


class AllOperations(Plain):
    """Every operation of every edge with a weight, whatever the path."""

    def path(self, ops: Tensor, to_gates: bool) -> Path:
        places = torch.arange(len(DARTS.ops)).repeat(len(ops), 1)
        weights = torch.full(places.shape, 1 / len(DARTS.ops), dtype=self.batch.images.dtype)
        return Path(places, weights.requires_grad_(to_gates))


SIDES = {OURS: Ours, PLAIN: Plain, ALL: AllOperations}


def made(settings: Settings) -> tuple[DartsNetwork, Batch]:
    torch.manual_seed(0)
    network = DartsNetwork(settings.channels, settings.cells)
    images = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size)
    return network, Batch(
        images.contiguous(memory_format=torch.channels_last), torch.randint(10, (settings.batch_size,))
    )


def drawn(paths: int) -> Tensor:
    return torch.randint(len(DARTS.ops), (paths, DARTS.num_edges), generator=torch.Generator().manual_seed(0))


def require_equal(network: DartsNetwork, batch: Batch, ops: Tensor) -> None:
    """In float64, where rounding changes no ReLU."""
    exact, few = copy.deepcopy(network).double(), batch.first(8).double()
    ours, plain = (side(exact, few).step(ops, True) for side in (Ours, Plain))
    assert ours.gate_grads is not None
    assert plain.gate_grads is not None
    torch.testing.assert_close(ours.loss, plain.loss)
    torch.testing.assert_close(ours.gate_grads, plain.gate_grads.flatten())


def take_steps(side: str | None, to_gates: bool, settings: dict[str, Any]) -> None:
    """Two steps, to see what memory they take; None: only the imports."""
    if side is None:
        return
    given = Settings(**settings)
    one = SIDES[side](*made(given))
    for ops in drawn(2):
        one.seconds(ops, to_gates)


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    page, paths = Page(), drawn(settings.paths)
    page.console.print(f"{machine(settings.threads)}\n{KEY}")
    network, batch = made(settings)
    require_equal(network, batch, paths[0])
    with Rounds("steps", len(paths) + 1, page.console) as rounds:
        found = interleave(
            {name: side(network, batch) for name, side in SIDES.items()}, paths, rounds.advance, settings.turns
        )
    sizes = f"C = {settings.channels}, {3 * settings.cells + 2} cells, batch {settings.batch_size}"
    page.show(times(found, f"{sizes}, {count(len(paths), 'random path')}, median of {settings.turns} turns each"))
    given = {name: value for name, value in vars(settings).items() if name != "out"}
    peaks = Sheet("peak memory of a process that takes two steps, MiB", ("side", *STEPS.values()))
    for side in (None, *SIDES):
        found_mib = [
            in_own_process(MODULE, "take_steps", settings.threads, side=side, to_gates=to_gates, settings=given)
            for to_gates in STEPS
        ]
        peaks.rows.append([side or "imports", *(f"{mib:.0f}" for mib in found_mib)])
    page.show(peaks)
    page.write(settings.out / "darts.md", f"{machine(settings.threads)}. {KEY.capitalize()}.")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
