"""The candidate operations: a module each, in plain PyTorch. They hold the parameters and say what the operation is.

Parameter names are those of xautodl's NAS-Bench-201 and DARTS operations, so that its checkpoints load. ``steps()`` are the native
pieces that the fused executor runs, one after the other, in place of ``forward``, as long as ``obstacle()`` finds the layers that
they stand for; a module without them runs as it is written, through the plain executor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from advnas_ext import fidelity, native
from advnas_ext.fidelity import Obstacle
from advnas_ext.native import Fused, Prologue, Step

NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Zero(Fused):
    """Contributes nothing, whatever its input holds; of the size that others of this stride have."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def obstacle(self) -> Obstacle:
        return None

    def steps(self) -> Sequence[Step]:
        return (native.ZERO if self.stride == 1 else native.HALVED_ZERO,)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class Identity(Fused):
    def obstacle(self) -> Obstacle:
        return None

    def steps(self) -> Sequence[Step]:
        return (native.IDENTITY,)

    def forward(self, x: Tensor) -> Tensor:
        return x


class AvgPool(Fused):
    """3x3, stride 1; at the border the mean is over the pixels that exist."""

    def obstacle(self) -> Obstacle:
        return fidelity.layers_obstacle(self, [fidelity.AVG_POOL])

    def steps(self) -> Sequence[Step]:
        return (native.AVG_POOL,)

    def __init__(self) -> None:
        super().__init__()
        self.op = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class MaxPool(Fused):
    """3x3, stride 1; at the border the maximum is among the pixels that exist. The gradient goes to the first of equal values."""

    def obstacle(self) -> Obstacle:
        return fidelity.layers_obstacle(self, [fidelity.MAX_POOL])

    def steps(self) -> Sequence[Step]:
        return (native.MAX_POOL,)

    def __init__(self) -> None:
        super().__init__()
        self.op = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ReLUConvBN(Fused):
    """ReLU, convolution padded by half its size, batch norm.

    The convolution has a bias exactly where batch norm has none (``affine=False``). Batch statistics cancel it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self._stride = stride
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=not affine),
            nn.BatchNorm2d(out_channels, affine=affine, track_running_stats=track_running_stats),
        )

    def obstacle(self) -> Obstacle:
        layers = fidelity.RELU, fidelity.convolution(self._stride), fidelity.BATCH_NORM
        return fidelity.sequence_obstacle(self._modules["op"], layers)  # type: ignore[arg-type]

    def steps(self) -> Sequence[Step]:
        op: nn.Sequential = self._modules["op"]  # type: ignore[assignment]  # self.op searches: see native.convolution
        _, conv, norm = op
        return (native.convolution(Prologue.RELU, conv, norm),)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SeparableConv(Fused):
    """ReLU, depthwise convolution, 1x1 convolution, batch norm; ``repeats`` times. DARTS (Liu et al. 2019) has it twice, and
    once with dilation 2. The first depthwise convolution has the stride.

    Args:
        bias: of the 1x1 convolutions; None: where batch norm has none.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilation: int,
        repeats: int,
        affine: bool,
        track_running_stats: bool,
        stride: int = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        padding, has_bias = kernel_size // 2 * dilation, not affine if bias is None else bias
        self._kinds = [(channels, dilation, stride if first else 1) for first in [True] + [False] * (repeats - 1)]
        self.op = nn.Sequential()
        for _, _, step in self._kinds:
            self.op.append(nn.ReLU())
            self.op.append(
                nn.Conv2d(
                    channels, channels, kernel_size, step, padding, dilation=dilation, groups=channels, bias=False
                )
            )
            self.op.append(nn.Conv2d(channels, channels, 1, bias=has_bias))
            self.op.append(nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats))

    def obstacle(self) -> Obstacle:
        layers = []
        for kind in self._kinds:
            layers += [fidelity.RELU, fidelity.depthwise(kind), fidelity.pointwise(kind[0]), fidelity.BATCH_NORM]
        return fidelity.sequence_obstacle(self._modules["op"], layers)  # type: ignore[arg-type]

    def steps(self) -> Sequence[Step]:
        op = list(self.op)
        return tuple(
            native.convolution(Prologue.RELU, op[i + 2], op[i + 3], depthwise=op[i + 1])  # type: ignore[arg-type]
            for i in range(0, len(op), 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DualSeparableConv(Fused):
    """Two separable convolutions, as xautodl names their parts."""

    def __init__(self, channels: int, kernel_size: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        self.op_a, self.op_b = (
            SeparableConv(channels, kernel_size, 1, 1, affine, track_running_stats) for _ in range(2)
        )

    def obstacle(self) -> Obstacle:
        return next(filter(None, map(native.operation_obstacle, (self.op_a, self.op_b))), None)

    def steps(self) -> Sequence[Step]:
        return (*self.op_a.steps(), *self.op_b.steps())

    def forward(self, x: Tensor) -> Tensor:
        return self.op_b(self.op_a(x))


class Discarded(Fused):
    """Stands where a candidate was that a fixed architecture does not use."""

    def obstacle(self) -> Obstacle:
        return None

    def forward(self, x: Tensor) -> Tensor:
        self.steps()

    def steps(self) -> NoReturn:
        raise ValueError(
            "OnePathCell: the path picks an operation that keep_only() has discarded; build a new cell to search again"
        )


# name -> factory(channels, affine, track_running_stats)
OPERATIONS: dict[str, Callable[[int, bool, bool], nn.Module]] = {
    "none": lambda channels, affine, track: Zero(),
    "skip_connect": lambda channels, affine, track: Identity(),
    "nor_conv_1x1": lambda channels, affine, track: ReLUConvBN(channels, channels, 1, 1, affine, track),
    "nor_conv_3x3": lambda channels, affine, track: ReLUConvBN(channels, channels, 3, 1, affine, track),
    "avg_pool_3x3": lambda channels, affine, track: AvgPool(),
    "max_pool_3x3": lambda channels, affine, track: MaxPool(),
    "sep_conv_3x3": lambda channels, affine, track: SeparableConv(channels, 3, 1, 2, affine, track),
    "sep_conv_5x5": lambda channels, affine, track: SeparableConv(channels, 5, 1, 2, affine, track),
    "dil_conv_3x3": lambda channels, affine, track: SeparableConv(channels, 3, 2, 1, affine, track),
    "dil_conv_5x5": lambda channels, affine, track: SeparableConv(channels, 5, 2, 1, affine, track),
    # xautodl's names and parts of the last four
    "dua_sepc_3x3": lambda channels, affine, track: DualSeparableConv(channels, 3, affine, track),
    "dua_sepc_5x5": lambda channels, affine, track: DualSeparableConv(channels, 5, affine, track),
    "dil_sepc_3x3": lambda channels, affine, track: SeparableConv(channels, 3, 2, 1, affine, track),
    "dil_sepc_5x5": lambda channels, affine, track: SeparableConv(channels, 5, 2, 1, affine, track),
}
