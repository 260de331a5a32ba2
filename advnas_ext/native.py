"""Graphs of nodes that the native executor runs in one call: a cell on one path, a stem, a reduction block.

A graph is built anew for every call, since the path says what is in it. Formula: :mod:`advnas_ext.reference`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advnas_ext import _C

Before = _C.Before
_piece = functools.cache(_C.Piece)


class Step(NamedTuple):
    """One native piece, with what it takes of the module that holds its parameters."""

    piece: _C.Piece
    running: bool = False
    """Whether batch norm takes its running statistics."""
    tensors: tuple[Tensor | None, ...] = ()
    """Of a convolution, in the order of ``ConvolutionTensor`` in csrc/cell.h."""


ZERO = Step(_piece(_C.Kind.ZERO))
IDENTITY = Step(_piece(_C.Kind.IDENTITY))
AVG_POOL = Step(_piece(_C.Kind.AVG_POOL))


def convolution(
    before: _C.Before, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, depthwise: nn.Conv2d | None = None
) -> Step:
    """What comes before, then a depthwise convolution if there is one, a convolution, and batch norm if there is one.

    The convolutions have padding for an unchanged image size at stride 1. With ``depthwise`` the other one is 1x1, and
    both have stride 1.
    """
    spatial = depthwise if depthwise is not None else conv
    kind, stride, dilation = _C.Kind.CONVOLUTION, spatial.stride[0], spatial.dilation[0]
    weights = (conv.weight, None if depthwise is None else depthwise.weight, conv.bias)
    if norm is None:
        return Step(_piece(kind, before, False, stride, dilation), False, (*weights, None, None, None, None, None))
    piece = _piece(kind, before, True, stride, dilation, norm.eps, norm.momentum or 0.0)
    running = norm.running_mean is not None and not norm.training
    statistics = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return Step(piece, running, (*weights, norm.weight, norm.bias, *statistics))


class Graph:
    """Nodes, each the sum of what arrives there. Node 0 is the input; the last node that was added is the output."""

    def __init__(self) -> None:
        self.num_nodes = 1
        self._pieces: list[_C.Piece] = []
        self._links: list[tuple[int, int, int]] = []
        self._running: list[bool] = []
        self._tensors: list[Tensor | None] = []

    def node(self, arrivals: Iterable[tuple[Sequence[Step], int, int]]) -> int:
        """Adds a node and returns its number.

        Args:
            arrivals: of each operation its steps, one after the other, the node that it takes, and the place of its gate
                among the flattened gates; -1 for none.
        """
        last = []
        for steps, source, gate in arrivals:
            for step in steps[:-1]:
                self._link(step, source, self.num_nodes, -1)
                source, self.num_nodes = self.num_nodes, self.num_nodes + 1
            last.append((steps[-1], source, gate))
        for step, source, gate in last:
            self._link(step, source, self.num_nodes, gate)
        self.num_nodes += 1
        return self.num_nodes - 1

    def _link(self, step: Step, source: int, target: int, gate: int) -> None:
        self._pieces.append(step.piece)
        self._links.append((source, target, gate))
        if step.tensors:
            self._running.append(step.running)
            self._tensors += step.tensors

    def run(
        self,
        x: Tensor,
        gates: Tensor | None = None,
        gate_values: Tensor | None = None,
        offsets: Tensor | None = None,
        offset_targets: Sequence[int] = (),
    ) -> Tensor:
        """The value of the last node.

        Args:
            x: [batch, channels, height, width], of a type that :func:`runs_natively`, as the parameters.
            gates: any shape, where their gradients are to be collected (:meth:`Path.gates_on`).
            gate_values: the same on the host; default ``gates`` itself.
            offsets: zeros, or None; ``offsets[k]`` is added to node ``offset_targets[k]``.

        Raises:
            ValueError: channels of ``x`` or of a convolution do not fit, or batch statistics would be of one value.
            RuntimeError: in a double backward pass, which is not implemented.
        """
        if gates is None:
            gates = _NO_GATES
        return _run(
            x,
            gates,
            gates if gate_values is None else gate_values,
            offsets,
            offset_targets,
            self._pieces,
            self._links,
            self.num_nodes,
            self._running,
            self._tensors,
        )


_NO_GATES = torch.empty(0)
_run = torch.compiler.disable(_C.cell)


_TYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float16, torch.bfloat16)}


def runs_natively(x: Tensor) -> bool:
    """Whether the native executor takes ``x``: its device and type, without autocast."""
    device = x.device.type
    if device not in _TYPES or (device == "cuda" and not _C.cuda):
        _warn_not_native(device)
        return False
    return x.dtype in _TYPES[device] and not torch.is_autocast_enabled(device)


@functools.cache  # once
def _warn_not_native(device: str) -> None:
    warnings.warn(f"advnas_ext: no native kernels for {device} in this build; running plain PyTorch", stacklevel=4)
