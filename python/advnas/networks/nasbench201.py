"""The networks of NAS-Bench-201 (Dong & Yang, ICLR 2020): three stages of cells, with blocks between them that halve the image.

Parameter names are those of xautodl's TinyNetwork, so that its supernets load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from typing_extensions import Self

from advnas_ext import NAS_BENCH_201, OnePathCell, Path, fidelity
from advnas_ext.fidelity import Obstacle
from advnas_ext.head import NormReluMean
from advnas_ext.native import Block, Graph, Prologue, convolution, operation_obstacle, run_blocks
from advnas_ext.operations import ReLUConvBN

NUM_STAGES = 3


class Reduction(Block):
    """The residual block between stages: halves the image, doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(channels, 2 * channels, 3, stride=2)
        self.conv_b = ReLUConvBN(2 * channels, 2 * channels, 3)
        # ceil_mode: an odd size is rounded up by conv_a.
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True)
        self.downsample = nn.Sequential(pool, nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def obstacle(self, path: Path | None) -> Obstacle:
        shortcut = fidelity.sequence_obstacle(self.downsample, (fidelity.MEAN_2X2, fidelity.CONVOLUTION))
        return shortcut or operation_obstacle(self.conv_a) or operation_obstacle(self.conv_b)

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        half = graph.node([(self.conv_a.steps(), source, -1)])
        _, conv = self.downsample
        shortcut = convolution(Prologue.MEAN_2X2, conv)  # type: ignore[arg-type]
        return graph.node([(self.conv_b.steps(), half, -1), ([shortcut], source, -1)])


class LightReduction(Block, nn.Sequential):
    """Mean of 2x2 pixels, 1x1 convolution, batch norm: halves the image, doubles the channels, and leaves the work to the cells."""

    def __init__(self, channels: int) -> None:
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True)  # an odd size is rounded up, as by Reduction
        super().__init__(pool, nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.BatchNorm2d(2 * channels))

    def obstacle(self, path: Path | None) -> Obstacle:
        return fidelity.layers_obstacle(self, (fidelity.MEAN_2X2, fidelity.CONVOLUTION, fidelity.BATCH_NORM))

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        return nn.Sequential.forward(self, x)

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        _, conv, norm = self
        return graph.node([([convolution(Prologue.MEAN_2X2, conv, norm)], source, -1)])  # type: ignore[arg-type]


# What may lie between the stages of a supernet. NAS-Bench-201's own networks have residual blocks.
REDUCTIONS: dict[str, type[nn.Module]] = {"residual": Reduction, "light": LightReduction}


class Stem(Block, nn.Sequential):
    """3x3 convolution and batch norm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def obstacle(self, path: Path | None) -> Obstacle:
        return fidelity.layers_obstacle(self, (fidelity.CONVOLUTION, fidelity.BATCH_NORM))

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        return nn.Sequential.forward(self, x)

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        conv, norm = self
        return graph.node([([convolution(Prologue.NOTHING, conv, norm)], source, -1)])  # type: ignore[arg-type]


def checked(network: str, x: Tensor, stem: nn.Sequential, path: Path | None) -> Path:
    """The path, if there is one and ``x`` are images for the stem.

    Raises:
        ValueError: they are not; it names the network.
    """
    if path is None:
        raise ValueError(f"{network}: path is missing; give one, or fix the network to an architecture with .fix(ops)")
    in_channels = stem[0].in_channels
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(f"{network}: x must have shape [batch, {in_channels}, height, width], got {list(x.shape)}")
    return path


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
        num_nodes: of each cell, input and output included.
        baseline: of the advantages, as for :class:`advnas_ext.OnePathCell`.
    """

    def __init__(
        self,
        channels: int = 16,
        cells: int = 5,
        in_channels: int = 3,
        num_classes: int = 10,
        affine: bool = False,
        track_running_stats: bool = False,
        ops: Sequence[str] = NAS_BENCH_201,
        reduction: str = "residual",
        num_nodes: int = 4,
        baseline: str | None = None,
    ) -> None:
        super().__init__()
        self.path: Path | None = None
        self.stem = Stem(in_channels, channels)
        self.cells = nn.ModuleList()
        for stage in range(NUM_STAGES):
            width = channels << stage
            if stage > 0:
                self.cells.append(REDUCTIONS[reduction](width // 2))
            cell = partial(OnePathCell, width, ops, num_nodes, affine, track_running_stats, baseline)
            self.cells.extend(cell() for _ in range(cells))
        self.lastact = NormReluMean(4 * channels)
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, x: Tensor, path: Path | None = None) -> Tensor:
        """Class scores of images.

        Args:
            x: [batch, in_channels, height, width], any height and width. channels_last is the native layout.
            path: of every cell; None: the one of :meth:`fix`.

        Returns:
            [batch, num_classes], before the softmax.

        Raises:
            ValueError: ``x`` has another shape, ``path`` does not fit the cells, or there is none.
        """
        path = checked("Network", x, self.stem, self.path if path is None else path)
        x = run_blocks([self.stem, *self.cells], x, path)
        return self.classifier(self.lastact(x))

    def fix(self, ops: Tensor) -> Self:
        """Make it the network of one architecture: discard the parameters of every other candidate.

        Args:
            ops: int64 [num_edges], places among the candidates.
        """
        for cell in self.cells:
            if isinstance(cell, OnePathCell):
                cell.keep_only(ops)
        self.path = Path.from_ops(ops, requires_grad=False)
        return self
