"""The cells of DARTS (Liu, Simonyan & Yang, ICLR 2019) on one path: two inputs, inner nodes, and what the inner nodes hold side by
side as the output.

Parameter names are those of the authors' supernet. A cell alone runs in plain PyTorch; :meth:`DartsCell.add_to` makes it a part of
a graph, in which nothing is put side by side: a state is its nodes, and a 1x1 convolution of it the sum of what it makes of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advnas_ext import fidelity, native, reference
from advnas_ext.fidelity import Obstacle
from advnas_ext.native import Fused, Graph, Prologue, Step
from advnas_ext.operations import Discarded, Identity, SeparableConv, Zero
from advnas_ext.path import Path

DARTS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NUM_INPUTS, NUM_INNER = 2, 4
NUM_EDGES = sum(range(NUM_INPUTS, NUM_INPUTS + NUM_INNER))

State = Sequence[int]
"""The nodes of a graph whose values are side by side, each of as many channels."""


class PoolNorm(Fused, nn.Sequential):
    """3x3 pooling and batch norm without parameters. With stride 2 the executor takes every second pixel of a pooled image."""

    identity: Tensor

    def __init__(self, pool: type[nn.Module], channels: int, stride: int, track_running_stats: bool) -> None:
        settings = {"count_include_pad": False} if pool is nn.AvgPool2d else {}
        norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=track_running_stats)
        nn.Sequential.__init__(self, pool(3, stride=stride, padding=1, **settings), norm)
        self.pool, self.stride = pool, stride
        _add_constant(self, "identity", channels)

    def obstacle(self) -> Obstacle:
        _, layers = _POOLS[self.pool]
        found = fidelity.layers_obstacle(self, (layers[self.stride - 1], fidelity.BATCH_NORM))
        return found or _constant_obstacle(self, "identity")

    def steps(self) -> Sequence[Step]:
        pooling, _ = _POOLS[self.pool]
        return pooling, native.normalisation(self[1], self.identity, self.stride)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)


_POOLS = {
    nn.AvgPool2d: (native.AVG_POOL, (fidelity.AVG_POOL, fidelity.HALVING_AVG_POOL)),
    nn.MaxPool2d: (native.MAX_POOL, (fidelity.MAX_POOL, fidelity.HALVING_MAX_POOL)),
}


class Joining(nn.Module, ABC):
    """ReLU, 1x1 convolution, batch norm, of a state."""

    identity: Tensor

    @abstractmethod
    def obstacle(self) -> Obstacle:
        """What in the layers the executor does not stand for."""

    @abstractmethod
    def sums(self, part: slice) -> list[Step]:
        """What is added up of one part of the state, before batch norm."""

    @property
    @abstractmethod
    def norm(self) -> nn.BatchNorm2d: ...

    def sum_node(self, graph: Graph, state: State, in_channels: int) -> int:
        each = in_channels // len(state)
        arrivals = []
        for place, node in enumerate(state):
            arrivals += [([step], node, -1) for step in self.sums(slice(place * each, (place + 1) * each))]
        return graph.node(arrivals)

    def norm_step(self) -> Step:
        return native.normalisation(self.norm, self.identity)


class ReLUConvBN(Joining):
    def __init__(self, in_channels: int, channels: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats)
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, channels, 1, bias=False), norm)
        _add_constant(self, "identity", channels)

    def obstacle(self) -> Obstacle:
        found = fidelity.sequence_obstacle(self.op, (fidelity.RELU, fidelity.MATRIX, fidelity.BATCH_NORM))
        return found or _constant_obstacle(self, "identity")

    @property
    def norm(self) -> nn.BatchNorm2d:
        return self.op[2]  # type: ignore[return-value]

    def sums(self, part: slice) -> list[Step]:
        conv: nn.Conv2d = self.op[1]  # type: ignore[assignment]
        return [native.linear(Prologue.RELU, conv.weight[:, part])]

    def add_to(self, graph: Graph, state: State) -> int:
        conv: nn.Conv2d = self.op[1]  # type: ignore[assignment]
        if len(state) == 1:
            return graph.node([([native.convolution(Prologue.RELU, conv, self.norm)], state[0], -1)])
        return graph.node([([self.norm_step()], self.sum_node(graph, state, conv.in_channels), -1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(Joining):
    """Halves the image: half of the channels are of the pixels with even places, the others of those with odd ones. Pixels beyond
    an image of odd size are 0."""

    shift: Tensor

    def __init__(self, in_channels: int, channels: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"FactorizedReduce: channels must be even, got {channels}")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(in_channels, channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats)
        _add_constant(self, "identity", channels)
        _add_constant(self, "shift", in_channels)

    def obstacle(self) -> Obstacle:
        halving = fidelity.HALVING_MATRIX
        found = fidelity.layers_obstacle(self, (fidelity.RELU, halving, halving, fidelity.BATCH_NORM))
        return found or _constant_obstacle(self, "identity") or _constant_obstacle(self, "shift")

    @property
    def norm(self) -> nn.BatchNorm2d:
        return self.bn

    def sums(self, part: slice) -> list[Step]:
        half = self.conv_1.out_channels
        even = F.pad(self.conv_1.weight[:, part], (0, 0, 0, 0, 0, 0, 0, half))
        odd = F.pad(self.conv_2.weight[:, part], (0, 0, 0, 0, 0, 0, half, 0))
        relu = Prologue.RELU
        return [native.linear(relu, even, 2), native.linear(relu, odd, 2, self.shift[part])]

    def add_to(self, graph: Graph, state: State) -> int:
        return graph.node([([self.norm_step()], self.sum_node(graph, state, self.conv_1.in_channels), -1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        odd = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(odd)], 1))


def _identity(channels: int, **kind: Any) -> Tensor:
    """Of :func:`native.normalisation`."""
    return torch.eye(channels, **kind).view(channels, channels, 1, 1)


def _shift(channels: int, **kind: Any) -> Tensor:
    """A depthwise convolution with it takes the pixel below on the right."""
    weight = torch.zeros(channels, 1, 3, 3, **kind)
    weight[:, :, 2, 2] = 1
    return weight


_CONSTANTS = {"identity": _identity, "shift": _shift}


def _add_constant(module: nn.Module, name: str, channels: int) -> None:
    """A buffer that always holds the same, and is where and of what type the module is."""
    module.register_buffer(name, _CONSTANTS[name](channels), persistent=False)


def _constant_obstacle(module: nn.Module, name: str) -> Obstacle:
    """Makes a constant anew where something else is in its place: ``to_empty`` leaves anything there, and no checkpoint has it."""
    own = module.__dict__
    buffer, seen = own["_buffers"][name], own.setdefault("_seen", {})
    known, version = seen.get(name, (None, 0))
    if known is buffer and version == _version(buffer):
        return None
    if buffer.is_meta:
        return f"has its {name} on meta"
    with torch.inference_mode(False):
        wanted = _CONSTANTS[name](len(buffer), dtype=buffer.dtype, device=buffer.device)
    if not torch.equal(buffer, wanted):
        own["_buffers"][name] = buffer = wanted
    seen[name] = buffer, _version(buffer)
    return None


def _version(tensor: Tensor) -> int:
    """How often it was changed; 0 where that is not counted."""
    return 0 if tensor.is_inference() else tensor._version


def candidate(name: str, channels: int, stride: int, affine: bool, track: bool) -> nn.Module:
    """A candidate operation of DARTS.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return Identity() if stride == 1 else FactorizedReduce(channels, channels, affine, track)
    if name in ("max_pool_3x3", "avg_pool_3x3"):
        return PoolNorm(nn.MaxPool2d if name[0] == "m" else nn.AvgPool2d, channels, stride, track)
    if name not in DARTS:
        raise ValueError(f"DartsCell: ops must be names among {', '.join(DARTS)}, got {name!r}")
    dilation, repeats = (1, 2) if name.startswith("sep") else (2, 1)
    return SeparableConv(channels, int(name[-1]), dilation, repeats, affine, track, stride, bias=False)


class Candidates(nn.Module):
    """Of one edge."""

    def __init__(self, ops: Sequence[str], channels: int, stride: int, affine: bool, track: bool) -> None:
        super().__init__()
        self._ops = nn.ModuleList(candidate(op, channels, stride, affine, track) for op in ops)


class DartsCell(nn.Module):
    """A cell of which each inner node is the sum of one operation on each earlier node, the inputs included.

        node_0, node_1 = the inputs, each through ReLU, 1x1 convolution, batch norm
        node_t = sum_{s < t} (offsets[e] + sum_k gates[e, k] * op_{ops[e, k]}(node_s)),   2 <= t < 6,   e the edge t <- s
        output = node_2, ..., node_5 side by side

    Args:
        in_channels: of both inputs.
        channels: of every node; the output has four times as many.
        ops: names of the candidate operations, among ``DARTS``.
        first_edge: place of the first edge among those of a path; the cell has 14, in the order 2<-0, 2<-1, 3<-0, ...
        reduction: whether it halves the image: operations on the inputs have stride 2 then.
        reduction_before: whether the cell before it does, so that the first input has twice the size of the second.
        affine, track_running_stats: of batch norm. Pooling has none that is affine.

    Raises:
        ValueError: an operation is unknown, or channels are odd where an image is halved.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        ops: Sequence[str] = DARTS,
        first_edge: int = 0,
        reduction: bool = False,
        reduction_before: bool = False,
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.ops, self.first_edge = tuple(ops), first_edge
        first = FactorizedReduce if reduction_before else ReLUConvBN
        self.preprocess0: FactorizedReduce | ReLUConvBN = first(in_channels[0], channels, affine, track_running_stats)
        self.preprocess1 = ReLUConvBN(in_channels[1], channels, affine, track_running_stats)
        self._ops = nn.ModuleList(
            Candidates(ops, channels, 2 if reduction and source < NUM_INPUTS else 1, affine, track_running_stats)
            for target in range(NUM_INPUTS, NUM_INPUTS + NUM_INNER)
            for source in range(target)
        )

    def forward(self, s0: Tensor, s1: Tensor, path: Path) -> Tensor:
        """The output, in plain PyTorch.

        Args:
            s0, s1: the outputs of the cell before the last one and of the last one, [batch, in_channels, height, width].
            path: of which the cell takes 14 edges.

        Returns:
            [batch, 4 channels, height, width]; of a reduction cell half the size, rounded up.

        Raises:
            ValueError: ``path`` has too few edges or an operation that is none.
        """
        picked = self._picked(path)
        nodes = [self.preprocess0(s0), self.preprocess1(s1)]
        edge, candidates = self.first_edge, iter(picked)
        for _ in range(NUM_INNER):
            terms = []
            for source in nodes:
                for pick, op in enumerate(next(candidates)):
                    terms.append(reference.gate(op(source), path.gates[edge, pick]))
                if path.offsets is not None:
                    terms.append(path.offsets[edge].to(source))
                edge += 1
            nodes.append(sum(terms[1:], start=terms[0]))
        return torch.cat(nodes[NUM_INPUTS:], 1)

    def obstacle(self, path: Path | None) -> Obstacle:
        """Why the executor does not run the cell on ``path``, or on any one; None: it does."""
        if type(self) is not DartsCell:
            return f"{type(self).__name__} is not a DartsCell"
        own = fidelity.hooks_obstacle(self.__dict__)
        for name, join in (("preprocess0", self.preprocess0), ("preprocess1", self.preprocess1)):
            if own is None and (obstacle := _joining_obstacle(join)) is not None:
                own = f"{name} {obstacle}"
        if own is not None:
            return own
        ops = [op for row in self._picked(path) for op in row] if path else [op for _, op in self.operations()]
        return next(filter(None, map(operation_obstacle, ops)), None)

    def operations(self) -> Iterator[tuple[str, nn.Module]]:
        """All candidates that are left, by name."""
        for edge, candidates in enumerate(self._ops):
            for number, op in enumerate(cast(Candidates, candidates)._ops):
                if not isinstance(op, Discarded):
                    yield f"_ops.{edge}._ops.{number}", op

    def add_to(self, graph: Graph, s0: State, s1: State, path: Path) -> State:
        """Adds the nodes of the cell, and returns those of its output."""
        edge, picks = self.first_edge, path.picks
        candidates = iter(self._picked(path))
        graph.edges_elsewhere(edge)
        nodes = [self.preprocess0.add_to(graph, s0), self.preprocess1.add_to(graph, s1)]
        for _ in range(NUM_INNER):
            arrivals: list[tuple[Sequence[Step], int, int]] = []
            for place, source in enumerate(nodes):
                for pick, op in enumerate(next(candidates)):
                    gate = (edge + place) * picks + pick
                    if isinstance(op, FactorizedReduce):
                        total = op.sum_node(graph, [source], op.conv_1.in_channels)
                        arrivals.append(((op.norm_step(),), total, gate))
                    else:
                        arrivals.append((cast(Fused, op).steps(), source, gate))
            nodes.append(graph.node(arrivals))
            graph.edges_into(nodes[-1], len(nodes) - 1)
            edge += len(nodes) - 1
        graph.edges_elsewhere(path.num_edges - edge)
        return nodes[NUM_INPUTS:]

    def keep_only(self, ops: Sequence[int]) -> None:
        """Discard the parameters of every candidate but one on each edge.

        Args:
            ops: of the edges of this cell.
        """
        for candidates, kept in zip(self._ops, ops, strict=True):
            row = cast(Candidates, candidates)._ops
            for place in range(len(row)):
                if place != kept:
                    row[place] = Discarded()

    def _picked(self, path: Path) -> list[list[nn.Module]]:
        rows = path.ops.tolist()
        last = self.first_edge + NUM_EDGES
        if len(rows) < last:
            raise ValueError(f"DartsCell: path must have at least {last} edges, got {len(rows)}")
        rows = rows[self.first_edge : last]
        if max(map(max, rows)) >= len(self.ops):
            raise ValueError(f"DartsCell: path.ops must be below {len(self.ops)}, the number of ops, got {rows}")
        edges = self._modules["_ops"]._modules.values()  # type: ignore[union-attr]
        places = [candidates._modules["_ops"]._modules for candidates in edges]  # type: ignore[union-attr]
        return [[ops[str(op)] for op in row] for ops, row in zip(places, rows, strict=True)]  # type: ignore[misc]


def operation_obstacle(op: nn.Module) -> Obstacle:
    """Why the executor does not run a candidate; None: it does."""
    return _joining_obstacle(op) if isinstance(op, FactorizedReduce) else native.operation_obstacle(op)


def _joining_obstacle(join: nn.Module) -> Obstacle:
    if type(join) not in (FactorizedReduce, ReLUConvBN):
        return f"is a {type(join).__name__}"
    return fidelity.hooks_obstacle(join.__dict__) or cast(Joining, join).obstacle()
