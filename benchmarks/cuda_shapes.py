"""How csrc/kernels/cuda cuts its work: the grid, the block and the dynamic shared memory of each launch, as the sources compute
them. tests/test_cuda_model.py holds it against the launches that the sources make."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK, WARP, TILE = 256, 32, 16
FLOAT = 4
MOST_BLOCKS = 256  # of a launch that sums over the batch, but for:
MOST_RANGES, LEAST_PART = 128, 32  # the weight's gradient of a 1x1 convolution
LEAST_PIXELS = 8  # of a thread, in statistics
LEAST_TILES = 2  # of a block, in a 1x1 convolution forward
SQUARE = 32


@dataclass(frozen=True)
class Images:
    batch: int
    height: int
    width: int
    channels: int

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def size(self) -> int:
        return self.pixels * self.channels


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared: int = 0


def ceil(size: int, unit: int) -> int:
    return -(-size // unit)


def full_pack(channels: int, element: int) -> int:
    """Elements that one load moves; ``element``: bytes of one."""
    pack = 16 // element
    return pack if channels % pack == 0 else 1


@dataclass(frozen=True)
class Lanes:
    slab: int
    slabs: int
    lanes: int

    @staticmethod
    def of(packs: int) -> Lanes:
        slabs = ceil(packs, BLOCK)
        slab = ceil(packs, slabs)
        return Lanes(slab, slabs, BLOCK // slab)

    @property
    def block(self) -> int:
        return ceil(self.slab * self.lanes, WARP) * WARP


def _columns(shape: Images, pack: int) -> tuple[Lanes, int]:
    """How threads lie, and the blocks that all columns of a node take."""
    rows = 2 if pack > 1 else 4
    lanes = Lanes.of(ceil(shape.channels, pack))
    return lanes, ceil(shape.batch * ceil(shape.height, rows) * shape.width, lanes.lanes)


def node_forward(shape: Images, element: int) -> Launch:
    lanes, blocks = _columns(shape, full_pack(shape.channels, element))
    return Launch("node_forward_kernel", (blocks, lanes.slabs, 1), lanes.block)


def node_backward(shape: Images, element: int, sources: int, sums: int) -> Launch:
    """``sums``: sums over pixels for each channel."""
    pack = full_pack(shape.channels, element)
    lanes, blocks = _columns(shape, pack)
    grid = (min(blocks, MOST_BLOCKS), lanes.slabs, 1)
    return Launch("node_backward_kernel", grid, lanes.block, (sources + sums * pack) * lanes.block * FLOAT)


def norm_statistics(shape: Images, element: int) -> Launch:
    pack = full_pack(shape.channels, element)
    lanes = Lanes.of(ceil(shape.channels, pack))
    grid = (min(ceil(shape.pixels, lanes.lanes * LEAST_PIXELS), MOST_BLOCKS), lanes.slabs, 1)
    return Launch("statistics_kernel", grid, lanes.block, 2 * pack * lanes.block * FLOAT)


def norm_gradient(shape: Images, element: int) -> Launch:
    packs = shape.size // full_pack(shape.channels, element)
    return Launch("gradient_kernel", (ceil(packs, BLOCK), 1, 1), BLOCK)


def norm_fixed(channels: int) -> Launch:
    return Launch("fixed_kernel", (ceil(channels, BLOCK), 1, 1), BLOCK)


def to_channels_last(shape: Images) -> Launch:
    grid = (ceil(shape.height * shape.width, SQUARE), ceil(shape.channels, SQUARE), shape.batch)
    return Launch("to_channels_last_kernel", grid, BLOCK, SQUARE * (SQUARE + 1) * FLOAT)


@dataclass(frozen=True)
class PointwiseTile:
    """Pixels of a tile, and the bytes of shared memory that a block uses."""

    rows: int
    shared: int

    @staticmethod
    def of(inputs: int, outputs: int, element: int, backward: bool) -> PointwiseTile:
        """The largest that the source takes; backward, ``inputs`` are those of a block."""
        rows = 128
        while rows > TILE:
            shared = _pointwise_shared(inputs, outputs, element, rows, backward)
            if shared <= 48 << 10 and rows // TILE * ceil(inputs if backward else outputs, TILE) <= 16:
                break
            rows //= 2
        return PointwiseTile(rows, _pointwise_shared(inputs, outputs, element, rows, backward))


def _pointwise_shared(inputs: int, outputs: int, element: int, rows: int, backward: bool) -> int:
    padding = 16 // element
    inputs, outputs = ceil(inputs, TILE) * TILE, ceil(outputs, TILE) * TILE
    weight = outputs * (inputs + padding) if backward else inputs * (outputs + padding)
    parts = [weight * element, rows * (inputs + padding) * element]
    if backward:
        parts.append(rows * (outputs + padding) * element)
        parts.append(rows * (inputs + 16 // FLOAT) * FLOAT)
    else:
        parts.append(max(rows * (outputs + 16 // FLOAT), 2 * BLOCK) * FLOAT)
    return sum(ceil(part, 128) * 128 for part in parts)


def pointwise_forward(pixels: int, inputs: int, outputs: int, element: int) -> Launch:
    tile = PointwiseTile.of(inputs, outputs, element, backward=False)
    return Launch("forward_kernel", (min(ceil(pixels, tile.rows * LEAST_TILES), MOST_BLOCKS), 1, 1), BLOCK, tile.shared)


def pointwise_backward(pixels: int, inputs: int, outputs: int, element: int, to_weight: bool) -> Launch:
    width = TILE if to_weight else inputs
    tile = PointwiseTile.of(width, outputs, element, backward=True)
    blocks = min(ceil(pixels, tile.rows), MOST_BLOCKS)
    if to_weight:
        light = pixels * 2 * element * (inputs + outputs) // (2 * FLOAT * inputs * outputs * LEAST_PART)
        blocks = max(1, min(ceil(pixels, tile.rows), light, MOST_RANGES))
    return Launch("backward_kernel", (blocks, ceil(inputs, width), 1), BLOCK, tile.shared)
