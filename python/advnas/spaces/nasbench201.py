"""NAS-Bench-201 (Dong & Yang, ICLR 2020): cells of four nodes, six edges and five operations, and the network around them.

Parameter names are those of xautodl's TinyNetwork, so that its supernets load.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advnas_ext import NAS_BENCH_201, OnePathCell, Path
from advnas_ext.head import NormReluMean
from advnas_ext.native import Before, Block, Graph, convolution, run_blocks
from advnas_ext.operations import ReLUConvBN

OPS = NAS_BENCH_201
NUM_NODES = 4
EDGES = tuple((target, source) for target in range(1, NUM_NODES) for source in range(target))
NUM_EDGES = len(EDGES)
ZERO_OP = OPS.index("none")

_FORM = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
_PATTERN = re.escape(_FORM).replace("op", "[^|~+]+")


def parse_arch(arch: str) -> Tensor:
    """The operations of a cell given as a string.

    Args:
        arch: such as ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|none~2|``: for each node after the input,
            the operation on its edge from every earlier node.

    Returns:
        int64 [6], indices into ``OPS``, edges in the order 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.

    Raises:
        ValueError: the string is malformed or names an unknown operation.
    """
    if not isinstance(arch, str) or not re.fullmatch(_PATTERN, arch):
        raise ValueError(f"architecture: must have the form {_FORM}, got {arch!r}")
    names = re.findall(r"([^|~+]+)~", arch)
    for op in names:
        if op not in OPS:
            close = difflib.get_close_matches(op, OPS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose among {', '.join(OPS)}"
            raise ValueError(f"architecture: unknown operation {op!r}; {hint}")
    return torch.tensor([OPS.index(op) for op in names])


def format_arch(ops: Tensor) -> str:
    """The string of a cell: the inverse of :func:`parse_arch`.

    Args:
        ops: integers [6], indices into ``OPS``.

    Raises:
        ValueError: the shape is another or an index out of range.
    """
    if ops.shape != (NUM_EDGES,) or ops.is_floating_point() or not all(0 <= op < len(OPS) for op in ops.tolist()):
        raise ValueError(f"architecture: needs {NUM_EDGES} integers from 0 to {len(OPS) - 1}, got {ops.tolist()}")
    names = {edge: OPS[op] for edge, op in zip(EDGES, ops.tolist(), strict=True)}
    nodes = ["".join(f"{names[t, s]}~{s}|" for s in range(t)) for t in range(1, NUM_NODES)]
    return "+".join(f"|{node}" for node in nodes)


class Reduction(Block):
    """The residual block between stages: halves the image, doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(channels, 2 * channels, 3, stride=2)
        self.conv_b = ReLUConvBN(2 * channels, 2 * channels, 3)
        # ceil_mode: an odd size is rounded up by conv_a.
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True)
        self.downsample = nn.Sequential(pool, nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        half = graph.node([(self.conv_a.steps(), source, -1)])
        _, conv = self.downsample
        shortcut = convolution(Before.MEAN_2X2, conv)  # type: ignore[arg-type]
        return graph.node([(self.conv_b.steps(), half, -1), ([shortcut], source, -1)])


class LightReduction(Block, nn.Sequential):
    """Mean of 2x2 pixels, 1x1 convolution, batch norm: halves the image, doubles the channels, and leaves the work to the cells."""

    def __init__(self, channels: int) -> None:
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True)  # an odd size is rounded up, as by Reduction
        super().__init__(pool, nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.BatchNorm2d(2 * channels))

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        return nn.Sequential.forward(self, x)

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        _, conv, norm = self
        return graph.node([([convolution(Before.MEAN_2X2, conv, norm)], source, -1)])  # type: ignore[arg-type]


# What may lie between the stages of a supernet. NAS-Bench-201's own networks have residual blocks.
REDUCTIONS: dict[str, type[nn.Module]] = {"residual": Reduction, "light": LightReduction}


class Stem(Block, nn.Sequential):
    """3x3 convolution and batch norm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        return nn.Sequential.forward(self, x)

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        conv, norm = self
        return graph.node([([convolution(Before.NOTHING, conv, norm)], source, -1)])  # type: ignore[arg-type]


class Network(nn.Module):
    """The supernet: a stem, three stages of cells with a reduction block between them, and a linear classifier.

    Args:
        channels: of the first stage; the second and third have two and four times as many.
        cells: in each stage.
        in_channels: of the images.
        num_classes: of the output.
        affine, track_running_stats: of batch norm in the cells. Elsewhere it is affine and keeps running statistics.
        ops: candidate operations, those of the space or some of them.
        reduction: name of the reduction block, in ``REDUCTIONS``.
    """

    def __init__(
        self,
        channels: int = 16,
        cells: int = 5,
        in_channels: int = 3,
        num_classes: int = 10,
        affine: bool = False,
        track_running_stats: bool = False,
        ops: Sequence[str] = OPS,
        reduction: str = "residual",
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, channels)
        self.cells = nn.ModuleList()
        for stage in range(3):
            width = channels << stage
            if stage > 0:
                self.cells.append(REDUCTIONS[reduction](width // 2))
            self.cells.extend(OnePathCell(width, ops, NUM_NODES, affine, track_running_stats) for _ in range(cells))
        self.lastact = NormReluMean(4 * channels)
        self.classifier = nn.Linear(4 * channels, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, path: Path) -> Tensor:
        """Class scores of images.

        Args:
            x: [batch, in_channels, height, width], any height and width. channels_last is the native layout.
            path: of every cell.

        Returns:
            [batch, num_classes], before the softmax.

        Raises:
            ValueError: ``x`` has another shape, or ``path`` does not fit the cells.
        """
        in_channels = self.stem[0].in_channels
        if x.dim() != 4 or x.shape[1] != in_channels:
            raise ValueError(f"Network: x must have shape [batch, {in_channels}, height, width], got {list(x.shape)}")
        x = run_blocks([self.stem, *self.cells], x, path)
        return self.classifier(self.lastact(x))

    def keep_only(self, ops: Tensor) -> None:
        """Discard the parameters of every candidate but ``ops`` (int64 [6], places among the candidates)."""
        for cell in self.cells:
            if isinstance(cell, OnePathCell):
                cell.keep_only(ops)


class FixedNetwork(Network):
    """The network of one architecture, to be trained from scratch: batch norm is affine and keeps running statistics."""

    def __init__(
        self, arch: str, channels: int = 16, cells: int = 5, in_channels: int = 3, num_classes: int = 10
    ) -> None:
        ops = parse_arch(arch)
        super().__init__(channels, cells, in_channels, num_classes, affine=True, track_running_stats=True)
        self.path = Path.from_ops(ops, requires_grad=False)
        self.keep_only(ops)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the path is fixed
        """Class scores [batch, num_classes] of images [batch, in_channels, height, width]."""
        return super().forward(x, self.path)


@dataclass(frozen=True)
class Cost:
    """What a network costs: trainable parameters, and multiply-adds for one image, the benchmark's FLOPs."""

    params: int
    flops: int


def cost(
    arch: str, channels: int = 16, cells: int = 5, image_size: int = 32, in_channels: int = 3, num_classes: int = 10
) -> Cost:
    """Parameters and FLOPs of :class:`FixedNetwork`, counted as NAS-Bench-201 does: FLOPs of convolutions and of the
    classifier, one for a multiplication and its addition.

    The benchmark's own numbers are these, but for 150 of its 15,625 cells, where it has those of another cell that computes the
    same function.

    Args:
        image_size: height and width of the images.
        Otherwise as in :class:`Network`.

    Raises:
        ValueError: ``arch`` is malformed.
    """
    ops = [OPS[op] for op in parse_arch(arch).tolist()]
    params = flops = 0
    size, width = image_size, channels

    def convolution(inputs: int, outputs: int, kernel: int, norm: bool = True) -> None:
        nonlocal params, flops
        weights = inputs * outputs * kernel**2
        params += weights + 2 * outputs * norm
        flops += weights * size**2

    convolution(in_channels, width, 3)
    for stage in range(3):
        if stage > 0:
            size, width = (size + 1) // 2, 2 * width
            convolution(width // 2, width, 3)
            convolution(width, width, 3)
            convolution(width // 2, width, 1, norm=False)
        for op in ops * cells:
            if op.startswith("nor_conv"):
                convolution(width, width, int(op[-1]))
    params += 2 * width + width * num_classes + num_classes
    flops += width * num_classes + num_classes
    return Cost(params, flops)
