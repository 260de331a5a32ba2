"""The candidate operations: a module each, in plain PyTorch. They hold the parameters and say what the operation is.

Parameter names are those of xautodl's NAS-Bench-201 operations, so that its checkpoints load. ``piece`` names the native
piece that the fused executor runs in place of ``forward``; a module without one runs as it is written, through the plain
executor.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advnas_ext import _C

NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Zero(nn.Module):
    """Contributes nothing, whatever its input holds."""

    piece = _C.Piece.ZERO

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Identity(nn.Module):
    piece = _C.Piece.IDENTITY

    def forward(self, x: Tensor) -> Tensor:
        return x


class AvgPool(nn.Module):
    """3x3, stride 1; at the border the mean is over the pixels that exist."""

    piece = _C.Piece.AVG_POOL

    def __init__(self) -> None:
        super().__init__()
        self.op = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ReLUConvBN(nn.Module):
    """ReLU, convolution that keeps the image size, batch norm.

    The convolution has a bias exactly where batch norm has none (``affine=False``). Batch statistics cancel it.
    """

    piece = _C.Piece.RELU_CONV_BN

    def __init__(self, channels: int, kernel_size: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=not affine),
            nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)

    @property
    def norm(self) -> nn.BatchNorm2d:
        return self.op[2]  # type: ignore[return-value]

    @property
    def uses_running_stats(self) -> bool:
        return self.norm.running_mean is not None and not self.norm.training

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What the native piece takes, in the order of ``ConvolutionTensor`` in csrc/cell.h."""
        convolution, norm = self.op[1], self.norm
        return (
            convolution.weight,  # type: ignore[return-value]
            convolution.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.num_batches_tracked,
        )


class Discarded(nn.Module):
    """Stands where a candidate was that a fixed architecture does not use."""

    piece = None

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(
            "OnePathCell: the path picks an operation that keep_only() has discarded; build a new cell to search again"
        )


# name -> factory(channels, affine, track_running_stats)
OPERATIONS: dict[str, Callable[[int, bool, bool], nn.Module]] = {
    "none": lambda channels, affine, track: Zero(),
    "skip_connect": lambda channels, affine, track: Identity(),
    "nor_conv_1x1": lambda channels, affine, track: ReLUConvBN(channels, 1, affine, track),
    "nor_conv_3x3": lambda channels, affine, track: ReLUConvBN(channels, 3, affine, track),
    "avg_pool_3x3": lambda channels, affine, track: AvgPool(),
}
