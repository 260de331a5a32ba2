"""Graphs of nodes that the native executor runs in one call: a cell on one path, a stem, a reduction block, or one after
the other: the whole body of a supernet.

A graph is built anew for every call, since the path says what is in it. Formula: :mod:`advnas_ext.reference`.
"""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from advnas_ext import _C, fidelity
from advnas_ext._C import Prologue, Step
from advnas_ext.fidelity import Obstacle
from advnas_ext.path import Path

Result = TypeVar("Result")

ZERO, HALVED_ZERO = (Step(_C.Piece.zero(stride)) for stride in (1, 2))
IDENTITY = Step(_C.Piece(_C.Arrival.IDENTITY))
AVG_POOL = Step(_C.Piece(_C.Arrival.AVG_POOL))
BASELINE = Step(_C.Piece.baseline())
MAX_POOL = Step(_C.Piece(_C.Arrival.MAX_POOL))


def convolution(
    prologue: Prologue, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, depthwise: nn.Conv2d | None = None
) -> Step:
    """The prologue, then a depthwise convolution if there is one, a convolution, and batch norm if there is one.

    The convolutions have padding for an unchanged image size at stride 1. With ``depthwise`` the other one is 1x1 with stride 1.
    """
    spatial = conv if depthwise is None else depthwise
    weight, bias = weight_and_bias(conv)
    depthwise_weight = None if depthwise is None else weight_and_bias(depthwise)[0]
    if norm is None:
        piece = _piece_of(prologue, False, spatial.stride[0], spatial.dilation[0])
        return Step(piece, weight, depthwise_weight, bias)
    piece = _piece_of(prologue, True, spatial.stride[0], spatial.dilation[0], norm.eps, momentum_of(norm))
    # By position: names would cost a microsecond each time, of dozens in a step.
    return Step(piece, weight, depthwise_weight, bias, *norm_arguments(norm))


def linear(prologue: Prologue, weight: Tensor, stride: int = 1, depthwise: Tensor | None = None) -> Step:
    """The same of weights alone, such as a part of a module's, without bias and batch norm."""
    return Step(_piece_of(prologue, False, stride), weight, depthwise)


def normalisation(norm: nn.BatchNorm2d, identity: Tensor, stride: int = 1) -> Step:
    """Batch norm alone, of every ``stride``-th pixel: a convolution that is none, whose output is normalised.

    Args:
        identity: [channels, channels, 1, 1], 1 where both channels are the same and 0 elsewhere.
    """
    piece = _piece_of(Prologue.NOTHING, True, stride, 1, norm.eps, momentum_of(norm))
    return Step(piece, identity, None, None, *norm_arguments(norm))


NormArguments = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, bool]


def norm_arguments(norm: nn.BatchNorm2d) -> NormArguments:
    """Of a step with batch norm, from gamma on."""
    mean, variance, tracked = running_statistics(norm)
    return *weight_and_bias(norm), mean, variance, tracked, mean is not None and not norm.training


_piece_of = functools.cache(_C.Piece)


# A step asks for hundreds of tensors, and nn.Module searches for each that is asked for as an attribute. Where a parameter is
# anything else than a parameter, the module has an obstacle and does not come here.


def weight_and_bias(module: nn.Conv2d | nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None]:
    return module._parameters["weight"], module._parameters["bias"]


def running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Mean, variance and the number of batches as batch norm takes them: in training none that it does not track, otherwise no
    number."""
    if norm.training and not norm.track_running_stats:
        return None, None, None
    counted = norm._buffers["num_batches_tracked"] if norm.training else None
    return norm._buffers["running_mean"], norm._buffers["running_var"], counted


def momentum_of(norm: nn.BatchNorm2d) -> float:
    """As the kernels take it."""
    return _C.CUMULATIVE if norm.momentum is None else norm.momentum


class Graph:
    """Nodes, each the sum of what arrives there. Node 0 is the input; the last node that was added is the output."""

    def __init__(self) -> None:
        self.num_nodes = 1
        self._steps: list[tuple[Step, int, int, int]] = []  # each with its source, its target, its gate
        self._offset_targets: list[int] = []
        self._compares = False

    def node(self, arrivals: Iterable[tuple[Sequence[Step], int, int]]) -> int:
        """Adds a node and returns its number.

        Args:
            arrivals: of each operation its steps, one after the other, the node that it takes, and the place of its gate
                among the flattened gates; -1 for none.
        """
        last = []
        for steps, source, gate in arrivals:
            for step in steps[:-1]:
                self._steps.append((step, source, self.num_nodes, -1))
                source, self.num_nodes = self.num_nodes, self.num_nodes + 1
            last.append((steps[-1], source, gate))
        node = self.num_nodes
        for step, source, gate in last:
            self._steps.append((step, source, node, gate))
        self.num_nodes = node + 1
        return node

    def edges_into(self, node: int, count: int) -> None:
        """Says that the next ``count`` edges of the path end in ``node``, where their offsets are added. A cell names all
        edges in their order, or none."""
        self._offset_targets += [node] * count

    def edges_elsewhere(self, count: int) -> None:
        """Says that the next ``count`` edges of the path are not in this cell, but in one of another kind."""
        self._offset_targets += [-1] * count

    def baselines(self, sources: Sequence[int], path: Path, edge: int) -> list[tuple[Sequence[Step], int, int]]:
        """Arrivals that add nothing to a node and take <dL/dnode, source> off the gates' gradients of ``edge``, ``edge`` + 1, ...,
        one for each source. Each has a gate, of 0, that :meth:`run` makes."""
        self._compares = True
        first = path.ops.numel() + edge
        return [((BASELINE,), source, first + place) for place, source in enumerate(sources)]

    def run(self, x: Tensor, path: Path | None = None) -> Tensor:
        """The value of the last node.

        Args:
            x: [batch, channels, height, width], of a type that :func:`runs_natively`, as the parameters; under autocast
                both are converted to its type, batch norm's apart.
            path: has the gates, and the offsets if any; None where the graph has no gate.

        Raises:
            ValueError: channels of ``x`` or of a convolution do not fit, or batch statistics would be of one value.
            RuntimeError: in a double backward pass, which is not implemented.
        """
        steps, dtype = self._steps, autocast_type(x)
        if dtype is not None:
            x = x.to(dtype)
            steps = [(step.with_weights_in(x), *link) for step, *link in steps]
        gates, values = (_NO_GATES, _NO_GATES) if path is None else (path.gates_on(x.device), path.gates)
        if self._compares:
            gates, values = _with_baselines(gates), _with_baselines(values.detach())
        return _run(
            x,
            gates,
            values,
            None if path is None else path.offsets_on(x.device),
            self._offset_targets,
            steps,
            self.num_nodes,
        )


def _with_baselines(gates: Tensor) -> Tensor:
    """The gates [num_edges, picks], and behind them a 0 for each edge, of which all gates of the edge get the negative gradient."""
    return torch.cat([gates.flatten(), (gates.detach() - gates).sum(1)])


class Fused(nn.Module, ABC):
    """An operation that the executor runs as native steps in place of ``forward``."""

    def __init_subclass__(cls, **settings: object) -> None:
        super().__init_subclass__(**settings)
        if cls.__module__.startswith(f"{__package__}."):  # of others ``overrides`` is asked
            fidelity.stands_for(cls, "forward")

    @abstractmethod
    def obstacle(self) -> Obstacle:
        """What in the operation's layers the steps do not stand for."""

    @abstractmethod
    def steps(self) -> Sequence[Step]:
        """The native steps, one after the other."""


class Block(nn.Module, ABC):
    """A module that can be a part of a graph."""

    @abstractmethod
    def obstacle(self, path: Path | None) -> Obstacle:
        """What in the block, as far as ``path`` picks it, the executor does not stand for."""

    @abstractmethod
    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        """Adds the nodes of the block, whose input is the node ``source``, and returns its output."""

    @abstractmethod
    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        """The block in plain PyTorch."""

    def forward(self, x: Tensor, path: Path | None = None) -> Tensor:
        """The output, channels_last."""
        y = eagerly(run_if_native, [self], x, path)
        return self.plain(x, path) if y is None else y


def operation_obstacle(op: nn.Module) -> Obstacle:
    """Why the executor does not run an operation; None: it does."""
    obstacle = _class_obstacle(type(op))
    return obstacle or fidelity.hooks_obstacle(op.__dict__) or op.obstacle()  # type: ignore[operator]


@fidelity.remembered
def _class_obstacle(kind: type[nn.Module]) -> Obstacle:
    if not issubclass(kind, Fused):
        return f"{kind.__name__} has no native kernels"
    return f"{kind.__name__} overrides forward" if fidelity.overrides(kind, "forward", "steps") else None


def noticed(module: nn.Module, obstacle: Obstacle) -> bool:
    """Whether there is no obstacle. Warns of the first one that a module meets after it ran natively."""
    if torch.compiler.is_dynamo_compiling():  # its graph asks only once
        return obstacle is None
    own = module.__dict__
    if obstacle is None:
        own["_ran_natively"] = True
        return True
    if own.get("_ran_natively") and not own.get("_has_warned"):
        own["_has_warned"] = True
        warnings.warn(
            f"{type(module).__name__}: {obstacle}; where this is so it runs in plain PyTorch, right but slower. "
            "advnas_ext.explain(model) lists all such modules",
            stacklevel=2,
        )
    return False


def run_blocks(blocks: Sequence[Block], x: Tensor, path: Path) -> Tensor:
    """The blocks, one after the other: as one graph where the executor runs all of them and nobody watches or replaces one."""
    if all(map(_is_joined, blocks)):
        y = eagerly(run_if_native, blocks, x, path)
        if y is not None:
            return y
    for block in blocks:
        x = block(x, path)
    return x


def _is_joined(block: Block) -> bool:
    return fidelity.hooks_obstacle(block.__dict__) is None and not _overrides_forward(type(block))


@fidelity.remembered
def _overrides_forward(kind: type[Block]) -> bool:
    return fidelity.overrides(kind, "forward", "add_to")


def run_if_native(blocks: Sequence[Block], x: Tensor, path: Path | None) -> Tensor | None:
    """The output of the blocks, one after the other, as one graph; None where something keeps it from running natively."""
    if not runs_natively(x) or not all(noticed(block, block.obstacle(path)) for block in blocks) or is_offset(path):
        return None
    graph, node = Graph(), 0
    for block in blocks:
        node = block.add_to(graph, node, path)
    return graph.run(x, path)


def is_offset(path: Path | None) -> bool:
    """Whether somebody gave offsets other values than 0, which the kernels do not add. A graph of torch.compile cannot ask."""
    if torch.compiler.is_compiling():
        return False
    return path is not None and path.offsets is not None and bool(path.offsets.count_nonzero())


_NO_GATES = torch.empty(0, device="cpu")
_run = _C.cell


TYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float16, torch.bfloat16)}


def runs_natively(x: Tensor) -> bool:
    """Whether the native executor takes ``x`` here and now: its device and type, under autocast the type that it is converted
    to, and nothing around the call that it would escape."""
    if fidelity.tensor_obstacle(x) is not None or fidelity.context_obstacle() is not None:
        return False
    obstacle = device_obstacle(x.device.type)
    if obstacle is not None:
        if x.device.type != "meta":  # shapes without data, which nobody expects to be fast
            _warn_not_native(obstacle)
        return False
    types = TYPES[x.device.type]
    return x.dtype in types and (autocast_type(x) or x.dtype) in types


def eagerly(function: Callable[..., Result], *arguments: object) -> Result:
    """``function(*arguments)``, for which torch.compile leaves its graph. A decorator that says so at once would import a second's
    and 70 MiB's worth of modules for everybody."""
    if torch.compiler.is_compiling() and not fidelity.is_exporting():
        return torch.compiler.disable(function)(*arguments)
    return function(*arguments)


def device_obstacle(device: str) -> Obstacle:
    if device in TYPES and (device != "cuda" or _C.cuda):
        return None
    return f"no native kernels for {device} in this build"


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast converts ``x`` to; None outside of it."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@functools.cache  # once
def _warn_not_native(obstacle: str) -> None:
    warnings.warn(f"advnas_ext: {obstacle}; running plain PyTorch", stacklevel=4)
