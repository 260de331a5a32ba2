"""xautodl 1.0.0's cell of NAS-Bench-201 on the engine. Its networks call a method of the cell for each algorithm; each is a path:

forward, forward_joint(x, w)       all operations of every edge, gates w                                (DARTS)
forward_gdas(x, w, index)          one operation an edge, gate w[e, index_e]; the others add the number w[e, k], which is
                                   worth 0 and has a gradient: an offset of the edge
forward_urs(x)                     one operation an edge, uniformly, not ``none`` on all edges of a node           (SETN, random)
forward_select(x, w)               the operation of the largest weight                                  (SETN)
forward_dynamic(x, structure)      the operations of a structure                                        (ENAS; others to evaluate)
"""

from __future__ import annotations

import random
from typing import Any, cast

import torch
from torch import Tensor, nn

from advnas.adapters.versions import check
from advnas_ext import OnePathCell, Path
from advnas_ext.operations import OPERATIONS

check("xautodl")


def adapt_cell(cell: nn.Module) -> None:
    """Give a NAS201SearchCell this package's operations, with its weights, and its methods."""
    theirs = cast(Any, cell)
    unknown = set(theirs.op_names) - OPERATIONS.keys()
    if unknown or theirs.in_dim != theirs.out_dim:
        raise ValueError(
            f"convert: a cell of xautodl must have as many output channels as input channels, got {theirs.in_dim} and "
            f"{theirs.out_dim}, and operations among {sorted(OPERATIONS)}, got {list(theirs.op_names)}"
        )
    state = cell.state_dict()
    norms = [module for module in cell.modules() if isinstance(module, nn.BatchNorm2d)]
    affine, tracks = (norms[0].affine, norms[0].track_running_stats) if norms else (False, False)
    ours = OnePathCell(theirs.in_dim, theirs.op_names, theirs.max_nodes, affine, tracks)
    example = next(cell.parameters(), torch.empty(0))
    ours.to(example.device, example.dtype).train(cell.training)
    ours.load_state_dict(state)
    theirs.edges = ours.edges
    # Not a submodule: its parameters are those of the edges, under the names that they have.
    cell.__dict__["one_path"] = ours
    cell.__class__ = _fused(type(cell))


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass, which the networks take for a cell of theirs; the same one each time."""
    if kind not in _classes:
        _classes[kind] = type(f"Fused{kind.__name__}", (_Methods, kind), {})
    return _classes[kind]


class _Methods:
    one_path: OnePathCell
    op_names: list[str]
    num_edges: int
    max_nodes: int

    def forward(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        weights = weightss.cpu()
        return self.one_path(inputs, Path(torch.arange(len(self.op_names)).repeat(self.num_edges, 1), weights))

    forward_joint = forward

    def forward_gdas(self, inputs: Tensor, hardwts: Tensor, index: Tensor) -> Tensor:
        weights, ops = hardwts.cpu(), index.detach().cpu()
        picked = weights.gather(1, ops)
        return self.one_path(inputs, Path(ops, picked, weights.sum(1) - picked[:, 0]))

    def forward_urs(self, inputs: Tensor) -> Tensor:
        candidates, ops = range(len(self.op_names)), list[int]()
        for node in range(1, self.max_nodes):
            drawn = [random.choice(candidates) for _ in range(node)]
            while all(self.op_names[op] == "none" for op in drawn):
                drawn = [random.choice(candidates) for _ in range(node)]
            ops += drawn
        return self._on(inputs, ops)

    def forward_select(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        return self._on(inputs, weightss.detach().argmax(1).tolist())

    def forward_dynamic(self, inputs: Tensor, structure: Any) -> Tensor:
        edges = [(j, op) for node in structure.nodes for op, j in node]
        if [j for j, _ in edges] != [j for node in range(1, self.max_nodes) for j in range(node)]:
            return super().forward_dynamic(inputs, structure)  # type: ignore[misc]  # of NAS201SearchCell
        return self._on(inputs, [self.op_names.index(op) for _, op in edges])

    def _on(self, inputs: Tensor, ops: list[int]) -> Tensor:
        return self.one_path(inputs, Path.from_ops(ops, requires_grad=False))
