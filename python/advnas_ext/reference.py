"""The specification of every fused function, in plain PyTorch. Tests compare with it; read it first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from advnas_ext.path import Path


def gate(h: Tensor, gate: Tensor) -> Tensor:
    """``h`` times a scalar tensor, in the dtype and on the device of ``h``."""
    return h * gate.reshape(()).to(h)


def cell(x: Tensor, path: Path, edges: Sequence[nn.ModuleList], num_nodes: int) -> Tensor:
    """A cell on one path: every node is the sum, over its incoming edges, of the gated outputs of the picked operations.

        node_0 = x,    node_t = sum_{s < t} (offsets[e] + sum_k gates[e, k] * op_{ops[e, k]}(node_s)),    e the edge t <- s

    Args:
        x: [batch, channels, height, width].
        path: the picked operations of every edge.
        edges: the candidate modules of every edge, in the order 1<-0, 2<-0, 2<-1, 3<-0, ...
        num_nodes: nodes of the cell, its input and its output included.

    Returns:
        The last node, of the shape of ``x``.
    """
    ops = path.ops.tolist()
    nodes = [x]
    edge = 0
    for _ in range(1, num_nodes):
        terms = []
        for source in nodes:
            for pick, op in enumerate(ops[edge]):
                terms.append(gate(edges[edge][op](source), path.gates[edge, pick]))
            if path.offsets is not None:
                terms.append(path.offsets[edge].to(x))
            edge += 1
        nodes.append(sum(terms[1:], start=terms[0]))
    return nodes[-1]


def recurrent_cell(
    x: Tensor, path: Path, h: Tensor, weights: Sequence[Tensor], ops: Sequence[Callable[[Tensor], Tensor] | None]
) -> tuple[Tensor, Tensor]:
    """A sequence through a recurrent cell on one path (Liu et al. 2019, DARTS's recurrent space). For each step of it

        highway(s, z, f) = s + sigmoid(c) * (f(u) - s),    (c, u) the halves of z
        s_0 = highway(h, [x, h] W_0, tanh)
        s_t = sum_{i < t} (offsets[e] + sum_k gates[e, k] * highway(s_i, s_i W_t, op_{ops[e, k]})),    e the edge t <- i
        h = mean of s_1, s_2, ...

    The gates are the same in all steps, so their gradients sum over time.

    Args:
        x: [length, batch, units].
        path: the picked operations of every edge, in the order 1<-0, 2<-0, 2<-1, 3<-0, ...
        h: [batch, units], the hidden state before the first step.
        weights: W_0 [2 units, 2 units], then W_1, W_2, ... [units, 2 units].
        ops: functions of one element; None: the edge contributes nothing.

    Returns:
        The hidden states after each step, [length, batch, units], and the last of them, [batch, units].
    """
    rows = path.ops.tolist()
    outputs = []
    for step in x:
        states = [_highway(h, torch.cat([step, h], 1) @ weights[0], torch.tanh)]
        edge = 0
        for weight in weights[1:]:
            node = torch.zeros_like(h)
            for source in states:
                for pick, op in enumerate(rows[edge]):
                    function = ops[op]
                    if function is not None:
                        node = node + gate(_highway(source, source @ weight, function), path.gates[edge, pick])
                if path.offsets is not None:
                    node = node + path.offsets[edge].to(x)
                edge += 1
            states.append(node)
        h = torch.stack(states[1:]).mean(0)
        outputs.append(h)
    return torch.stack(outputs) if outputs else x, h


def _highway(state: Tensor, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    c, u = z.chunk(2, 1)
    return state + torch.sigmoid(c) * (function(u) - state)
