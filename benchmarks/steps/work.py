"""What a path asks of a machine: its convolutions, their multiply-adds, and the least bytes that a step must move.

The model of the bytes. float32; each activation is read once by each of its consumers and written once; nothing that a step wrote
earlier is still in a cache; what can be fused is fused.

- Forward, ReLU-Conv-BN: its input x is read; its output y is written, and read again, since batch norm needs moments of all of y
  before it can add the normalised y to a node. Identity and pooling read x. Each node that reaches the output is written.
- Backward, ReLU-Conv-BN: the gradient of its node and y are read for the two sums of batch norm (the gradient of the gate is one of
  them), and read again for the gradient of the convolution's output; x is read for the ReLU's mask and for the gradient of the
  weight. Where neither the input nor the weight needs a gradient, only the first reading remains. Identity and pooling read the
  gradient of their node, and in an architecture step x. The gradient of each node that was read is written.
- A reduction block is two ReLU-Conv-BN, a pooling of its input and a 1x1 convolution of that, which adds to the output. The head
  reads its input twice, reads it again in the backward pass and writes its gradient.
- Each convolution reads its weight in either pass, and a weight step writes its gradient. The classifier, the images' pooling and
  vectors of a channel's size are left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from advnas.spaces.nasbench201 import NASBENCH201

EDGES, NUM_EDGES = NASBENCH201.edges, NASBENCH201.num_edges
NUM_NODES, OPS = NASBENCH201.num_nodes, NASBENCH201.ops
ZERO_OP = OPS.index("none")
KERNELS = {OPS.index("nor_conv_1x1"): 1, OPS.index("nor_conv_3x3"): 3}
FLOAT = 4


@dataclass(frozen=True)
class Case:
    """A supernet and a batch."""

    channels: int = 16
    cells: int = 5
    batch_size: int = 64
    image_size: int = 32
    seed: int = 0

    def __str__(self) -> str:
        return f"C = {self.channels}, N = {self.cells}, batch {self.batch_size}, {self.image_size}x{self.image_size}"


@dataclass(frozen=True)
class Convolution:
    """A square convolution that pads by half its kernel.

    Attributes:
        size: height and width of the output.
        norm: whether batch norm follows.
        after_weights, after_gates: whether its input depends on weights, or on gates: whether a weight step, or an architecture
            step, needs the gradient of its input.
    """

    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1
    norm: bool = True
    after_weights: bool = True
    after_gates: bool = True

    def wants(self, to_gates: bool) -> tuple[bool, bool]:
        """Whether a step needs the gradient of the input, and of the weight."""
        return (self.after_gates, False) if to_gates else (self.after_weights, True)

    def multiply_adds(self, batch: int, to_gates: bool) -> int:
        """Of one step: forward and each wanted gradient cost the same."""
        once = batch * self.inputs * self.outputs * self.kernel**2 * self.size**2
        return once * (1 + sum(self.wants(to_gates)))

    def least_bytes(self, batch: int, to_gates: bool) -> int:
        """Of one step, without what belongs to nodes: see the top of this file."""
        x = FLOAT * batch * self.inputs * (self.size * self.stride) ** 2
        y = FLOAT * batch * self.outputs * self.size**2
        weight = FLOAT * self.inputs * self.outputs * self.kernel**2
        to_input, to_weight = self.wants(to_gates)
        forward = x + weight + (2 * y if self.norm else 0)
        if not (to_input or to_weight):
            return forward + (2 * y if self.after_weights else 0)  # the stem has no gate
        backward = (4 * y if self.norm else y) + (x if self.norm or to_weight else 0) + weight * (1 + to_weight)
        return forward + backward


def live_edges(ops: list[int]) -> list[int]:
    """The edges of a path that run: not the zero operation, and into a node from which the output is reached."""
    reaches = {NUM_NODES - 1}
    live = []
    # In reverse, every consumer of a node is seen before what the node consumes.
    for edge in reversed(range(len(EDGES))):
        target, source = EDGES[edge]
        if target in reaches and ops[edge] != ZERO_OP:
            reaches.add(source)
            live.append(edge)
    return live[::-1]


def convolutions(ops: list[int], case: Case) -> Counter[Convolution]:
    """Every convolution that a step on this path needs, and how often."""
    width, size = case.channels, case.image_size
    found = Counter([Convolution(3, width, size, 3, after_weights=False, after_gates=False)])
    for stage in range(3):
        if stage > 0:
            size, width = (size + 1) // 2, 2 * width
            found[Convolution(width // 2, width, size, 3, stride=2)] += 1
            found[Convolution(width, width, size, 3)] += 1
            found[Convolution(width // 2, width, size, 1, norm=False)] += 1
        for edge in live_edges(ops):
            if ops[edge] in KERNELS:
                inner = Convolution(width, width, size, KERNELS[ops[edge]])
                # No gate comes before the input of the very first cell.
                first = int(stage == 0 and EDGES[edge][1] == 0)
                found[inner] += case.cells - first
                if first:
                    found[Convolution(width, width, size, inner.kernel, after_gates=False)] += 1
    return +found


def multiply_adds(ops: list[int], case: Case, to_gates: bool) -> int:
    """Of a step's convolutions."""
    found = convolutions(ops, case)
    return sum(count * each.multiply_adds(case.batch_size, to_gates) for each, count in found.items())


def least_bytes(ops: list[int], case: Case, to_gates: bool) -> int:
    """That a step must move under the model at the top of this file."""
    found = convolutions(ops, case)
    total = sum(count * each.least_bytes(case.batch_size, to_gates) for each, count in found.items())
    edges = live_edges(ops)
    plain = sum(ops[edge] not in KERNELS for edge in edges)
    nodes = len({EDGES[edge][0] for edge in edges} | {NUM_NODES - 1})
    sources = len({EDGES[edge][1] for edge in edges})
    for stage in range(3):
        node = _node_bytes(case, stage)
        total += case.cells * node * (nodes + sources + plain * (3 if to_gates else 2))
        if stage > 0:
            before = 2 * node  # the block's input: half the channels, four times the pixels
            # Two nodes and the gradient of one; the pooled image, a quarter of the input, and its gradient, both written and read.
            total += 3 * node + 2 * before + 4 * (before // 4)
    return total + _node_bytes(case, 0) + 4 * _node_bytes(case, 2)  # the stem's output, and the head


def _node_bytes(case: Case, stage: int) -> int:
    size = -(-case.image_size // 2**stage)
    return FLOAT * case.batch_size * (case.channels << stage) * size**2
