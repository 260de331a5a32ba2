"""DARTS's image cells (Liu, Simonyan & Yang, ICLR 2019): a normal and a reduction cell of two inputs and four inner nodes each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from advnas.networks.darts import DartsNetwork
from advnas.spaces.base import Space
from advnas_ext import Estimator
from advnas_ext.darts import DARTS as DARTS_OPS
from advnas_ext.darts import NUM_EDGES, NUM_INNER, NUM_INPUTS

INNER = range(NUM_INPUTS, NUM_INPUTS + NUM_INNER)  # the nodes that have inputs
KEPT = 2  # inputs of a node in a cell that is found
CELLS = ("normal", "reduce")
CONCATENATED = re.compile(r"range\(2,6\)|\[2,3,4,5\]|\(2,3,4,5\)")


class DartsSpace(Space):
    """A path has an operation on each of the 28 edges, first of the normal, then of the reduction cell. A cell that is found keeps
    two of them for each node, as DARTS derives it; the others are ``none``.

    As a string, each of the two cells has for each inner node the operations on its edges from all earlier ones, the inputs 0 and 1
    first: ``normal:|op~0|op~1|+|op~0|op~1|op~2|+...;reduce:...``. :meth:`parse` reads genotypes as well.
    """

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        return tuple(len(CELLS) * [(t, s) for t in INNER for s in range(t)])

    @property
    def parts(self) -> dict[str, slice]:
        return {name: slice(place * NUM_EDGES, (place + 1) * NUM_EDGES) for place, name in enumerate(CELLS)}

    @property
    def edge_names(self) -> tuple[str, ...]:
        return tuple(f"{name} {t}<-{s}" for name, part in self.parts.items() for t, s in self.edges[part])

    @property
    def inputs(self) -> list[list[int]]:
        """The edges into each node."""
        cell = self.edges[:NUM_EDGES]
        into = [[place for place, edge in enumerate(cell) if edge[0] == node] for node in INNER]
        return [[part.start + place for place in places] for part in self.parts.values() for places in into]

    def kept(self, without: tuple[str, ...]) -> tuple[str, ...]:  # type: ignore[override]
        if self.zero_op in without:
            raise ValueError(
                f"without: {self.name} needs {self.zero_op}, which stands for the edges that a cell leaves out; leave it in"
            )
        return super().kept(without)

    def derive(self, estimator: Estimator, zero_op: int | None) -> Tensor:
        assert zero_op is not None  # see kept
        kept = estimator.topology(self.inputs, KEPT, zero_op)
        return kept.masked_fill(kept < 0, zero_op)

    def completed(self, path: Tensor, num_ops: int, zero_op: int | None, generator: torch.Generator) -> Tensor:
        """Two inputs of each node that are drawn, with their operations on the path, or others where that is none."""
        assert zero_op is not None
        cell = torch.full_like(path, zero_op)
        for edges in self.inputs:
            for place in torch.randperm(len(edges), generator=generator)[:KEPT].tolist():
                other = (zero_op + torch.randint(1, num_ops, (), generator=generator)) % num_ops
                drawn = path[edges[place]]
                cell[edges[place]] = other if drawn == zero_op else drawn
        return cell

    def parse(self, arch: str) -> Tensor:
        """The operations of both cells, given as a string or as a genotype: ``Genotype(normal=[('sep_conv_3x3', 1), ...],
        normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))``, with two pairs of an operation and its input for
        each node.

        Returns:
            int64 [28], places in ``ops``.

        Raises:
            ValueError: the text is malformed or names an unknown operation.
        """
        if isinstance(arch, str) and arch.startswith("Genotype("):
            return self._from_genotype(arch)
        form = self._text(["op"] * self.num_edges)
        if not isinstance(arch, str) or not re.fullmatch(re.escape(form).replace("op", "[^|~+;:]+"), arch):
            raise ValueError(f"architecture: must have the form {form}, or be a genotype, got {arch!r}")
        return torch.tensor([self.place(op) for op in re.findall(r"([^|~+;:]+)~", arch)])

    def genotype(self, arch: str) -> str:
        """A cell as DARTS's own code and what follows it write it; :meth:`parse` is the inverse.

        Raises:
            ValueError: ``arch`` is malformed, or a node has another number of inputs than two.
        """
        ops, cells = self.parse(arch).tolist(), []
        for name, part in self.parts.items():
            pairs = []
            for node in INNER:
                into = zip(self.edges[part], ops[part], strict=True)
                found = [(self.ops[op], s) for (t, s), op in into if t == node and self.ops[op] != self.zero_op]
                if len(found) != KEPT:
                    raise ValueError(
                        f"genotype: node {node} of the cell {name} must have {KEPT} inputs, got {len(found)}"
                    )
                pairs += found
            cells.append(f"{name}={pairs}, {name}_concat=range(2, 6)")
        return f"Genotype({', '.join(cells)})"

    def facts(self, arch: str) -> Mapping[str, str]:
        return {"genotype": self.genotype(arch)}

    def _from_genotype(self, text: str) -> Tensor:
        pairs, concat = r"\[((?:\('\w+',\d\),?)*)\]", r"((?:range)?[\[(][\d,]+[\])])"
        form = "".join(f"{name}={pairs},{name}_concat={concat}," for name in CELLS)[:-1]
        found = re.fullmatch(rf"Genotype\({form}\)", re.sub(r"\s", "", text.replace('"', "'")))
        example = "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))"
        if found is None:
            raise ValueError(f"architecture: a genotype must have the form {example}, got {text!r}")
        zero = self.place(str(self.zero_op))
        ops = [zero] * self.num_edges
        for (name, part), (inner, nodes) in zip(
            self.parts.items(), (found.group(1, 2), found.group(3, 4)), strict=True
        ):
            inputs = re.findall(r"\('(\w+)',(\d)\)", inner)
            if len(inputs) != KEPT * NUM_INNER or not CONCATENATED.fullmatch(nodes):
                raise ValueError(
                    f"architecture: {name} must have {KEPT * NUM_INNER} pairs, and nodes 2 to 5 as its output, got "
                    f"{len(inputs)} and {nodes}"
                )
            seen = set[tuple[int, int]]()
            for place, (op, source) in enumerate(inputs):
                edge = (NUM_INPUTS + place // KEPT, int(source))
                if edge not in self.edges:
                    raise ValueError(f"architecture: node {edge[0]} of {name} cannot take node {source}")
                if edge in seen:
                    raise ValueError(
                        f"architecture: node {edge[0]} of {name} must have two inputs, got node {source} twice"
                    )
                seen.add(edge)
                ops[part.start + self.edges.index(edge)] = self.place(op)
        return torch.tensor(ops)


def network(
    channels: int,
    cells: int,
    in_channels: int,
    num_classes: int,
    ops: tuple[str, ...],
    reduction: str = "",
    num_nodes: int = 0,
    baseline: str | None = None,
    **batch_norm: bool,
) -> DartsNetwork:
    """The supernet. It takes no block between stages, for its reduction cells halve the image, and no number of nodes.

    Raises:
        ValueError: there is a baseline; see :class:`advnas.networks.darts.DartsNetwork` for the rest.
    """
    if baseline is not None:
        raise ValueError(f"gate_baseline: cells of darts have none, got {baseline!r}; leave it out")
    return DartsNetwork(channels, cells, in_channels, num_classes, ops=ops, **batch_norm)


DARTS = DartsSpace(
    name="darts",
    task="image",
    ops=DARTS_OPS,
    num_nodes=NUM_INPUTS + NUM_INNER,
    network=network,
    zero_op="none",
    labels={
        "max_pool_3x3": "max pool",
        "avg_pool_3x3": "avg pool",
        "skip_connect": "skip",
        **{f"{kind}_conv_{size}x{size}": f"{kind} {size}×{size}" for kind in ("sep", "dil") for size in (3, 5)},
    },
    node_names=("c(k-2)", "c(k-1)", "0", "1", "2", "3"),
    presets={
        "paper": {"epochs": 50, "cells": 2, "weight_decay": 3e-4, "nesterov": False},
        "fast": {"estimator": "advantage", "without": (), "halving_cells": 0},
    },
)
