"""What somebody with a GPU can make of plain PyTorch's supernet without this package, and both with their host taken away.

- torch.compile and CUDA graphs of each operation. A whole network has 15,625 paths: torch.compile keeps 8 of its variants by
  default and then runs it uncompiled, and a graph holds one path only. An operation has a handful of shapes, and a graph for each
  place.
- Ours with our own 3x3 convolutions in place of the library's, as ADVNAS_CUDA_CONV=own runs it.
- One graph of the whole step, captured anew for each path before the clock starts. Nobody can search like this; it is what a step
  would take if the host launched everything at once, beside which a step's own time says how much of it is the host's.

Here `none` launches nothing, and a weight step multiplies by no gates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advnas.networks.nasbench201 import Network
from advnas_ext import Path
from benchmarks.cuda.machines import Machine
from benchmarks.cuda.own import OURS_OWN, WithOwnConv3x3
from benchmarks.steps.plain import PlainCell, PlainZero
from benchmarks.steps.sides import OURS, PLAIN, Batch, NetworkSide, Ours, Outcome, Plain
from benchmarks.steps.work import EDGES, NUM_NODES, Case

COMPILED = "plain, torch.compile of each operation"
MAX_AUTOTUNE = "the same, max-autotune"
GRAPHED = "plain, a CUDA graph of each operation"
OURS_IN_A_GRAPH = f"{OURS}, the step in one graph"
OURS_OWN_IN_A_GRAPH = f"{OURS_OWN}, the step in one graph"
PLAIN_IN_A_GRAPH = f"{PLAIN}, the step in one graph"
# With CUDA graphs of its own torch.compile would capture every order in which operations follow each other, one for each path.
MODES = {COMPILED: "default", MAX_AUTOTUNE: "max-autotune-no-cudagraphs"}


def gated(operation: nn.Module, x: Tensor, gate: Tensor | None = None) -> Tensor:
    y = operation(x)
    return y if gate is None else y * gate


class Gated(nn.Module):
    """The same as a module, which graphs are captured of."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return gated(self.operation, x, gate)


class PlainToWhatIsWanted(Plain):
    """An architecture step asks for the gradients of the gates alone."""

    def _backward(self, loss: Tensor, gates: Tensor) -> None:
        loss.backward(inputs=[gates] if gates.requires_grad else None)


class ByOperation(PlainToWhatIsWanted):
    """Plain PyTorch in channels_last, each operation run by something else."""

    def run(self, operation: nn.Module, x: Tensor, gate: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        images = self.batch.images
        gates = torch.ones(len(EDGES), dtype=images.dtype, device=images.device, requires_grad=to_gates)
        loss = cross_entropy(self._scores(ops.tolist(), gates), self.batch.labels)
        self._backward(loss, gates)
        self.clear()
        return Outcome(loss.detach(), gates.grad)

    def _scores(self, ops: list[int], gates: Tensor) -> Tensor:
        network, each = self.network, gates.unbind() if gates.requires_grad else [None] * len(EDGES)
        x = self.run(network.stem, self.batch.images)
        for cell in network.cells:
            x = self._cell(cell, x, ops, each) if isinstance(cell, PlainCell) else self.run(cell, x)
        return network.classifier(self.run(network.lastact, x).mean((2, 3)))

    def _cell(self, cell: PlainCell, x: Tensor, ops: list[int], gates: list[Tensor | None]) -> Tensor:
        nodes = [x]
        for target in range(1, NUM_NODES):
            arrivals = []
            for edge, (node, source) in enumerate(EDGES):
                operation = cell.edges[f"{node}<-{source}"][ops[edge]]
                if node == target and not isinstance(operation, PlainZero):
                    arrivals.append(self.run(operation, nodes[source], gates[edge]))
            nodes.append(sum(arrivals[1:], arrivals[0]) if arrivals else torch.zeros_like(x))
        return nodes[-1]


class Compiled(ByOperation):
    """A function for each kind of operation and shape, shared by all cells: a call checks the guards of one."""

    def __init__(self, network: Network, batch: Batch, case: Case, machine: Machine, mode: str) -> None:
        super().__init__(network, batch, case)
        self.machine, self.mode = machine, mode
        self.functions: dict[tuple[nn.Module, bool], Callable] = {}

    def run(self, operation: nn.Module, x: Tensor, gate: Tensor | None = None) -> Tensor:
        place = operation, gate is None
        if place not in self.functions:
            kind = (type(operation), *(parameter.shape for parameter in operation.parameters()))
            self.functions[place] = compiled(self.machine, self.mode, kind, x.shape, x.dtype, gate is None)
        return self.functions[place](operation, x, gate)


@functools.cache
def compiled(machine: Machine, mode: str, *kind: object) -> Callable:
    """``gated``, with code of its own: torch.compile keeps what it made by code, and searches all that it made of one."""
    return machine.compiled(FunctionType(gated.__code__.replace(), globals(), "gated", gated.__defaults__), mode)


class Graphed(ByOperation):
    """A graph for every place of an operation, and for each kind of step, captured where it first runs."""

    def __init__(self, network: Network, batch: Batch, case: Case, machine: Machine) -> None:
        super().__init__(network, batch, case)
        self.machine = machine
        self.graphs: dict[tuple[nn.Module, bool], Callable] = {}

    def run(self, operation: nn.Module, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if gate is None and isinstance(operation, nn.Identity):
            return x
        given = (x,) if gate is None else (x, gate)
        place = operation, gate is None
        if place not in self.graphs:
            samples = tuple(torch.randn_like(tensor).requires_grad_(tensor.requires_grad) for tensor in given)
            self.graphs[place] = self.machine.graphed(Gated(operation), samples)
        return self.graphs[place](*given)


class InAGraph(NetworkSide):
    """Replays one path's step of another side."""

    def __init__(self, side: Ours | Plain, machine: Machine) -> None:
        self.side = side
        self.machine = machine
        self.network, self.batch = side.network, side.batch

    def seconds(self, ops: Tensor, to_gates: bool) -> float:
        replay, _ = self._capture(ops, to_gates)
        return self.clock(replay)

    def step(self, ops: Tensor, to_gates: bool) -> Outcome:
        replay, outcome = self._capture(ops, to_gates)
        replay()
        gates = outcome.gate_grads
        return Outcome(outcome.loss.clone(), None if gates is None else gates.clone())  # another graph takes the memory

    def _capture(self, ops: Tensor, to_gates: bool) -> tuple[Callable[[], object], Outcome]:
        if isinstance(self.side, Plain):
            return self.machine.captured(lambda: self.side.step(ops, to_gates))
        images, labels = self.batch.images, self.batch.labels
        path = Path.from_ops(ops, requires_grad=to_gates)
        gates = path.gates_on(images.device)  # here: it comes from the host

        def step() -> Outcome:
            loss = cross_entropy(self.network(images, path), labels)
            if to_gates:
                return Outcome(loss.detach(), torch.autograd.grad(loss, [gates])[0].flatten())
            loss.backward()
            self.clear()
            return Outcome(loss.detach())

        return self.machine.captured(step)


def make_rival(name: str, machine: Machine, network: Network, batch: Batch, case: Case) -> NetworkSide:
    if name in MODES:
        return Compiled(network, batch, case, machine, MODES[name])
    if name == GRAPHED:
        return Graphed(network, batch, case, machine)
    if name == PLAIN_IN_A_GRAPH:
        return InAGraph(PlainToWhatIsWanted(network, batch, case), machine)
    ours = Ours(WithOwnConv3x3(network) if name in OWN else network, batch)
    return ours if name == OURS_OWN else InAGraph(ours, machine)


OWN = (OURS_OWN, OURS_OWN_IN_A_GRAPH)
RIVALS = (OURS_OWN, OURS_IN_A_GRAPH, OURS_OWN_IN_A_GRAPH, PLAIN_IN_A_GRAPH, GRAPHED, COMPILED, MAX_AUTOTUNE)
