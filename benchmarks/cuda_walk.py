"""Everything that a step of ours launches on a GPU, in order: csrc/cuda/pass_{forward,backward}.cpp without the work. Held against
what they really launch by tests/test_cuda_model.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cuda_traffic as traffic
from cuda_shapes import FLOAT, Images
from cuda_traffic import NO_PARAMETERS, NodeBackward, Norm, Work
from work import KERNELS, Case, live_edges

from advnas.spaces.nasbench201 import EDGES, NUM_NODES, OPS

SKIP = OPS.index("skip_connect")


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
        return self.kernel == 1 and self.stride == 1 and not self.halved

    @property
    def takes_relu(self) -> bool:
        return self.relu and not self.own


@dataclass(frozen=True)
class Term:
    """An operation that runs; identity or pooling without a convolution. ``gated``: has a gate whose gradient may be wanted."""

    source: int
    target: int
    convolution: Convolution | None = None
    gated: bool = False


@dataclass(frozen=True)
class Wanted:
    x: bool
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
                maps = sum(term.convolution is not None for term in into)
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
            yield traffic.pointwise_forward(x, y.channels, self.element, convolution.norm)
        else:
            if convolution.halved:
                yield traffic.mean_2x2(x, self.element, backward=False)
            yield traffic.convolution(_taken(x, convolution), y, convolution.kernel, self.element)
            if convolution.norm is not None:
                yield traffic.norm_statistics(y, self.element, convolution.norm)
        if convolution.norm is None:
            yield traffic.norm_fixed(y.channels)
        elif convolution.norm.affine and self.element < FLOAT:
            yield traffic.casts(y.channels, 6)  # two parameters, two running statistics there and back

    def backward(self, wanted: Wanted) -> Iterator[Work]:
        if wanted.gates:
            yield traffic.zeros(len(EDGES))
        for node in reversed(self.live):
            to_input = node < self.last and (node > 0 or wanted.x)
            for term in self.out_of(node):
                yield from self._convolve_backward(term, to_input, wanted.weight)
            yield from self._gather(node, to_input, wanted)

    def _convolve_backward(self, term: Term, to_input: bool, to_weight: bool) -> Iterator[Work]:
        convolution, x, y = term.convolution, self.shapes[term.source], self.shapes[term.target]
        if convolution is None or not (to_input or to_weight):
            return
        if convolution.own:
            yield from traffic.pointwise_backward(x, y.channels, self.element, to_input, to_weight)
            return
        if convolution.halved:
            yield traffic.mean_2x2(x, self.element, backward=False)
        yield traffic.norm_gradient(y, self.element)
        taken = _taken(x, convolution)
        yield traffic.convolution_backward(taken, y, convolution.kernel, self.element, to_input + to_weight)
        if convolution.halved and to_input:
            yield traffic.mean_2x2(x, self.element, backward=True)

    def _gather(self, node: int, to_input: bool, wanted: Wanted) -> Iterator[Work]:
        out_of, into = self.out_of(node), self.into(node)
        gates = [wanted.gates and term.gated and term.convolution is None for term in out_of]
        sources = [to_input or (wanted.gates and term.gated and term.convolution is None) for term in out_of]
        norms = tuple(term.convolution.norm or NO_PARAMETERS for term in into if term.convolution is not None)
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
            sum(gates),
            start=node == self.last,
            has_x=has_x,
            needs_x=masked or any(gates),
            writes=to_input,
            norms=norms,
        ).work()


def _taken(x: Images, convolution: Convolution) -> Images:
    """What the library's convolution takes of a node."""
    return replace(x, height=x.height // 2, width=x.width // 2) if convolution.halved else x


def stem(images: Images, channels: int, element: int) -> Graph:
    y = replace(images, channels=channels)
    return Graph((images, y), (Term(0, 1, Convolution(3, Norm(affine=True), relu=False)),), element)


def reduction(x: Images, element: int) -> Graph:
    y = Images(x.batch, x.height // 2, x.width // 2, 2 * x.channels)
    norm = Norm(affine=True)
    shortcut = Convolution(1, None, relu=False, halved=True)
    terms = (Term(0, 1, Convolution(3, norm, stride=2)), Term(1, 2, Convolution(3, norm)), Term(0, 2, shortcut))
    return Graph((x, y, y), terms, element)


def cell(x: Images, ops: list[int], element: int) -> Graph:
    terms = []
    for edge in live_edges(ops):
        target, source = EDGES[edge]
        convolution = Convolution(KERNELS[ops[edge]]) if ops[edge] in KERNELS else None
        terms.append(Term(source, target, convolution, gated=True))
    return Graph((x,) * NUM_NODES, tuple(terms), element)


def step(case: Case, ops: list[int], to_gates: bool, element: int) -> list[Work]:
    """Stem, cells and reduction blocks, both passes; without the head and the loss, which are plain PyTorch."""
    size, channels = case.image_size, case.channels
    x = Images(case.batch_size, size, size, channels)
    graphs = [(stem(replace(x, channels=3), channels, element), False)]
    for stage in range(3):
        if stage > 0:
            graphs.append((reduction(x, element), False))
            x = graphs[-1][0].shapes[-1]
        graphs += [(cell(x, ops, element), True)] * case.cells
    found: list[Work] = []
    for place, (graph, gated) in enumerate(graphs):
        found += graph.forward()
        # The stem has no gate before it, the first cell none before its input; images have no gradient.
        if to_gates and place == 0:
            continue
        wanted = Wanted(place > int(to_gates), to_gates and gated, not to_gates)
        found += graph.backward(wanted)
        if (
            wanted.x and 0 not in graph.live
        ):  # autograd makes zeros of the missing gradient, and they are brought into our layout
            found += [traffic.zeros(graph.shapes[0].size), traffic.copy(graph.shapes[0].size, element)]
        if wanted.gates and place > 1:
            found.append(traffic.add(len(EDGES)))  # the gradients of the gates in all cells
    return found
