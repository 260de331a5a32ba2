"""The specification of every fused function, in plain PyTorch. Tests compare with it; read it first."""

from __future__ import annotations

from collections.abc import Sequence

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
