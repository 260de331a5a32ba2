"""A folder of images: FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val), or FOLDER/CLASS/* with no split, in folders of a class
as deep as one likes. Of an animation its first picture counts."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advnas.data.images.base import Augment, ImageData, Images, pixel_statistics, split_classes

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
TEST_FOLDERS = ("test", "val", "valid")
TEST_SHARE = 0.2  # where the folder has no split


def load(folder: Path) -> ImageData:
    """All images decoded once, as RGB squares.

    Their size is the shorter side of the first training image; images of other sizes are resized to it, whatever their shape.
    Without folders ``train`` and ``test`` (or ``val``) a fifth of each class is held out, at least one image and always the same.

    Raises:
        ValueError: there are no classes, a class has no images, train and test have other classes, or a file is not an image.
    """
    train_folder = folder / "train"
    if not train_folder.is_dir():
        return _without_split(folder)
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test_folder is None:
        raise ValueError(f"{folder}: has train, but no folder {' or '.join(TEST_FOLDERS)} beside it")
    classes = _classes(train_folder)
    if differing := sorted(set(classes) ^ set(_classes(test_folder))):
        raise ValueError(
            f"{test_folder}: must have the same classes as {train_folder}; only one has {', '.join(differing[:5])}"
        )
    train_files, train_labels = _files(train_folder, classes)
    test_files, test_labels = _files(test_folder, classes)
    size = _size(train_files[0])
    return _data(
        Images(_decode(train_files, size), train_labels), Images(_decode(test_files, size), test_labels), classes
    )


def _without_split(folder: Path) -> ImageData:
    classes = _classes(folder)
    files, labels = _files(folder, classes)
    if min(torch.bincount(labels).tolist()) < 2:
        raise ValueError(f"{folder}: needs at least 2 images of every class, to hold some out for the test")
    pixels = _decode(files, _size(files[0]))
    test, train = split_classes(labels, 0, lambda count: max(1, round(TEST_SHARE * count)))
    return _data(Images(pixels[train], labels[train]), Images(pixels[test], labels[test]), classes)


def _data(train: Images, test: Images, classes: tuple[str, ...]) -> ImageData:
    mean, std = pixel_statistics(train.pixels)
    return ImageData(train, test, classes, mean, std, Augment(pad=max(1, train.pixels.shape[1] // 8), flip=True))


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    )
    if len(classes) < 2:
        raise ValueError(f"{folder}: must hold at least 2 folders, one for each class, got {list(classes)}")
    return classes


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], torch.Tensor]:
    files: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for label, name in enumerate(classes):
        everything = [
            path for path in sorted((folder / name).rglob("*")) if path.is_file() and not _hidden(path, folder)
        ]
        members = [path for path in everything if path.suffix.lower() in SUFFIXES]
        if not members:
            raise ValueError(f"{folder / name}: holds no image ({', '.join(SUFFIXES)})")
        others += [path for path in everything if path.suffix.lower() not in SUFFIXES]
        files += members
        labels += [label] * len(members)
    if others:
        kinds = ", ".join(sorted({path.suffix or "without a suffix" for path in others}))
        warnings.warn(
            f"{folder}: {len(others)} files are left out, since they are not {', '.join(SUFFIXES)}: {kinds}, such as "
            f"{others[0]}",
            stacklevel=2,
        )
    return files, torch.tensor(labels)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _open(path: Path, size: int | None = None) -> Image.Image:
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # which Pillow cuts off at 255
                raise ValueError(f"it has more than 8 bits a channel (mode {file.mode})")
            image = file.convert("RGB")
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: not an image that can be read: {error}; convert, replace or remove it") from None
    return (
        image if size is None or image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
    )


def _size(path: Path) -> int:
    return min(_open(path).size)


def _decode(files: list[Path], size: int) -> torch.Tensor:
    pixels = torch.empty((len(files), size, size, 3), dtype=torch.uint8)
    for place, path in zip(pixels, files, strict=True):
        place.copy_(torch.from_numpy(np.array(_open(path, size))))
    return pixels
