"""Image data: sets by name, batches that can be resumed, and the two halves of a search.

A new set is one file and one line of DATA.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from advnas.data.images import cifar, clutter, digits, folder
from advnas.data.images.base import Augment, ImageData, Images
from advnas.data.images.batches import Batches, Evaluation, split_halves
from advnas.files import at_home

# name -> loader(data_dir)
DATA: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": digits.load,
    "clutter": clutter.load,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
}


def load(name: str, data_dir: Path | None = None) -> ImageData:
    """A data set in memory.

    Args:
        name: a name in ``DATA``, or a folder with one folder of images for each class.
        data_dir: where the files of a named set lie.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is damaged or is not what it should be.
    """
    if name in DATA:
        return DATA[name](data_dir)
    images = at_home(name)
    if not images.is_dir():
        raise FileNotFoundError(
            f"data: must be one of {', '.join(DATA)}, or a folder of images; there is no folder {name}"
        )
    return folder.load(images)


__all__ = ["DATA", "Augment", "Batches", "Evaluation", "ImageData", "Images", "load", "split_halves"]
