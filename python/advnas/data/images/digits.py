"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, in ten classes. They come with the library."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from advnas.data.images.base import Augment, ImageData, Images, pixel_statistics

TEST_SHARE = 1 / 3


def load(data_dir: Path | None = None) -> ImageData:
    """The digits with a fixed, stratified test set of a third. ``data_dir`` is not used."""
    raw = load_digits()
    pixels = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(3)
    labels = torch.from_numpy(raw.target).long()
    train, test = train_test_split(range(len(labels)), test_size=TEST_SHARE, random_state=0, stratify=raw.target)
    mean, std = pixel_statistics(pixels[train])
    return ImageData(
        train=Images(pixels[train], labels[train]),
        test=Images(pixels[test], labels[test]),
        classes=tuple(str(name) for name in raw.target_names),
        mean=mean,
        std=std,
        augment=Augment(pad=1, flip=False),
    )
