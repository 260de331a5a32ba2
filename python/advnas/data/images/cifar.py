"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official archives' python layout, read as data: no code in a file is run."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advnas.data.images.base import Augment, ImageData, Images

SHAPE = (3, 32, 32)
# Means and standard deviations of NAS-Bench-201.
CIFAR10_STATISTICS = ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
CIFAR100_STATISTICS = ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))


class _ArraysOnly(pickle.Unpickler):
    """Builds dictionaries, lists, strings, numbers and numpy arrays, and nothing else. It imports nothing."""

    RECONSTRUCT = np.empty(0).__reduce__()[0]
    ALLOWED: ClassVar[dict[str, Any]] = {
        "_codecs.encode": codecs.encode,  # how Python 3 writes bytes in old protocols
        "numpy.dtype": np.dtype,
        "numpy.ndarray": np.ndarray,
        "numpy.core.multiarray._reconstruct": RECONSTRUCT,
        "numpy._core.multiarray._reconstruct": RECONSTRUCT,
    }

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {wanted}, and only arrays are read")
        return self.ALLOWED[wanted]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; unpack the official python archive of CIFAR so that it is there"
        )
    raw = path.read_bytes()
    try:
        content = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path}: not a CIFAR file, or a damaged one: {error}; unpack the archive again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a CIFAR file: must hold a dictionary, got {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _images(path: Path, label_key: str, num_classes: int) -> Images:
    content = _read(path)
    data, labels = content.get("data"), content.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: data must be uint8 [images, 3072], got {got}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise ValueError(f"{path}: {label_key} must be a list of {len(data)} integers")
    if labels and not 0 <= min(labels) <= max(labels) < num_classes:
        raise ValueError(f"{path}: {label_key} must be from 0 to {num_classes - 1}, got {min(labels)} to {max(labels)}")
    pixels = torch.from_numpy(data.reshape(-1, *SHAPE).transpose(0, 2, 3, 1).copy())
    return Images(pixels, torch.tensor(labels, dtype=torch.int64))


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = _read(path).get(key)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: {key} must be a list of names; unpack the archive again")
    return tuple(_text(name) for name in names)


def _folder(data_dir: Path | None, name: str) -> Path:
    if data_dir is None:
        raise ValueError(f"data_dir: needed to find {name}; give the folder that holds it (--data-dir)")
    folder = data_dir if data_dir.name == name else data_dir / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; data_dir must hold {name}, the official python archive unpacked"
        )
    return folder


def _statistics(values: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(row) / 255 for row in values)
    return mean, std


def load_cifar10(data_dir: Path | None) -> ImageData:
    """CIFAR-10 from ``data_dir``/cifar-10-batches-py.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged or foreign.
    """
    folder = _folder(data_dir, "cifar-10-batches-py")
    classes = _names(folder / "batches.meta", "label_names")
    parts = [_images(folder / f"data_batch_{i}", "labels", len(classes)) for i in range(1, 6)]
    train = Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
    test = _images(folder / "test_batch", "labels", len(classes))
    return ImageData(train, test, classes, *_statistics(CIFAR10_STATISTICS), Augment(pad=4, flip=True))


def load_cifar100(data_dir: Path | None) -> ImageData:
    """CIFAR-100 with its fine labels from ``data_dir``/cifar-100-python; raises as :func:`load_cifar10`."""
    folder = _folder(data_dir, "cifar-100-python")
    classes = _names(folder / "meta", "fine_label_names")
    train, test = (_images(folder / name, "fine_labels", len(classes)) for name in ("train", "test"))
    return ImageData(train, test, classes, *_statistics(CIFAR100_STATISTICS), Augment(pad=4, flip=True))
