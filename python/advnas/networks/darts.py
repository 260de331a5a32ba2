"""The networks of DARTS for images (Liu, Simonyan & Yang, ICLR 2019): normal cells in three stages, and between them reduction
cells, which halve the image and double the channels.

Parameter names are those of the authors' supernet, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from typing_extensions import Self

from advnas.networks.nasbench201 import NUM_STAGES, checked
from advnas_ext import Path, fidelity
from advnas_ext.darts import DARTS, NUM_EDGES, NUM_INNER, DartsCell, State
from advnas_ext.fidelity import Obstacle
from advnas_ext.native import Block, Graph, Prologue, convolution, eagerly, linear, run_if_native

STEM_CHANNELS = 3  # times the channels of the first cells


class DartsNetwork(Block):
    """The supernet: a stem, cells, and a linear classifier of the mean over the pixels.

    Paths have 28 edges: 14 of the normal cells, then 14 of the reduction cells.

    Args:
        channels: of the nodes in the first stage; the second and third have two and four times as many.
        cells: normal ones in each stage: 2 for the 8 cells of the authors' search, 6 for the 20 of their evaluation.
        in_channels: of the images.
        num_classes: of the output.
        affine, track_running_stats: of batch norm in the cells. In the stem it is affine and keeps running statistics.
        ops: candidate operations, among ``advnas_ext.darts.DARTS``.
    """

    def __init__(
        self,
        channels: int = 16,
        cells: int = 2,
        in_channels: int = 3,
        num_classes: int = 10,
        affine: bool = False,
        track_running_stats: bool = True,
        ops: Sequence[str] = DARTS,
    ) -> None:
        super().__init__()
        self.path: Path | None = None
        width = STEM_CHANNELS * channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        before, last, reduced = width, width, False
        for stage in range(NUM_STAGES):
            for place in range(0 if stage else 1, cells + 1):
                reduces = place == 0
                nodes = channels << stage
                first_edge = NUM_EDGES if reduces else 0
                self.cells.append(
                    DartsCell((before, last), nodes, ops, first_edge, reduces, reduced, affine, track_running_stats)
                )
                before, last, reduced = last, NUM_INNER * nodes, reduces
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor, path: Path | None = None) -> Tensor:
        """Class scores of images.

        Args:
            x: [batch, in_channels, height, width], any height and width. channels_last is the native layout.
            path: of all cells; None: the one of :meth:`fix`.

        Returns:
            [batch, num_classes], before the softmax.

        Raises:
            ValueError: ``x`` has another shape, ``path`` does not fit the cells, or there is none.
        """
        path = checked("DartsNetwork", x, self.stem, self.path if path is None else path)
        if path.num_edges != 2 * NUM_EDGES:
            raise ValueError(f"DartsNetwork: path must have {2 * NUM_EDGES} edges, got {path.num_edges}")
        scores = eagerly(run_if_native, [self], x, path)
        return self.plain(x, path) if scores is None else scores.mean((2, 3)) + self.classifier.bias

    def plain(self, x: Tensor, path: Path | None) -> Tensor:
        """The same in plain PyTorch."""
        assert path is not None
        before = last = self.stem(x)
        for cell in self._cells():
            before, last = last, cell(before, last, path)
        return self.classifier(self.global_pooling(last).flatten(1))

    def obstacle(self, path: Path | None) -> Obstacle:
        stem = fidelity.sequence_obstacle(self.stem, (fidelity.CONVOLUTION, fidelity.BATCH_NORM))
        head = fidelity.GLOBAL_MEAN.obstacle(self.global_pooling) or fidelity.LINEAR.obstacle(self.classifier)
        if stem or head:
            return stem or head
        for place, cell in enumerate(self._cells()):
            if obstacle := cell.obstacle(path):
                return f"cells.{place}: {obstacle}"
        return None

    def add_to(self, graph: Graph, source: int, path: Path | None) -> int:
        """The output are scores of pixels, whose mean, with the bias, is the network's."""
        assert path is not None
        conv, norm = self.stem
        state: State = [graph.node([([convolution(Prologue.NOTHING, conv, norm)], source, -1)])]  # type: ignore[arg-type]
        before = state
        for cell in self._cells():
            before, state = state, cell.add_to(graph, before, state, path)
        weight = self.classifier.weight[:, :, None, None].chunk(len(state), 1)
        return graph.node(
            [([linear(Prologue.NOTHING, part)], node, -1) for part, node in zip(weight, state, strict=True)]
        )

    def fix(self, ops: Tensor) -> Self:
        """Make it the network of one architecture: discard the parameters of every other candidate.

        Args:
            ops: int64 [28], places among the candidates.
        """
        places = ops.tolist()
        for cell in self._cells():
            cell.keep_only(places[cell.first_edge : cell.first_edge + NUM_EDGES])
        self.path = Path.from_ops(ops, requires_grad=False)
        return self

    def _cells(self) -> Iterable[DartsCell]:
        return self.cells  # type: ignore[return-value]
