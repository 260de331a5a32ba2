"""The sides that are compared: steps of a NAS-Bench-201 supernet on one batch and equal weights, and its bare convolutions.

A weight step is a forward and a backward pass to the weights, an architecture step one to the gates. Every side runs both as its
users write them; optimizers are not part of a step.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, one_hot

from advnas.networks.nasbench201 import Network
from advnas_ext import Path
from benchmarks.steps.peak import in_own_process
from benchmarks.steps.plain import PlainNetwork
from benchmarks.steps.work import EDGES, NUM_NODES, OPS, Case, Convolution, convolutions

STEPS = {False: "weight", True: "architecture"}
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


Clock = Callable[[Callable[[], object]], float]  # gives the seconds of one call


def host_clock(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


class Side(ABC):
    """Something that can be timed on a path. ``weight_step``: whether it has one of its own."""

    weight_step = True

    @abstractmethod
    def seconds(self, ops: Tensor, to_gates: bool) -> float:
        """The time of one step on the path ``ops``, int64 [6]."""


class NetworkSide(Side):
    clock: Clock = staticmethod(host_clock)
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
        return self.clock(lambda: self.step(ops, to_gates))


class Ours(NetworkSide):
    def __init__(self, network: nn.Module, batch: Batch) -> None:
        self.network = network
        self.batch = batch

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        dtype = torch.promote_types(self.batch.images.dtype, torch.float32)
        path = Path.from_ops(ops, requires_grad=to_gates, dtype=dtype)
        loss = cross_entropy(self.network(self.batch.images, path), self.batch.labels)
        if to_gates:
            loss.backward(inputs=[path.gates])
            return Outcome(loss.detach(), path.gates.grad.flatten())
        loss.backward()
        self.clear()
        return Outcome(loss.detach())


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
        self._tensors: dict[Convolution, tuple[Tensor, ...]] = {}

    def seconds(self, ops: Tensor, to_gates: bool) -> float:
        found = convolutions(ops.tolist(), self.case)
        return sum(count * self._seconds(convolution, to_gates) for convolution, count in found.items())

    def _seconds(self, convolution: Convolution, to_gates: bool) -> float:
        if convolution not in self._tensors:
            self._tensors[convolution] = self._make(convolution)
            self._run(convolution, to_gates)  # oneDNN compiles a kernel at its first use
        return host_clock(lambda: self._run(convolution, to_gates))

    def _run(self, convolution: Convolution, to_gates: bool) -> None:
        x, weight, dy = self._tensors[convolution]
        stride, padding = [convolution.stride] * 2, [convolution.kernel // 2] * 2
        wanted = convolution.wants(to_gates)
        with torch.no_grad():
            conv2d(x, weight, None, stride, padding)
            if any(wanted):
                torch.ops.aten.convolution_backward(
                    dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, (*wanted, False)
                )

    def _make(self, convolution: Convolution) -> tuple[Tensor, ...]:
        inputs, outputs, size, batch = convolution.inputs, convolution.outputs, convolution.size, self.case.batch_size
        shapes = (
            (batch, inputs, *2 * [size * convolution.stride]),
            (outputs, inputs, *2 * [convolution.kernel]),
            (batch, outputs, size, size),
        )
        return tuple(torch.randn(shape).contiguous(memory_format=torch.channels_last) for shape in shapes)


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


MAKERS: dict[str, Callable[[Network, Batch, Case], Side]] = {
    OURS: lambda network, batch, case: Ours(network, batch),
    PLAIN: Plain,
    PLAIN_TO_INPUTS: PlainToInputs,
    XAUTODL: lambda *made: Xautodl(*made, torch.contiguous_format),
    XAUTODL_CHANNELS_LAST: lambda *made: Xautodl(*made, torch.channels_last),
    BARE: lambda network, batch, case: Bare(case),
}


def make_sides(names: Iterable[str], network: Network, batch: Batch, case: Case) -> dict[str, Any]:
    return {name: MAKERS[name](network, batch, case) for name in names}


def take_steps(side: str, to_gates: bool, case: dict[str, int], paths: list[list[int]]) -> None:
    """One on each path, to see what memory they take."""
    at = Case(**case)
    made = make_sides([side], *make_network(at), at)[side]
    for ops in paths:
        made.seconds(torch.tensor(ops), to_gates)


def peak_of(side: str | None, to_gates: bool, case: Case, paths: Tensor, threads: int) -> float:
    """MiB of a process that takes a step of ``side`` on each path; None: that only imports."""
    if side is None:
        return in_own_process(__name__, None, threads)
    steps = {"side": side, "to_gates": to_gates, "case": asdict(case), "paths": paths.tolist()}
    return in_own_process(__name__, "take_steps", threads, **steps)


def has_xautodl() -> bool:
    return importlib.util.find_spec("xautodl") is not None
