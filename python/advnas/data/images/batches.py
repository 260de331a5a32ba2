"""Batches of images in memory, in an order that can be saved and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from advnas.data.images.base import ImageData, Images, normalise, split_classes


def split_halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two stratified halves: indices into ``labels`` (int64 [count]) for the weights and for the architecture.

    Every class is split in two, up to one image; the order within a half is by index.
    """
    odd_classes = 0

    def half(count: int) -> int:
        """The odd images go to the halves in turn, the first one to the weights."""
        nonlocal odd_classes
        first = (count + (odd_classes + 1) % 2) // 2
        odd_classes += count % 2
        return first

    return split_classes(labels, seed, half)


def size_of_next(left: int, size: int) -> int:
    """Images in the next of batches of ``size`` where so many are left. A last one of a single image, of which batch norm has no
    statistics where the image has but one pixel, joins the one before it."""
    return size + 1 if left == size + 1 and size > 1 else min(left, size)


class Batches:
    """Shuffled, augmented, normalised batches: an iteration is one pass over ``index``.

    The state (order, position, random generator) can be saved in the middle of a pass; an iteration that begins afterwards goes
    on from there, bit for bit. Batches are made on the device where the images are.

    Args:
        data: the training images, how they are augmented and normalised.
        index: int64 [count], the images of a pass, on the host.
        batch_size: images in a batch; the last of a pass may have fewer, or one more.
        generator: of the order and of the augmentation, on the host.

    Raises:
        ValueError: a pass would have no batch.
    """

    def __init__(
        self,
        data: ImageData,
        index: Tensor,
        batch_size: int,
        *,
        generator: torch.Generator,
    ) -> None:
        if batch_size < 1 or len(index) < 1:
            raise ValueError(f"Batches: a pass must have a batch, got batch_size {batch_size} for {len(index)} images")
        self.data = data
        self.index = index
        self.batch_size = batch_size
        self.generator = generator
        self._order = index[:0]
        self._position = 0

    def __len__(self) -> int:
        count = len(self.index)
        merged = count > self.batch_size > 1 and count % self.batch_size == 1
        return -(-count // self.batch_size) - merged

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(x, y)``: x float32 [batch, channels, height, width] in channels_last layout, y int64 [batch]."""
        if self._position >= len(self._order):
            self._order = self.index[torch.randperm(len(self.index), generator=self.generator)]
            self._position = 0
        while self._position < len(self._order):
            size = size_of_next(len(self._order) - self._position, self.batch_size)
            chosen = self._order[self._position : self._position + size]
            pixels, labels = picked(self.data.train, chosen)
            pixels = self.data.augment(pixels, self.generator)
            self._position += len(chosen)  # before the batch is out: a state that is saved then has it behind it
            yield normalise(pixels, self.data.mean, self.data.std), labels

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "position": self._position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of batches of other images.
        """
        if not torch.isin(state["order"], self.index).all():
            raise ValueError("Batches: the state must be of the same images, got others; give the same data and seed")
        self._order = state["order"]
        self._position = state["position"]
        self.generator.set_state(state["generator"])


class Evaluation:
    """Normalised batches of some images, in their order, without augmentation.

    Args:
        data: how they are normalised.
        images: of ``data``, training or test.
        index: int64 [count], on the host.
        batch_size: images in a batch; the last may have fewer, or one more.
    """

    def __init__(self, data: ImageData, images: Images, index: Tensor, batch_size: int) -> None:
        self.data = data
        self.images = images
        self.index = index
        self.batch_size = batch_size

    def __call__(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first ``count`` batches ``(x, y)``, or all where there are fewer."""
        left = self.index[: count * self.batch_size]
        while len(left) > 0:
            chosen = left[: size_of_next(len(left), self.batch_size)]
            left = left[len(chosen) :]
            pixels, labels = picked(self.images, chosen)
            yield normalise(pixels, self.data.mean, self.data.std), labels


def picked(images: Images, index: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and labels at ``index``, an int64 tensor on the host; nobody waits for the device."""
    there = index.to(images.labels.device, non_blocking=True)
    return images.pixels.index_select(0, there), images.labels.index_select(0, there)
