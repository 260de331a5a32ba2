"""Images in memory, and the augmentation of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Decoded images with their classes.

    Attributes:
        pixels: uint8 [count, height, width, channels].
        labels: int64 [count], from 0.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def resized(self, size: int) -> Images:
        """The same images with ``size`` pixels a side, each the mean of those that it covers."""
        if size == self.pixels.shape[1]:
            return self
        parts = [
            torch.nn.functional.adaptive_avg_pool2d(part.permute(0, 3, 1, 2).float(), size).round().to(torch.uint8)
            for part in self.pixels.split(4096)  # float32 of all of them would take gigabytes
        ]
        return Images(torch.cat(parts).permute(0, 2, 3, 1).contiguous(), self.labels)


@dataclass(frozen=True)
class Augment:
    """Random shifts and flips, drawn for each image.

    Attributes:
        pad: zero pixels added on every side before a crop of the original size.
        flip: whether half of the images are mirrored left to right.
    """

    pad: int
    flip: bool

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copies of uint8 ``pixels`` [batch, height, width, channels], made where they are. The numbers are drawn on the
        host, so that a seed gives the same images on every device."""
        batch, height, width, channels = pixels.shape
        device = pixels.device
        image = torch.arange(batch, device=device)
        if self.flip:
            mirrored = torch.randint(2, (batch,), generator=generator).to(device, non_blocking=True)
            pixels = torch.cat((pixels, pixels.flip(2))).index_select(0, image + batch * mirrored)
        padded = torch.nn.functional.pad(pixels, (0, 0, self.pad, self.pad, self.pad, self.pad))
        # A row of a crop is a run of width * channels bytes: pick them among all such runs, which overlap.
        padded_height, padded_width = height + 2 * self.pad, width + 2 * self.pad
        runs = padded.as_strided((batch * padded_height * padded_width - width + 1, width * channels), (channels, 1))
        shift = torch.randint(2 * self.pad + 1, (2, batch, 1), generator=generator)
        top, left = shift.to(device, non_blocking=True)
        row = image.unsqueeze(1) * padded_height + top + torch.arange(height, device=device)  # [batch, height]
        return runs.index_select(0, (row * padded_width + left).flatten()).reshape(pixels.shape)


@dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        train, test: the images.
        classes: names, by label.
        mean, std: float32 [channels], of the pixels as fractions of 255; what batches are normalised with.
        augment: of training batches.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    augment: Augment

    def resized(self, size: int) -> ImageData:
        """The same data with smaller images; shifts are as large as they were, in parts of the image.

        Args:
            size: pixels a side, at most :attr:`image_size`.
        """
        pad = -(-self.augment.pad * size // self.image_size)
        augment = replace(self.augment, pad=pad)
        return replace(self, train=self.train.resized(size), test=self.test.resized(size), augment=augment)

    def to(self, device: torch.device) -> ImageData:
        """The same data with images, mean and deviation on a device."""
        places = {name: getattr(self, name).to(device) for name in ("train", "test", "mean", "std")}
        return replace(self, **places)

    @property
    def in_channels(self) -> int:
        return self.train.pixels.shape[3]

    @property
    def image_size(self) -> int:
        return self.train.pixels.shape[1]


def pixel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of uint8 [count, height, width, channels], by channel, as fractions of 255."""
    counts = torch.stack([torch.bincount(pixels[..., c].flatten(), minlength=256) for c in range(pixels.shape[3])])
    values = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    variance = (counts * values.square()).sum(1) / total - mean.square()
    return mean.float(), variance.clamp_min(1e-12).sqrt().float()


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 [batch, channels, height, width] in channels_last layout, from uint8 [batch, height, width, channels]."""
    batch, height, width, channels = pixels.shape
    # Whole rows at a time: a loop over so few channels does not vectorise.
    rows = pixels.reshape(batch, height, width * channels).float()
    normal = torch.addcmul((-mean / std).repeat(width), rows, (1 / (255 * std)).repeat(width))
    return normal.reshape(pixels.shape).permute(0, 3, 1, 2)


def split_classes(labels: Tensor, seed: int, share: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """Indices of some images of each class, drawn, and of the rest; both ascending.

    Args:
        labels: int64 [count].
        share: how many of so many images of a class, which are asked for in their order.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        drawn[shuffled[: share(len(members))]] = True
    return torch.nonzero(drawn).flatten(), torch.nonzero(~drawn).flatten()
