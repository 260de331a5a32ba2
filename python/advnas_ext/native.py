"""Graphs of nodes that the native executor runs in one call: a cell on one path, a stem, a reduction block, or one after
the other: the whole body of a supernet.

A graph is built anew for every call, since the path says what is in it. Formula: :mod:`advnas_ext.reference`.
"""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from advnas_ext import _C
from advnas_ext._C import Prologue, Step
from advnas_ext.path import Path

ZERO = Step(_C.Piece())
IDENTITY = Step(_C.Piece(_C.Arrival.IDENTITY))
AVG_POOL = Step(_C.Piece(_C.Arrival.AVG_POOL))
MAX_POOL = Step(_C.Piece(_C.Arrival.MAX_POOL))


def convolution(
    prologue: Prologue, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, depthwise: nn.Conv2d | None = None
) -> Step:
    """The prologue, then a depthwise convolution if there is one, a convolution, and batch norm if there is one.

    The convolutions have padding for an unchanged image size at stride 1. With ``depthwise`` the other one is 1x1, and
    both have stride 1.
    """
    spatial = conv if depthwise is None else depthwise
    weight, bias = weight_and_bias(conv)
    depthwise_weight = None if depthwise is None else weight_and_bias(depthwise)[0]
    if norm is None:
        piece = _piece_of(prologue, False, spatial.stride[0], spatial.dilation[0])
        return Step(piece, weight, depthwise_weight, bias)
    piece = _piece_of(prologue, True, spatial.stride[0], spatial.dilation[0], norm.eps, norm.momentum or 0.0)
    gamma, beta = weight_and_bias(norm)
    mean, variance, tracked = running_statistics(norm)
    use_running = mean is not None and not norm.training
    # By position: names would cost a microsecond each time, of dozens in a step.
    return Step(piece, weight, depthwise_weight, bias, gamma, beta, mean, variance, tracked, use_running)


_piece_of = functools.cache(_C.Piece)


# A step asks for hundreds of tensors, and nn.Module searches for each that is asked for as an attribute. Only who has parametrized
# or pruned a module has made its parameters something else.


def weight_and_bias(module: nn.Conv2d | nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None]:
    try:
        return module._parameters["weight"], module._parameters["bias"]
    except KeyError:
        return module.weight, module.bias


def running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Mean, variance and the number of batches as batch norm takes them: in training none that it does not track."""
    if norm.training and not norm.track_running_stats:
        return None, None, None
    try:
        return norm._buffers["running_mean"], norm._buffers["running_var"], norm._buffers["num_batches_tracked"]
    except KeyError:
        return norm.running_mean, norm.running_var, norm.num_batches_tracked


class Graph:
    """Nodes, each the sum of what arrives there. Node 0 is the input; the last node that was added is the output."""

    def __init__(self) -> None:
        self.num_nodes = 1
        self._steps: list[tuple[Step, int, int, int]] = []  # each with its source, its target, its gate
        self._offset_targets: list[int] = []

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
        return _run(
            x,
            _NO_GATES if path is None else path.gates_on(x.device),
            _NO_GATES if path is None else path.gates,
            None if path is None else path.offsets_on(x.device),
            self._offset_targets,
            steps,
            self.num_nodes,
        )


class Block(nn.Module, ABC):
    """A module that can be a part of a graph."""

    def is_native(self, path: Path | None) -> bool:
        """Whether the executor runs all that ``path`` picks."""
        return True

    @abstractmethod
    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        """Adds the nodes of the block, whose input is the node ``source``, and returns its output."""

    @abstractmethod
    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        """The block in plain PyTorch."""

    def forward(self, x: Tensor, path: Path | None = None) -> Tensor:
        """The output, channels_last."""
        native = runs_natively(x) and self.is_native(path)
        return _run_graph([self], x, path) if native else self.plain(x, path)


def run_blocks(blocks: Sequence[Block], x: Tensor, path: Path) -> Tensor:
    """The blocks, one after the other: as one graph where the executor runs all of them and no hook waits at one."""
    if runs_natively(x) and not any(map(has_hooks, blocks)) and all(block.is_native(path) for block in blocks):
        return _run_graph(blocks, x, path)
    for block in blocks:
        x = block(x, path)
    return x


def has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _run_graph(blocks: Iterable[Block], x: Tensor, path: Path | None) -> Tensor:
    graph, node = Graph(), 0
    for block in blocks:
        node = block.add_to(graph, node, path)
    return graph.run(x, path)


_NO_GATES = torch.empty(0)
_run = _C.cell
# torch.compile leaves its graph at a native call; it need not warn of that. torch.compiler.disable would say the same, but imports
# a second's and 70 MiB's worth of modules for everybody.
warnings.filterwarnings("ignore", "Dynamo does not know how to trace the builtin `advnas_ext")


_TYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float16, torch.bfloat16)}


def runs_natively(x: Tensor) -> bool:
    """Whether the native executor takes ``x``: its device and type, and under autocast the type that it is converted to."""
    device = x.device.type
    if device not in _TYPES or (device == "cuda" and not _C.cuda):
        _warn_not_native(device)
        return False
    types = _TYPES[device]
    return x.dtype in types and (autocast_type(x) or x.dtype) in types


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast converts ``x`` to; None outside of it."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@functools.cache  # once
def _warn_not_native(device: str) -> None:
    warnings.warn(f"advnas_ext: no native kernels for {device} in this build; running plain PyTorch", stacklevel=4)
