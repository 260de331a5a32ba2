"""Everything that a step of ours launches on a GPU, in order: csrc/cuda/pass_{forward,backward}.cpp without the work. Held against
what they really launch by tests/test_cuda_model.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cuda_traffic as traffic
from cuda_shapes import FLOAT, Images
from cuda_traffic import NO_NORM, NO_PARAMETERS, NodeBackward, Norm, Work
from work import KERNELS, Case

from advnas.spaces.nasbench201 import NASBENCH201

EDGES, NUM_NODES, OPS = NASBENCH201.edges, NASBENCH201.num_nodes, NASBENCH201.ops
ZERO_OP = OPS.index("none")
POOL = OPS.index("avg_pool_3x3")


@dataclass(frozen=True)
class Convolution:
    """``relu``, ``halved``: what comes before; ``norm``: None if there is none."""

    kernel: int
    norm: Norm | None = NO_PARAMETERS
    stride: int = 1
    relu: bool = True
    halved: bool = False

    @property
    def own(self) -> bool:
        """Whether pointwise.h runs it; up to the channels that fit in shared memory, which these networks do not leave."""
        return self.kernel == 1 and self.stride == 1

    @property
    def takes_relu(self) -> bool:
        return self.relu and not self.own


@dataclass(frozen=True)
class Term:
    """An operation that runs: a convolution, pooling or the identity. ``gated``: has a gate whose gradient may be wanted."""

    source: int
    target: int
    convolution: Convolution | None = None
    gated: bool = False
    pooled: bool = False


@dataclass(frozen=True)
class Wanted:
    """Gradients of the gates, or of weights and all other parameters."""

    gates: bool
    weight: bool


@dataclass(frozen=True)
class Graph:
    """``shapes``: of every node, the input first; ``terms``: those that run, by target."""

    shapes: tuple[Images, ...]
    terms: tuple[Term, ...]
    element: int

    @property
    def last(self) -> int:
        return len(self.shapes) - 1

    @property
    def live(self) -> list[int]:
        return sorted({self.last} | {term.source for term in self.terms})

    def out_of(self, node: int) -> list[Term]:
        return [term for term in self.terms if term.source == node]

    def into(self, node: int) -> list[Term]:
        return [term for term in self.terms if term.target == node]

    def forward(self) -> Iterator[Work]:
        for node in self.live:
            relu, value = self._reads(node)
            shape, into = self.shapes[node], self.into(node)
            if node > 0:
                maps = sum(term.convolution is not None and term.convolution.norm is not None for term in into)
                yield traffic.node_forward(shape, self.element, len(into), maps, value + relu)
            elif relu:
                yield traffic.node_forward(shape, self.element, 0, 0, 1, start=True)
            for term in self.out_of(node):
                yield from self._convolve(term)

    def _reads(self, node: int) -> tuple[bool, bool]:
        """Whether a node is read through ReLU, and as it is."""
        out_of = self.out_of(node)
        relu = any(term.convolution is not None and term.convolution.takes_relu for term in out_of)
        either = [relu and term.convolution is not None and term.convolution.relu for term in out_of]
        return relu, node == self.last or not all(either)

    def _convolve(self, term: Term) -> Iterator[Work]:
        convolution, x, y = term.convolution, self.shapes[term.source], self.shapes[term.target]
        if convolution is None:
            return
        if convolution.own:
            yield traffic.pointwise_forward(x, y, self.element, convolution.norm)
        else:
            yield traffic.convolution(x, y, convolution.kernel, self.element)
            if convolution.norm is not None:
                yield traffic.norm_statistics(y, self.element, convolution.norm)
        if convolution.norm is not None and convolution.norm.affine and self.element < FLOAT:
            yield traffic.casts(y.channels, 6)  # two parameters, two running statistics there and back

    def backward(self, wanted: Wanted) -> Iterator[Work]:
        if wanted.gates:
            yield traffic.zeros(len(EDGES))
        needed = self._needed(wanted)
        for node in reversed(self.live):
            for term in self.out_of(node):
                yield from self._convolve_backward(term, needed[node], wanted.weight)
            yield from self._gather(node, needed, wanted)

    def _needed(self, wanted: Wanted) -> list[bool]:
        """Of each node, whether its gradient is: where a wanted gate or parameter lies before it. The images have none."""
        needed = [False] * len(self.shapes)
        for term in self.terms:
            needed[term.target] |= needed[term.source] or self._wants(term, wanted)
        return needed

    def _wants(self, term: Term, wanted: Wanted) -> bool:
        """Whether the term has anything that a gradient is wanted of."""
        return (wanted.gates and term.gated) or (wanted.weight and term.convolution is not None)

    def _convolve_backward(self, term: Term, to_input: bool, to_weight: bool) -> Iterator[Work]:
        convolution, x, y = term.convolution, self.shapes[term.source], self.shapes[term.target]
        if convolution is None or not (to_input or to_weight):
            return
        if convolution.own:
            yield traffic.pointwise_backward(x, y, self.element, to_input, to_weight)
            return
        yield traffic.norm_gradient(y, self.element)
        yield traffic.convolution_backward(x, y, convolution.kernel, self.element, to_input + to_weight)

    def _gather(self, node: int, needed: list[bool], wanted: Wanted) -> Iterator[Work]:
        to_input = needed[node] and node < self.last
        out_of, into = self.out_of(node), self.into(node)
        gates = [wanted.gates and term.gated and term.convolution is None for term in out_of]
        sources = [to_input or gate for gate in gates]
        norms = tuple(
            term.convolution.norm or NO_NORM
            for term in into
            if term.convolution is not None and (needed[term.source] or self._wants(term, wanted))
        )
        if not (to_input or norms or any(sources)):
            return
        for norm in norms:
            if norm.affine and self.element < FLOAT:
                yield traffic.casts(self.shapes[node].channels, 2 + 2 * wanted.weight)  # parameters and their gradients
        masked = to_input and any(term.convolution is not None and term.convolution.relu for term in out_of)
        # A node is kept for the backward pass where a convolution takes it, or where gates want gradients; its ReLU is always kept.
        has_x = node < self.last and (wanted.gates or any(term.convolution is not None for term in out_of))
        yield NodeBackward(
            self.shapes[node],
            self.element,
            sum(sources),
            sum(to_input and term.convolution is not None and term.convolution.halved for term in out_of),
            sum(gates),
            start=node == self.last,
            has_x=has_x,
            needs_x=masked or any(gates),
            writes=to_input,
            norms=norms,
        ).work()


class Builder:
    """The graph of a network, node by node; ``last``: where the next block begins."""

    def __init__(self, x: Images) -> None:
        self.shapes, self.terms = [x], list[Term]()

    @property
    def last(self) -> int:
        return len(self.shapes) - 1

    @property
    def shape(self) -> Images:
        return self.shapes[-1]

    def node(self, shape: Images, *arrivals: tuple[int, Convolution]) -> None:
        """``arrivals``: of each operation the node that it takes, and its convolution."""
        self.shapes.append(shape)
        self.terms += [Term(source, self.last, convolution) for source, convolution in arrivals]

    def stem(self, channels: int) -> None:
        self.node(replace(self.shape, channels=channels), (self.last, Convolution(3, Norm(affine=True), relu=False)))

    def reduction(self) -> None:
        x, norm, source = self.shape, Norm(affine=True), self.last
        y = replace(traffic.half(x), channels=2 * x.channels)
        self.node(y, (source, Convolution(3, norm, stride=2)))
        shortcut = Convolution(1, None, relu=False, halved=True)
        self.node(y, (self.last, Convolution(3, norm)), (source, shortcut))

    def cell(self, ops: list[int]) -> None:
        nodes = [self.last]
        for target in range(1, NUM_NODES):
            self.node(self.shape)
            nodes.append(self.last)
            for edge, op in enumerate(ops):
                if EDGES[edge][0] != target or op == ZERO_OP:
                    continue
                convolution = Convolution(KERNELS[op]) if op in KERNELS else None
                self.terms.append(Term(nodes[EDGES[edge][1]], self.last, convolution, gated=True, pooled=op == POOL))

    def graph(self, element: int, merges: bool) -> Graph:
        """Without what does not reach the last node. ``merges``: a node where nothing but another one arrives is that one."""
        live, terms = {self.last}, list[Term]()
        for term in reversed(self.terms):
            if term.target in live:
                live.add(term.source)
                terms.insert(0, term)
        same = list(range(len(self.shapes)))
        for node in range(self.last if merges else 0):
            into = [term for term in terms if term.target == node]
            if len(into) == 1 and into[0].convolution is None and not into[0].pooled:
                same[node] = same[into[0].source]
        merged = [replace(term, source=same[term.source]) for term in terms if same[term.target] == term.target]
        return Graph(tuple(self.shapes), tuple(merged), element)


def step(case: Case, ops: list[int], to_gates: bool, element: int) -> list[Work]:
    """The body, both passes; without the head and the loss, which are plain PyTorch."""
    builder = Builder(Images(case.batch_size, case.image_size, case.image_size, 3))
    builder.stem(case.channels)
    for stage in range(3):
        if stage > 0:
            builder.reduction()
        for _ in range(case.cells):
            builder.cell(ops)
    graph = builder.graph(element, merges=not to_gates)
    return [*graph.forward(), *graph.backward(Wanted(to_gates, not to_gates))]
