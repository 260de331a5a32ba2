"""The sides that are compared: steps of a NAS-Bench-201 supernet on one batch and equal weights, and its bare convolutions.

A weight step is a forward and a backward pass to the weights, an architecture step one to the gates. Every side runs both as its
users write them; optimizers are not part of a step.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from clocks import Clock, HostClock
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, one_hot
from work import Case, Convolution, convolutions

from advnas.networks.nasbench201 import Network
from advnas.spaces.nasbench201 import NASBENCH201
from advnas_ext import Path

EDGES, NUM_NODES, OPS = NASBENCH201.edges, NASBENCH201.num_nodes, NASBENCH201.ops
OURS = "advnas_ext"
PLAIN = "plain PyTorch"
PLAIN_TO_INPUTS = "plain, inputs=[gates]"
XAUTODL = "xautodl"
XAUTODL_CHANNELS_LAST = "xautodl, channels_last"
BARE = "bare oneDNN"


@dataclass
class Batch:
    images: Tensor
    labels: Tensor

    def first(self, images: int) -> Batch:
        return Batch(self.images[:images], self.labels[:images])

    def double(self) -> Batch:
        return self.to(torch.double)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Batch:
        return Batch(self.images.to(device, dtype), self.labels.to(device))


@dataclass
class Outcome:
    """What a step gives: its loss, and after an architecture step the gradients of the gates [6] where the side has such."""

    loss: Tensor
    gate_grads: Tensor | None = None


class Side(ABC):
    """Something that can be timed on a path. ``weight_step``: whether it has one of its own."""

    weight_step = True

    @abstractmethod
    def seconds(self, ops: Tensor, to_gates: bool) -> float:
        """The time of one step on the path ``ops``, int64 [6]."""


class NetworkSide(Side):
    clock: Clock = HostClock()
    network: nn.Module

    @functools.cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def clear(self) -> None:
        """Drop the weights' gradients, from a list as an optimizer has it: ``Module.zero_grad`` takes milliseconds to find them."""
        for parameter in self._parameters:
            parameter.grad = None

    @abstractmethod
    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        """A forward and a backward pass; afterwards no gradient is kept."""

    def seconds(self, ops: Tensor, to_gates: bool) -> float:
        return self.clock.seconds(lambda: self.step(ops, to_gates))


class Ours(NetworkSide):
    def __init__(self, network: Network, batch: Batch) -> None:
        self.network = network
        self.batch = batch

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        dtype = torch.promote_types(self.batch.images.dtype, torch.float32)
        path = Path.from_ops(ops, requires_grad=to_gates, dtype=dtype)
        loss = cross_entropy(self.network(self.batch.images, path), self.batch.labels)
        if to_gates:
            loss.backward(inputs=[path.gates])
            return Outcome(loss.detach(), _flat(path.gates.grad))
        loss.backward()
        self.clear()
        return Outcome(loss.detach())


def _flat(gates: Tensor | None) -> Tensor | None:
    return None if gates is None else gates.flatten()


class PlainZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class PlainReLUConvBN(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, affine: bool = False) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not affine)
        norm = nn.BatchNorm2d(outputs, affine=affine, track_running_stats=affine)
        self.op = nn.Sequential(nn.ReLU(), convolution, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


PLAIN_OPS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: PlainZero(),
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: PlainReLUConvBN(channels, channels, 1),
    "nor_conv_3x3": lambda channels: PlainReLUConvBN(channels, channels, 3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


class PlainCell(nn.Module):
    """Runs the picked operation of each edge and multiplies its output by the edge's gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {f"{target}<-{source}": nn.ModuleList(PLAIN_OPS[op](channels) for op in OPS) for target, source in EDGES}
        )

    def forward(self, x: Tensor, ops: list[int], gates: Tensor) -> Tensor:
        nodes = [x]
        for target in range(1, NUM_NODES):
            into = [(edge, source) for edge, (node, source) in enumerate(EDGES) if node == target]
            terms = [
                self.edges[f"{target}<-{source}"][ops[edge]](nodes[source]) * gates[edge]  # type: ignore[index]
                for edge, source in into
            ]
            nodes.append(functools.reduce(torch.add, terms))
        return nodes[-1]


class PlainReduction(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = PlainReLUConvBN(channels, 2 * channels, 3, stride=2, affine=True)
        self.conv_b = PlainReLUConvBN(2 * channels, 2 * channels, 3, affine=True)
        pool = nn.AvgPool2d(2, ceil_mode=True)
        self.downsample = nn.Sequential(pool, nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class PlainNetwork(nn.Module):
    """The supernet as one writes it in plain PyTorch, independent of this package. Its ``state_dict`` has the same keys."""

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        stages: list[nn.Module] = [PlainCell(channels) for _ in range(cells)]
        for width in (2 * channels, 4 * channels):
            stages += [PlainReduction(width // 2), *(PlainCell(width) for _ in range(cells))]
        self.cells = nn.ModuleList(stages)
        self.lastact = nn.Sequential(nn.BatchNorm2d(4 * channels), nn.ReLU())
        self.classifier = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor, ops: list[int], gates: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, ops, gates) if isinstance(cell, PlainCell) else cell(x)
        return self.classifier(self.lastact(x).mean((2, 3)))


class Plain(NetworkSide):
    """Plain PyTorch in channels_last. An architecture step is ``loss.backward()``, as it is commonly written."""

    def __init__(self, network: Network, batch: Batch, case: Case) -> None:
        self.network = PlainNetwork(case.channels, case.cells).to(batch.images)
        self.network.load_state_dict(network.state_dict())
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch = batch

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        images = self.batch.images
        gates = torch.ones(len(EDGES), dtype=images.dtype, device=images.device, requires_grad=to_gates)
        loss = cross_entropy(self.network(images, ops.tolist(), gates), self.batch.labels)
        self._backward(loss, gates)
        self.clear()
        return Outcome(loss.detach(), gates.grad)

    def _backward(self, loss: Tensor, gates: Tensor) -> None:
        loss.backward()


class PlainToInputs(Plain):
    """The same with an architecture step that asks for the gradients of the gates alone."""

    weight_step = False

    def _backward(self, loss: Tensor, gates: Tensor) -> None:
        loss.backward(inputs=[gates])


class Xautodl(NetworkSide):
    """xautodl's GDAS supernet as shipped; its search computes all gradients in either step.

    GDAS draws its path by the Gumbel trick from ``arch_parameters``. Here the wanted operations have 0 there and all others a value
    that no Gumbel noise outweighs: nothing of its code is changed, and its gates are exactly 1.
    """

    OUT_OF_REACH = -1e4

    def __init__(self, network: Network, batch: Batch, case: Case, layout: torch.memory_format) -> None:
        from xautodl.models.cell_operations import NAS_BENCH_201  # type: ignore[import-untyped]
        from xautodl.models.cell_searchs import TinyNetworkGDAS  # type: ignore[import-untyped]

        assert tuple(NAS_BENCH_201) == OPS
        self.network = TinyNetworkGDAS(case.channels, case.cells, NUM_NODES, 10, NAS_BENCH_201, False, False)
        state = {**network.state_dict(), "arch_parameters": torch.zeros(len(EDGES), len(OPS))}
        self.network.load_state_dict(state)
        self.network.to(batch.images).to(memory_format=layout)
        self.batch = Batch(batch.images.contiguous(memory_format=layout), batch.labels)

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        with torch.no_grad():
            self.network.arch_parameters.copy_(self.OUT_OF_REACH * (1 - one_hot(ops, len(OPS))))
        _, logits = self.network(self.batch.images)
        loss = cross_entropy(logits, self.batch.labels)
        loss.backward()
        self.clear()
        return Outcome(loss.detach())


class Bare(Side):
    """The sum of a path's convolutions alone, as oneDNN runs them for PyTorch in channels_last: forward and the wanted gradients.

    Every distinct convolution runs once and counts as often as the path has it. Inputs, weights and gradients of outputs exist
    before the clock starts.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._tensors: dict[Convolution, tuple[Tensor, Tensor, Tensor]] = {}

    def seconds(self, ops: Tensor, to_gates: bool) -> float:
        found = convolutions(ops.tolist(), self.case)
        return sum(count * self._seconds(convolution, to_gates) for convolution, count in found.items())

    def _seconds(self, convolution: Convolution, to_gates: bool) -> float:
        if convolution not in self._tensors:
            self._tensors[convolution] = self._make(convolution)
            self._run(convolution, to_gates)  # oneDNN compiles a kernel at its first use
        begin = time.perf_counter()
        self._run(convolution, to_gates)
        return time.perf_counter() - begin

    def _run(self, convolution: Convolution, to_gates: bool) -> None:
        x, weight, dy = self._tensors[convolution]
        stride, padding = [convolution.stride] * 2, [convolution.kernel // 2] * 2
        to_input, to_weight = convolution.wants(to_gates)
        with torch.no_grad():
            conv2d(x, weight, None, stride, padding)
            if to_input or to_weight:
                torch.ops.aten.convolution_backward(
                    dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, (to_input, to_weight, False)
                )

    def _make(self, convolution: Convolution) -> tuple[Tensor, Tensor, Tensor]:
        batch, size, kernel = self.case.batch_size, convolution.size, convolution.kernel
        input_size = size * convolution.stride
        shapes = (
            (batch, convolution.inputs, input_size, input_size),
            (convolution.outputs, convolution.inputs, kernel, kernel),
            (batch, convolution.outputs, size, size),
        )
        x, weight, dy = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for shape in shapes)
        return x, weight, dy


def make_network(case: Case) -> tuple[Network, Batch]:
    """Random weights and a random batch, the same at each call."""
    torch.manual_seed(case.seed)
    network = Network(channels=case.channels, cells=case.cells)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
    labels = torch.randint(10, (case.batch_size,))
    return network, Batch(images.contiguous(memory_format=torch.channels_last), labels)


def make_paths(count: int, seed: int) -> Tensor:
    """Random operations, int64 [count, 6]."""
    return torch.randint(len(OPS), (count, len(EDGES)), generator=torch.Generator().manual_seed(seed))


def make_side(name: str, network: Network, batch: Batch, case: Case) -> Side:
    makers: dict[str, Callable[[], Side]] = {
        OURS: lambda: Ours(network, batch),
        PLAIN: lambda: Plain(network, batch, case),
        PLAIN_TO_INPUTS: lambda: PlainToInputs(network, batch, case),
        XAUTODL: lambda: Xautodl(network, batch, case, torch.contiguous_format),
        XAUTODL_CHANNELS_LAST: lambda: Xautodl(network, batch, case, torch.channels_last),
        BARE: lambda: Bare(case),
    }
    return makers[name]()


def has_xautodl() -> bool:
    return importlib.util.find_spec("xautodl") is not None
