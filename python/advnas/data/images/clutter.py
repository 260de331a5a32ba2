"""Cluttered digits: scikit-learn's handwritten digits somewhere on a larger canvas, among pieces of other digits and noise.

They are generated, always the same ones, after the cluttered MNIST of Mnih, Heess, Graves & Kavukcuoglu (NeurIPS 2014), and so many
that the accuracy of a network is known to within a point: on the digits themselves all cells are nearly equally good.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from advnas.data.images import digits
from advnas.data.images.base import Augment, ImageData, Images, pixel_statistics

SIZE = 16  # of the canvas; a digit has 8
COUNTS = {"train": 6000, "test": 6000}
PIECES, PIECE = 4, 4  # of other digits: how many, and how large
NOISE = 0.1  # standard deviation, of the full range
CONTRAST = (0.6, 1.0)  # of a digit and of a piece


def load(data_dir: Path | None = None) -> ImageData:
    """Training images are made of the training digits alone, test images of the test digits. ``data_dir`` is not used."""
    source = digits.load()
    train, test = (scenes(getattr(source, part), count, seed) for seed, (part, count) in enumerate(COUNTS.items()))
    mean, std = pixel_statistics(train.pixels)
    return ImageData(train, test, source.classes, mean, std, Augment(pad=1, flip=False))


def scenes(images: Images, count: int, seed: int) -> Images:
    """``count`` scenes with a digit each, every digit equally often but for one."""
    generator = torch.Generator().manual_seed(seed)
    total = len(images)
    chosen = torch.randperm(count, generator=generator) % total
    pixels = images.pixels.squeeze(3).float() / 255
    canvas = torch.zeros(count, SIZE, SIZE)
    for _ in range(PIECES):
        others = pixels[torch.randint(total, (count,), generator=generator)]
        pieces = _windows(others, PIECE, generator)
        _paste(canvas, pieces * _contrast(count, generator), generator)
    _paste(canvas, pixels[chosen] * _contrast(count, generator), generator)
    canvas += NOISE * torch.randn(canvas.shape, generator=generator)
    return Images(canvas.clamp(0, 1).mul(255).round().to(torch.uint8).unsqueeze(3), images.labels[chosen])


def _contrast(count: int, generator: torch.Generator) -> Tensor:
    low, high = CONTRAST
    return low + (high - low) * torch.rand(count, 1, 1, generator=generator)


def _windows(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random window of each image: [count, height, width] to [count, size, size]."""
    image, rows, columns = _places(images, size, generator)
    return images[image, rows, columns]


def _paste(canvas: Tensor, patches: Tensor, generator: torch.Generator) -> None:
    """Put each patch [count, size, size] somewhere on its canvas, where the brighter one shows."""
    image, rows, columns = _places(canvas, patches.shape[1], generator)
    canvas[image, rows, columns] = torch.maximum(canvas[image, rows, columns], patches)


def _places(images: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices [count, size, size] of a random square in each image."""
    count, height, width = images.shape
    top = torch.randint(height - size + 1, (count, 1, 1), generator=generator)
    left = torch.randint(width - size + 1, (count, 1, 1), generator=generator)
    square = torch.arange(size)
    return torch.arange(count).view(-1, 1, 1), top + square.view(1, -1, 1), left + square.view(1, 1, -1)
