"""The specification of every fused function, in plain PyTorch. Tests compare with it; read it first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from advnas_ext.path import Path

Function = Callable[[Tensor], Tensor]


def gate(h: Tensor, gate: Tensor, baseline: Tensor | None = None) -> Tensor:
    """``h`` times a scalar tensor g, in the dtype and on the device of ``h``. With a baseline b the gradient of g is that of
    g h + (1 - g) b, while the value and the other gradients stay those of g h."""
    g = gate.reshape(()).to(h)
    return h * g if baseline is None else h * g - baseline.detach().to(h) * (g - g.detach())


def cell(
    x: Tensor, path: Path, edges: Sequence[nn.ModuleList], num_nodes: int, input_is_baseline: bool = False
) -> Tensor:
    """A cell on one path: every node is the sum, over its incoming edges, of the gated outputs of the picked operations.

        node_0 = x,    node_t = sum_{s < t} (offsets[e] + sum_k gates[e, k] * op_{ops[e, k]}(node_s)),    e the edge t <- s

    Args:
        x: [batch, channels, height, width].
        path: the picked operations of every edge.
        edges: the candidate modules of every edge, in the order 1<-0, 2<-0, 2<-1, 3<-0, ...
        num_nodes: nodes of the cell, its input and its output included.
        input_is_baseline: whether advantages are in comparison with node_s: see :func:`gate`.

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
                baseline = source if input_is_baseline else None
                terms.append(gate(edges[edge][op](source), path.gates[edge, pick], baseline))
            if path.offsets is not None:
                terms.append(path.offsets[edge].to(x))
            edge += 1
        nodes.append(sum(terms[1:], start=terms[0]))
    return nodes[-1]


def recurrent_cell(
    x: Tensor,
    path: Path,
    h: Tensor,
    weights: Sequence[Tensor],
    ops: Sequence[Function | None],
    x_mask: Tensor | None = None,
    h_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A sequence through the recurrent cell of AdvantageNAS (Sato et al. 2021) on one path. For each step of it, with s the
    hidden state and e the edge i <- j, in the order 1<-0, 2<-0, 2<-1, 3<-0, ...:

        h_0 = highway(s, tanh(u), c),                       (c, u) the halves of [x * x_mask, s * h_mask] W_0
        h_i = 1/i sum_{j < i} highway(h_j, y_e, c_e),       (c_e, u_e) the halves of h_j W_{1 + e}
        y_e = offsets[e] + sum_k gates[e, k] * op_{ops[e, k]}(u_e)
        s = mean of h_1, h_2, ...
        highway(s, y, c) = sigmoid(c) * y + (1 - sigmoid(c)) * s

    An operation that did not run may only have been a constant among the terms of y_e, so that is where offsets stand:
    their gradient is the sum of sigmoid(c_e) / i * dL/dh_i. The gates are the same in all steps, so their gradients sum
    over time.

    Args:
        x: [length, batch, units].
        path: the picked operations of every edge.
        h: [batch, units], the hidden state before the first step.
        weights: W_0 [2 units, 2 units], then one [units, 2 units] for each edge.
        ops: functions of one element; None: contributes 0 to y_e.
        x_mask, h_mask: [batch, units], of variational dropout: scaled, the same in all steps; None: ones.

    Returns:
        The hidden states after each step, [length, batch, units], and the last of them, [batch, units].
    """
    rows = path.ops.tolist()
    outputs = []
    for step in x:
        nodes = [_input_node(step, h, weights[0], x_mask, h_mask)]
        edge = 0
        while edge < len(rows):
            node = torch.zeros_like(h)
            for source in nodes:
                c, u = (source @ weights[1 + edge]).chunk(2, 1)
                y = torch.zeros_like(h) if path.offsets is None else path.offsets[edge].to(h).expand_as(h)
                for pick, op in enumerate(rows[edge]):
                    function = ops[op]
                    if function is not None:
                        y = y + gate(function(u), path.gates[edge, pick])
                node = node + _highway(source, c, y)
                edge += 1
            nodes.append(node / len(nodes))
        h = torch.stack(nodes[1:]).mean(0)
        outputs.append(h)
    return torch.stack(outputs) if outputs else x, h


def darts_recurrent_cell(
    x: Tensor,
    path: Path,
    h: Tensor,
    weights: Sequence[Tensor],
    ops: Sequence[Function | None],
    x_mask: Tensor | None = None,
    h_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A sequence through the recurrent cell of DARTS (Liu et al. 2019) on one path. For each step of it, with s the hidden
    state, e the edge i <- j, and highway as in :func:`recurrent_cell`:

        h_0 = highway(s, tanh(u), c),                       (c, u) the halves of [x * x_mask, s * h_mask] W_0
        h_i = sum_{j < i} (offsets[e] + sum_k gates[e, k] * highway(h_j, op_{ops[e, k]}(u), c)),
                                                            (c, u) the halves of h_j W_i
        s = mean of h_1, h_2, ...

    Args:
        x, path, h, x_mask, h_mask: as for :func:`recurrent_cell`.
        weights: W_0 [2 units, 2 units], then W_1, W_2, ... [units, 2 units], one for each node.
        ops: functions of one element; None: the edge contributes nothing.

    Returns:
        The hidden states after each step, [length, batch, units], and the last of them, [batch, units].
    """
    rows = path.ops.tolist()
    outputs = []
    for step in x:
        nodes = [_input_node(step, h, weights[0], x_mask, h_mask)]
        edge = 0
        for weight in weights[1:]:
            node = torch.zeros_like(h)
            for source in nodes:
                for pick, op in enumerate(rows[edge]):
                    function = ops[op]
                    if function is not None:
                        c, u = (source @ weight).chunk(2, 1)
                        node = node + gate(_highway(source, c, function(u)), path.gates[edge, pick])
                if path.offsets is not None:
                    node = node + path.offsets[edge].to(x)
                edge += 1
            nodes.append(node)
        h = torch.stack(nodes[1:]).mean(0)
        outputs.append(h)
    return torch.stack(outputs) if outputs else x, h


def _input_node(x: Tensor, h: Tensor, weight: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
    masked = [value if mask is None else value * mask for value, mask in ((x, x_mask), (h, h_mask))]
    c, u = (torch.cat(masked, 1) @ weight).chunk(2, 1)
    return _highway(h, c, torch.tanh(u))


def _highway(state: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return state + torch.sigmoid(c) * (y - state)
