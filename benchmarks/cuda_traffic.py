"""The bytes of global memory that each kernel family of csrc/kernels/cuda moves, a function each; and those of the library's part.

``least``: what the arguments make necessary, each read and written once. ``moved``: what the source does, caches assumed perfect
within a launch and empty before it: every distinct byte that a launch reads or writes, so with the partial sums that blocks leave
for the last one, and what is read without need. A pooled source counts once: its nine reads meet in the caches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cuda_shapes as shapes
from cuda_shapes import FLOAT, Images, Launch

NORM_ROWS, GRADIENT_ROWS = 4, 3  # floats of a channel that norm.h keeps


@dataclass(frozen=True)
class Work:
    """Of one launch, or of one operator of the library.

    Attributes:
        launches: 1, or of an operator more.
        flops: two for a multiply-add. ``own``: by our kernels, which have no TF32.
        launch: of our kernels.
    """

    name: str
    least: int
    moved: int
    flops: int = 0
    launches: int = 1
    own: bool = True
    launch: Launch | None = None


@dataclass(frozen=True)
class Norm:
    """Batch norm after a convolution: whether it has parameters and keeps running statistics, as outside of the cells; or none."""

    affine: bool = False
    absent: bool = False

    def forward(self, channels: int) -> int:
        """Bytes of what finish_statistics reads and writes beside the partial sums."""
        parameters, statistics = 2 * self.affine, 4 * self.affine  # gamma, beta; two rows read and written
        return (NORM_ROWS + parameters + statistics) * channels * FLOAT + 16 * self.affine  # the counter of batches

    def backward(self, channels: int) -> int:
        """Of what finish_sums reads and writes: two rows, the coefficients, parameters and their gradients."""
        return (2 * (not self.absent) + GRADIENT_ROWS + 4 * self.affine) * channels * FLOAT


NO_PARAMETERS, NO_NORM = Norm(), Norm(absent=True)


def node_forward(shape: Images, element: int, sources: int, maps: int, writes: int, start: bool = False) -> Work:
    """``maps``: of the sources, those with a scale and a shift for each channel."""
    launch = shapes.node_forward(shape, element)
    moved = element * shape.size * (sources + start + writes) + maps * 2 * shape.channels * FLOAT
    return Work(launch.kernel, moved, moved, launch=launch)


@dataclass(frozen=True)
class NodeBackward:
    """Arguments of the launch of a node. ``halved``: of the sources, those of half the height and width. ``has_x``, ``needs_x``:
    whether x is given, and whether masks or gates need it."""

    shape: Images
    element: int
    sources: int
    halved: int
    gates: int
    start: bool
    has_x: bool
    needs_x: bool
    writes: bool
    norms: tuple[Norm, ...]

    def work(self) -> Work:
        size, channels = self.element * self.shape.size, self.shape.channels
        sums = 1 + len(self.norms) if self.norms else 0
        launch = shapes.node_backward(self.shape, self.element, self.sources, sums)
        images = self.sources - self.halved + self.start + self.writes + len(self.norms)
        halved = self.element * self.halved * half(self.shape).size
        rows = sum(norm.backward(channels) for norm in self.norms) + self.gates * FLOAT
        blocks = launch.grid[0]
        written = self.sources * launch.grid[1] + sums * channels if self.gates or sums else 0
        read = self.gates * launch.grid[1] + sums * channels
        partial = blocks * (written + read) * FLOAT
        least = size * (images + self.needs_x) + halved + rows
        return Work(launch.kernel, least, size * (images + self.has_x) + halved + rows + partial, launch=launch)


def half(shape: Images) -> Images:
    """What the mean of 2x2 pixels makes of it."""
    return replace(shape, height=shapes.ceil(shape.height, 2), width=shapes.ceil(shape.width, 2))


def _statistics(blocks: int, channels: int, norm: Norm) -> tuple[int, int]:
    """``least`` and ``moved`` of batch statistics beside their tensor."""
    partial = 2 * blocks * (1 + 2 * channels) * FLOAT
    return norm.forward(channels), norm.forward(channels) + partial


def norm_statistics(shape: Images, element: int, norm: Norm) -> Work:
    launch = shapes.norm_statistics(shape, element)
    least, moved = _statistics(launch.grid[0], shape.channels, norm)
    size = element * shape.size
    return Work(launch.kernel, size + least, size + moved, launch=launch)


def norm_fixed(channels: int) -> Work:
    moved = NORM_ROWS * channels * FLOAT
    launch = shapes.norm_fixed(channels)
    return Work(launch.kernel, moved, moved, launch=launch)


def norm_gradient(shape: Images, element: int) -> Work:
    moved = 3 * element * shape.size + GRADIENT_ROWS * shape.channels * FLOAT
    launch = shapes.norm_gradient(shape, element)
    return Work(launch.kernel, moved, moved, launch=launch)


def pointwise_forward(x: Images, y: Images, element: int, norm: Norm | None) -> Work:
    """``norm``: None without batch statistics."""
    launch = shapes.pointwise_forward(y.pixels, x.channels, y.channels, element)
    size = element * (x.size + y.size + x.channels * y.channels)
    least, moved = _statistics(launch.grid[0], y.channels, norm) if norm is not None else (0, 0)
    flops = 2 * y.size * x.channels
    return Work("pointwise forward_kernel", size + least, size + moved, flops, launch=launch)


def pointwise_backward(x: Images, y: Images, element: int, to_input: bool, to_weight: bool) -> Work:
    launch = shapes.pointwise_backward(y.pixels, x.channels, y.channels, element, to_weight)
    weight = x.channels * y.channels
    dp = y.pixels * x.channels
    tensors = 2 * y.size + to_input * (dp + weight) + to_weight * (x.size + weight)  # dy and z; dp; x
    least = element * tensors + GRADIENT_ROWS * y.channels * FLOAT
    flops = 2 * y.size * x.channels * (to_input + to_weight)
    ranges = launch.grid[0]
    partial = 2 * ranges * weight * FLOAT if to_weight and ranges > 1 else 0
    return Work("pointwise backward_kernel", least, least + partial, flops, launch=launch)


def to_channels_last(shape: Images, element: int, writes: int) -> Work:
    launch = shapes.to_channels_last(shape)
    moved = element * shape.size * (1 + writes)
    return Work(launch.kernel, moved, moved, launch=launch)


def convolution(x: Images, y: Images, kernel: int, element: int) -> Work:
    """Of the library: one product of x, y and the weight, of which it reads two and writes the third."""
    weight = x.channels * y.channels * kernel**2
    moved = element * (x.size + y.size + weight)
    return Work("convolution", moved, moved, 2 * y.pixels * weight, own=False)


def convolution_backward(x: Images, y: Images, kernel: int, element: int, products: int) -> Work:
    once = convolution(x, y, kernel, element)
    moved, flops = products * once.moved, products * once.flops
    return replace(once, name="convolution_backward", least=moved, moved=moved, flops=flops, launches=products)


def zeros(floats: int) -> Work:
    return Work("zeros", floats * FLOAT, floats * FLOAT, own=False)


def copy(size: int, element: int) -> Work:
    return Work("clone", 2 * size * element, 2 * size * element, own=False)


def add(floats: int) -> Work:
    return Work("add", 3 * floats * FLOAT, 3 * floats * FLOAT, own=False)


def casts(channels: int, rows: int) -> Work:
    """Of batch norm's rows from a short type to float32, or back."""
    moved = rows * channels * (FLOAT + 2)
    return Work("_to_copy", moved, moved, launches=rows, own=False)
