"""Micro-benchmarks of every fused piece beside the plain PyTorch equivalent: `make bench`.

Both sides have the same weights and the same input (images in channels_last), and must agree before the clock starts. A group is a
piece, what is run of it, and a shape; a weight step is a forward and a backward pass to the input and the weights, an
architecture step one to the input and the gates. `pytest-benchmark --storage=.benchmarks compare` compares the saved runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advnas_ext
from advnas.networks.nasbench201 import Network, Reduction
from advnas.spaces.nasbench201 import NASBENCH201
from advnas_ext import DartsRecurrentCell, OnePathCell, Path, reference
from advnas_ext.recurrent import ACTIVATIONS
from benchmarks.steps.plain import PLAIN_OPS, PlainNetwork, PlainReduction

BATCH = 64
SIZES = {16: 32, 32: 16, 64: 8}  # channels: height and width
LENGTH = 35  # steps of a sequence, as on Penn Treebank
FORWARD, WEIGHT, ARCHITECTURE = "forward", "weight step", "architecture step"
ROUNDS = 20


@dataclass
class Piece:
    """The two sides of a piece.

    Attributes:
        modules: what holds the weights of ours and of the plain side.
        ours, plain: functions of an input and of gates.
        gates: [edges, picks], or None where the piece has none.
        first: whether its input is the images, which need no gradient.
        sequence: whether its input is a sequence, [LENGTH, batch, channels], and not [batch, channels, size, size].
    """

    modules: tuple[nn.Module, nn.Module]
    ours: Callable[[Tensor, Any], Tensor]
    plain: Callable[[Tensor, Any], Tensor]
    gates: Tensor | None = None
    first: bool = False
    sequence: bool = False

    def shape(self, batch: int, channels: int) -> tuple[int, ...]:
        if self.sequence:
            return LENGTH, batch, channels
        return batch, 3 if self.first else channels, SIZES[channels], SIZES[channels]

    def double(self) -> Piece:
        for module in self.modules:
            module.double()
        self.gates = None if self.gates is None else self.gates.double()
        return self

    def runs(
        self, run: str, batch: int, channels: int, dtype: torch.dtype
    ) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        """For each side a function that runs it and returns what is compared."""
        x = torch.randn(self.shape(batch, channels), dtype=dtype)
        if not self.sequence:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_(not self.first)
        gates = None if self.gates is None else self.gates.clone().requires_grad_(run == ARCHITECTURE)
        dy = torch.randn_like(self.plain(x, gates).detach())
        sides = zip(("advnas_ext", "plain"), (self.ours, self.plain), self.modules, strict=True)
        return {
            name: _runner(run, functools.partial(call, x, gates), x, gates, module, dy) for name, call, module in sides
        }


def _runner(
    run: str, call: Callable[[], Tensor], x: Tensor, gates: Tensor | None, module: nn.Module, dy: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    wanted = [tensor for tensor in (x, gates) if tensor is not None and tensor.requires_grad]
    if run == WEIGHT:
        wanted += list(weights(module))

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(),)

    return forward if run == FORWARD else lambda: torch.autograd.grad(call(), wanted, dy)


def weights(module: nn.Module) -> Iterator[Tensor]:
    """All parameters but the biases that batch norm cancels: their gradient is 0, or what rounding leaves of it."""
    for part in module.modules():
        own = part.named_parameters(recurse=False)
        yield from (weight for name, weight in own if not (isinstance(part, nn.Conv2d) and name == "bias"))


def gate(channels: int) -> Piece:
    nothing = nn.Identity()
    return Piece(
        (nothing, nothing),
        lambda x, gates: advnas_ext.gate(x, gates),
        lambda x, gates: x * gates,
        torch.full((1, 1), 0.7),
    )


def edge(*ops: str, channels: int) -> Piece:
    """A cell of one edge, on which all of ``ops`` are picked."""
    cell = OnePathCell(channels, ops, num_nodes=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = nn.ModuleList(PLAIN_OPS[op](channels) for op in ops)
    plain.load_state_dict(cell.edges["1<-0"].state_dict())
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    picked = torch.arange(len(ops))[None]

    def plain_sum(x: Tensor, gates: Tensor) -> Tensor:
        return functools.reduce(torch.add, [op(x) * gate for op, gate in zip(plain, gates[0], strict=True)])

    return Piece((cell, plain), lambda x, gates: cell(x, Path(picked, gates)), plain_sum, torch.rand(1, len(ops)) + 0.5)


def reduction(channels: int) -> Piece:
    ours, plain = Reduction(channels), PlainReduction(channels)
    plain.load_state_dict(ours.state_dict())
    for module in (ours, plain):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Piece((ours, plain), lambda x, _: ours(x), lambda x, _: plain(x))


def networks(channels: int) -> tuple[Network, PlainNetwork]:
    ours, plain = Network(channels, cells=0), PlainNetwork(channels, cells=0)
    plain.load_state_dict(ours.state_dict())
    return ours, plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def stem(channels: int) -> Piece:
    ours, plain = networks(channels)
    return Piece((ours.stem, plain.stem), lambda x, _: ours.stem(x), lambda x, _: plain.stem(x), first=True)


def head(channels: int) -> Piece:
    """What follows the last cell: batch norm, ReLU, the mean over the pixels, the classifier."""
    ours, plain = networks(channels // 4)
    return Piece(
        (nn.ModuleList([ours.lastact, ours.classifier]), nn.ModuleList([plain.lastact, plain.classifier])),
        lambda x, _: ours.classifier(ours.lastact(x)),
        lambda x, _: plain.classifier(plain.lastact(x).mean((2, 3))),
    )


def recurrent(units: int) -> Piece:
    """A cell of three nodes on a path with every activation."""
    cell = DartsRecurrentCell(units, num_nodes=3)
    ops = torch.tensor([[1], [3], [2], [0], [1], [3]])

    def plain(x: Tensor, gates: Tensor) -> Tensor:
        functions = [ACTIVATIONS[op].function for op in cell.ops]
        h = x.new_zeros(x.shape[1:])
        return reference.darts_recurrent_cell(x, Path(ops, gates), h, list(cell.weights), functions)[0]

    return Piece(
        (cell, cell), lambda x, gates: cell(x, Path(ops, gates))[0], plain, torch.rand(6, 1) + 0.5, sequence=True
    )


Maker = Callable[[int], Piece]
CELLS: dict[str, Maker] = {
    op: functools.partial(lambda op, channels: edge(op, channels=channels), op) for op in NASBENCH201.ops[1:]
}
CELLS["dense sum"] = lambda channels: edge(*NASBENCH201.ops, channels=channels)

# name: maker, channels, runs
PIECES: dict[str, tuple[Maker, tuple[int, ...], tuple[str, ...]]] = {
    "gate": (gate, tuple(SIZES), (FORWARD, ARCHITECTURE)),
    **{name: (maker, tuple(SIZES), (FORWARD, WEIGHT, ARCHITECTURE)) for name, maker in CELLS.items()},
    "reduction": (reduction, (16, 32), (FORWARD, WEIGHT, ARCHITECTURE)),
    "stem": (stem, (16,), (FORWARD, WEIGHT)),
    "head": (head, (64,), (FORWARD, WEIGHT, ARCHITECTURE)),
    "recurrent": (recurrent, (64, 300), (FORWARD, WEIGHT, ARCHITECTURE)),
}


def cases() -> Iterator[Any]:
    for name, (maker, widths, runs) in PIECES.items():
        for channels in widths:
            for run in runs:
                shape = [LENGTH, BATCH, channels] if maker is recurrent else [BATCH, channels, *2 * [SIZES[channels]]]
                group = f"{name}, {run}, {shape}"
                mark = pytest.mark.benchmark(group=group)
                yield pytest.param(maker, channels, run, marks=mark, id=f"{name}-{run}-{channels}".replace(" ", "_"))


def check(maker: Maker, channels: int, run: str) -> None:
    """The sides agree: in float64, where no ReLU flips by rounding, and the outputs in float32."""
    _compare(maker(channels).double().runs(run, 4, channels, torch.float64), 1e-9)
    _compare(maker(channels).runs(FORWARD, 4, channels, torch.float32), 1e-4)


def _compare(runs: dict[str, Callable[[], tuple[Tensor, ...]]], tolerance: float) -> None:
    for actual, expected in zip(runs["advnas_ext"](), runs["plain"](), strict=True):
        scale = max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("maker, channels, run", list(cases()))
@pytest.mark.parametrize("side", ["advnas_ext", "plain"])
def test_piece(benchmark: Any, maker: Maker, channels: int, run: str, side: str) -> None:
    torch.manual_seed(0)
    check(maker, channels, run)
    timed = maker(channels).runs(run, BATCH, channels, torch.float32)[side]
    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=3)
