"""The supernet as one writes it in plain PyTorch, independent of this package."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.steps.work import EDGES, NUM_NODES, OPS


class PlainZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class PlainReLUConvBN(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, affine: bool = False) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not affine)
        norm = nn.BatchNorm2d(outputs, affine=affine, track_running_stats=affine)
        self.op = nn.Sequential(nn.ReLU(), convolution, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


PLAIN_OPS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: PlainZero(),
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: PlainReLUConvBN(channels, channels, 1),
    "nor_conv_3x3": lambda channels: PlainReLUConvBN(channels, channels, 3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


class PlainCell(nn.Module):
    """Runs the picked operation of each edge and multiplies its output by the edge's gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {f"{target}<-{source}": nn.ModuleList(PLAIN_OPS[op](channels) for op in OPS) for target, source in EDGES}
        )

    def forward(self, x: Tensor, ops: list[int], gates: Tensor) -> Tensor:
        nodes = [x]
        for target in range(1, NUM_NODES):
            into = [(edge, source) for edge, (node, source) in enumerate(EDGES) if node == target]
            first, *others = (self.edges[f"{target}<-{j}"][ops[edge]](nodes[j]) * gates[edge] for edge, j in into)
            nodes.append(sum(others, first))
        return nodes[-1]


class PlainReduction(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = PlainReLUConvBN(channels, 2 * channels, 3, stride=2, affine=True)
        self.conv_b = PlainReLUConvBN(2 * channels, 2 * channels, 3, affine=True)
        pool = nn.AvgPool2d(2, ceil_mode=True)
        self.downsample = nn.Sequential(pool, nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class PlainNetwork(nn.Module):
    """The supernet as one writes it in plain PyTorch, independent of this package. Its ``state_dict`` has the same keys."""

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        stages: list[nn.Module] = [PlainCell(channels) for _ in range(cells)]
        for width in (2 * channels, 4 * channels):
            stages += [PlainReduction(width // 2), *(PlainCell(width) for _ in range(cells))]
        self.cells = nn.ModuleList(stages)
        self.lastact = nn.Sequential(nn.BatchNorm2d(4 * channels), nn.ReLU())
        self.classifier = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor, ops: list[int], gates: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, ops, gates) if isinstance(cell, PlainCell) else cell(x)
        return self.classifier(self.lastact(x).mean((2, 3)))
