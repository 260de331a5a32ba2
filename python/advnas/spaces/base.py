"""What a search space is: nodes, edges, operations, and how a cell is written."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from advnas_ext import Estimator


@dataclass(frozen=True, eq=False)
class Space:
    """A cell of ``num_nodes`` nodes, an edge from every node to every later one, one operation on each edge.

    Edges are in the order 1<-0, 2<-0, 2<-1, 3<-0, ... A cell as a string has, for each node but the first, the operations
    on its edges from all earlier nodes: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.

    Attributes:
        name: in the registry.
        task: that it is for.
        ops: names of the candidate operations.
        num_nodes: the input included.
        network: the supernet's class, an ``nn.Module`` with ``fix(ops)``; its arguments are those that the task gives.
        zero_op: name of the operation that contributes nothing, if there is one.
        labels: short names of operations, for pictures; the others stand as they are.
        node_names: of the nodes, for pictures.
        bends: of an edge (target, source) that is no straight line in pictures: how high its curve reaches and how far its ends are
            from the middle of their nodes, in pixels; negative heights are upwards.
        columns: of a benchmark table, worth showing; the first one says which cells are best. Empty: no table knows the space.
        identities: from the names of a cell's operations to a text that is the same for cells that are the same network, by what
            kind of sameness that is, the narrowest first. Empty: every cell is a network of its own.
        presets: settings of a search that are others than those of the task's preset of that name.
    """

    name: str
    task: str
    ops: tuple[str, ...]
    num_nodes: int
    network: Callable[..., Any]
    zero_op: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    node_names: tuple[str, ...] = ()
    bends: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    identities: Mapping[str, Callable[[Sequence[str]], str]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(target, source) of every edge."""
        return tuple((target, source) for target in range(1, self.num_nodes) for source in range(target))

    @property
    def num_edges(self) -> int:
        return len(self.edges)

    @property
    def edge_names(self) -> tuple[str, ...]:
        return tuple(f"{target}<-{source}" for target, source in self.edges)

    @property
    def parts(self) -> Mapping[str, slice]:
        """The edges of each kind of cell, by its name: one kind for most."""
        return {"": slice(self.num_edges)}

    def derive(self, estimator: Estimator, zero_op: int | None) -> Tensor:
        """The cell that an estimator has come to.

        Args:
            zero_op: place of the zero operation among those that are searched, if it is.

        Returns:
            int64 [num_edges], places among the operations that are searched.
        """
        return estimator.argmax()

    def completed(self, path: Tensor, num_ops: int, zero_op: int | None, generator: torch.Generator) -> Tensor:
        """A cell from a path that was drawn: the path itself, but where not every path is a cell. As :meth:`derive`."""
        return path

    def facts(self, arch: str) -> Mapping[str, str]:
        """What else is worth saying of a cell that is found, by name."""
        return {}

    @property
    def has_every_path(self) -> bool:
        """Whether every path is a cell."""
        return type(self).completed is Space.completed

    @property
    def num_cells(self) -> int:
        return len(self.ops) ** self.num_edges

    def kept(self, without: Sequence[str]) -> tuple[str, ...]:
        """The operations that are searched.

        Raises:
            ValueError: one that is left out is none of the space, or fewer than two remain.
        """
        if unknown := [op for op in without if op not in self.ops]:
            raise ValueError(f"without: must be operations among {', '.join(self.ops)}, got {unknown[0]!r}")
        remaining = tuple(op for op in self.ops if op not in without)
        if len(remaining) < 2:
            raise ValueError(f"without: must leave at least two operations, got {list(without)}")
        return remaining

    def parse(self, arch: str) -> Tensor:
        """The operations of a cell given as a string.

        Returns:
            int64 [num_edges], places in ``ops``.

        Raises:
            ValueError: the string is malformed or names an unknown operation.
        """
        form = self._text(["op"] * self.num_edges)
        if not isinstance(arch, str) or not re.fullmatch(re.escape(form).replace("op", "[^|~+]+"), arch):
            raise ValueError(f"architecture: must have the form {form}, got {arch!r}")
        names = re.findall(r"([^|~+]+)~", arch)
        return torch.tensor([self.place(op) for op in names])

    def place(self, op: str) -> int:
        """Of an operation in ``ops``.

        Raises:
            ValueError: it is unknown.
        """
        if op not in self.ops:
            close = difflib.get_close_matches(op, self.ops, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose among {', '.join(self.ops)}"
            raise ValueError(f"architecture: unknown operation {op!r}; {hint}")
        return self.ops.index(op)

    def format(self, ops: Tensor) -> str:
        """The string of a cell: the inverse of :meth:`parse`.

        Args:
            ops: integers [num_edges], places in ``ops``.

        Raises:
            ValueError: the shape is another or a place out of range.
        """
        count = len(self.ops)
        if ops.shape != (self.num_edges,) or ops.is_floating_point() or not all(0 <= op < count for op in ops.tolist()):
            raise ValueError(f"architecture: needs {self.num_edges} integers from 0 to {count - 1}, got {ops.tolist()}")
        return self._text([self.ops[op] for op in ops.tolist()])

    def alike(self, arch: str) -> dict[str, list[str]]:
        """The other cells that are the same network as this one.

        Returns:
            their strings under each name of ``identities``, and none of them twice. It looks at every cell of the space.

        Raises:
            ValueError: as :meth:`parse`.
        """
        own = tuple(self.ops[op] for op in self.parse(arch).tolist())
        others = [names for names in itertools.product(self.ops, repeat=self.num_edges) if names != own]
        found = {}
        for name, identity in self.identities.items():
            wanted = identity(own)
            same = {names for names in others if identity(names) == wanted}
            found[name] = [self._text(names) for names in others if names in same]
            others = [names for names in others if names not in same]
        return found

    def _text(self, names: Sequence[str]) -> str:
        cells = []
        for name, part in self.parts.items():
            nodes: dict[int, str] = {}
            for (target, source), op in zip(self.edges[part], names[part], strict=True):
                nodes[target] = nodes.get(target, "|") + f"{op}~{source}|"
            cells.append((f"{name}:" if name else "") + "+".join(nodes.values()))
        return ";".join(cells)
