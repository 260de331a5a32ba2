"""Data sets on disk: CIFAR's python layout, image folders, and what comes in their place."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from advnas.data import images as data

IMAGES = 6  # in each file


def python2_pickle(rows, label_key, labels):
    """The dictionary as Python 2 wrote it in the official archives: its ``str`` are the opcodes U and T."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + 2 * integer(-1) + b"K\x00tb"
    )
    raw = rows.tobytes()
    shape = integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R" + state
    listed = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(label_key.encode()) + listed + b"u."


def python3_pickle(protocol, kind):
    def write(rows, label_key, labels):
        content = {"data": rows, label_key: labels, "filenames": [b"a.png"] * len(labels)}
        return pickle.dumps({kind(key): value for key, value in content.items()}, protocol)

    return write


FORMS = {
    "python 2": python2_pickle,
    "protocol 0": python3_pickle(0, str),
    "protocol 2": python3_pickle(2, str.encode),
    "protocol 4": python3_pickle(4, str.encode),
    "text keys": python3_pickle(4, str),
}


def cifar10(folder, write=FORMS["protocol 4"]):
    """A small CIFAR-10 and its pixels by file, [images, 32, 32, 3]."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    names = {b"label_names": [f"class {i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, 2))
    rng = np.random.default_rng(0)
    pixels = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels[name] = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        rows = np.ascontiguousarray(pixels[name].transpose(0, 3, 1, 2)).reshape(IMAGES, -1)
        (folder / name).write_bytes(write(rows, "labels", [(len(pixels) + i) % 10 for i in range(IMAGES)]))
    return folder, pixels


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS.keys())
def test_cifar10(write, tmp_path):
    folder, pixels = cifar10(tmp_path, write)
    loaded = data.load("cifar10", tmp_path)
    assert np.array_equal(loaded.train.pixels, np.concatenate([pixels[f"data_batch_{i}"] for i in range(1, 6)]))
    assert np.array_equal(loaded.test.pixels, pixels["test_batch"])
    assert loaded.train.labels.tolist() == [(batch + i) % 10 for batch in range(1, 6) for i in range(IMAGES)]
    assert loaded.train.labels.dtype == torch.int64
    assert loaded.classes == tuple(f"class {i}" for i in range(10))
    assert (loaded.augment.pad, loaded.augment.flip) == (4, True)
    torch.testing.assert_close(loaded.mean * 255, torch.tensor([125.3, 123.0, 113.9]))
    assert torch.equal(data.load("cifar10", folder).test.pixels, loaded.test.pixels)  # the inner folder will do


def test_cifar100_has_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class {i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names, b"coarse_label_names": names[:20]}))
    for name in ("train", "test"):
        content = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [99, 3], b"coarse_labels": [1, 2]}
        (folder / name).write_bytes(pickle.dumps(content, 2))
    loaded = data.load("cifar100", tmp_path)
    assert loaded.train.labels.tolist() == loaded.test.labels.tolist() == [99, 3]
    assert loaded.classes[99] == "class 99"


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_code_in_a_file_is_not_run(protocol, name, tmp_path):
    folder, _ = cifar10(tmp_path)
    target = tmp_path / "made by the file"
    evil = pickle.dumps({b"data": Evil(str(target)), b"label_names": [b"a"]}, protocol)
    pickle.loads(evil)
    target.rmdir()  # so it would have run

    (folder / name).write_bytes(evil)
    with pytest.raises(
        ValueError, match=f"{name}: not a CIFAR file.*it asks for posix.mkdir, and only arrays are read"
    ):
        data.load("cifar10", tmp_path)
    assert not target.exists()


@pytest.mark.parametrize("wanted", ["numpy.load", "numpy.core.multiarray.fromfile", "builtins.eval", "os.system"])
def test_nothing_but_the_arrays_is_found(wanted, tmp_path):
    folder, _ = cifar10(tmp_path)
    module, _, name = wanted.rpartition(".")
    (folder / "test_batch").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"asks for {wanted}"):
        data.load("cifar10", tmp_path)


def rewrite(**changes):
    def damage(path):
        content = {"data": np.zeros((IMAGES, 3072), np.uint8), "labels": [0] * IMAGES, **changes}
        path.write_bytes(pickle.dumps(content, 4))

    return damage


DAMAGES = {
    "missing": (lambda path: path.unlink(), FileNotFoundError, "no such file; unpack"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        ValueError,
        "damaged one.*unpack the archive again",
    ),
    "empty": (lambda path: path.write_bytes(b""), ValueError, "damaged one.*unpack the archive again"),
    "text": (lambda path: path.write_text("hello"), ValueError, "not a CIFAR file"),
    "a list": (lambda path: path.write_bytes(pickle.dumps([1, 2])), ValueError, "must hold a dictionary, got list"),
    "no data": (rewrite(data=None), ValueError, r"data must be uint8 \[images, 3072\], got NoneType"),
    "floats": (rewrite(data=np.zeros((IMAGES, 3072))), ValueError, r"got float64 \[6, 3072\]"),
    "other size": (rewrite(data=np.zeros((IMAGES, 784), np.uint8)), ValueError, r"got uint8 \[6, 784\]"),
    "4 dimensions": (rewrite(data=np.zeros((IMAGES, 3, 32, 32), np.uint8)), ValueError, r"got uint8 \[6, 3, 32, 32\]"),
    "few labels": (rewrite(labels=[0]), ValueError, "labels must be a list of 6 integers"),
    "no labels": (rewrite(labels=None), ValueError, "labels must be a list of 6 integers"),
    "names as labels": (rewrite(labels=["cat"] * IMAGES), ValueError, "labels must be a list of 6 integers"),
    "large label": (rewrite(labels=[10] * IMAGES), ValueError, "labels must be from 0 to 9, got 10 to 10"),
    "negative label": (rewrite(labels=[-1] * IMAGES), ValueError, "labels must be from 0 to 9, got -1 to -1"),
}


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_damaged_cifar(name, damage, error, message, tmp_path):
    folder, _ = cifar10(tmp_path)
    damage(folder / name)
    with pytest.raises(error, match=f"{name}: .*{message}"):
        data.load("cifar10", tmp_path)


def test_damaged_names(tmp_path):
    folder, _ = cifar10(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": 10}))
    with pytest.raises(ValueError, match=r"batches.meta: label_names must be a list of names"):
        data.load("cifar10", tmp_path)


def test_cifar_without_its_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir: needed to find cifar-10-batches-py.*--data-dir"):
        data.load("cifar10")
    with pytest.raises(FileNotFoundError, match="no such folder; data_dir must hold cifar-100-python"):
        data.load("cifar100", tmp_path)


# Image folders


def write_image(path, size=(8, 8), colour=(255, 0, 0), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


def image_folder(folder, splits=("train", "test"), classes=("cat", "dog"), count=3):
    for split in splits:
        for label, name in enumerate(classes):
            for i in range(count):
                write_image(folder / split / name / f"{i}.png", colour=(100 * label, i, 7))
    return folder


@pytest.mark.parametrize("test_name", ["test", "val", "valid"])
def test_folder_with_splits(test_name, tmp_path):
    loaded = data.load(str(image_folder(tmp_path, ("train", test_name))))
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.pixels.shape == loaded.test.pixels.shape == (6, 8, 8, 3)
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.train.pixels[4, 0, 0].tolist() == [100, 1, 7]
    assert (loaded.augment.pad, loaded.augment.flip) == (1, True)
    torch.testing.assert_close(loaded.mean, torch.tensor([50.0, 1.0, 7.0]) / 255)


def test_folder_without_splits_holds_a_fifth_of_each_class_out(tmp_path):
    folder = image_folder(tmp_path, splits=("",), classes=("cat",), count=40)
    for i in range(5):
        write_image(folder / f"dog/{i}.png", colour=(100, i, 7))
    loaded = data.load(str(folder))
    assert torch.bincount(loaded.train.labels).tolist() == [32, 4]
    assert torch.bincount(loaded.test.labels).tolist() == [8, 1]
    for part in (loaded.train, loaded.test):
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), 100 * part.labels)
    both = torch.cat((loaded.train.pixels, loaded.test.pixels))[:, 0, 0, :2].tolist()
    assert sorted(both) == [[0, i] for i in range(40)] + [[100, i] for i in range(5)]
    assert torch.equal(data.load(str(folder)).test.pixels, loaded.test.pixels)


def test_images_become_rgb_of_one_size(tmp_path):
    image_folder(tmp_path)
    write_image(tmp_path / "train/cat/0.png", size=(12, 9))
    write_image(tmp_path / "train/cat/1.jpg", size=(40, 40), colour=(80, 80, 80), mode="L")
    write_image(tmp_path / "train/dog/0.png", size=(5, 30), colour=(0, 0, 255), mode="P")
    (tmp_path / "train/dog/notes.txt").write_text("not an image, and not named like one")
    loaded = data.load(str(tmp_path))
    assert loaded.train.pixels.shape == (7, 9, 9, 3)  # the shorter side of the first one
    assert loaded.test.pixels.shape == (6, 9, 9, 3)
    assert (loaded.train.pixels[0] == torch.tensor([255, 0, 0])).all()
    assert (loaded.train.pixels[1] == torch.tensor([80, 80, 80])).all()
    assert (loaded.train.pixels[4] == torch.tensor([0, 0, 255])).all()


def empty_class(folder):
    (folder / "train/eel").mkdir()
    (folder / "test/eel").mkdir()


def break_image(folder):
    (folder / "test/dog/1.png").write_bytes(b"not an image")


def cut_image(folder):
    path = folder / "train/cat/2.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])


def deep_image(mode, values):
    def save(folder):
        Image.fromarray(np.full((9, 9), values)).convert(mode).save(folder / "train/cat/2.tif")

    return save


def rename(source, target):
    return lambda folder: (folder / source).rename(folder / target)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "train/eel: holds no image"),
        (break_image, "test/dog/1.png: not an image that can be read.*convert, replace or remove it"),
        (cut_image, "train/cat/2.png: not an image that can be read.*convert, replace or remove it"),
        (deep_image("I;16", np.uint16(40_000)), r"2.tif: not an .* more than 8 bits a channel \(mode I;16\); convert"),
        (deep_image("I", np.int32(40_000)), r"more than 8 bits a channel \(mode I\)"),
        (deep_image("F", np.float32(0.5)), r"more than 8 bits a channel \(mode F\)"),
        (rename("test", "other"), "has train, but no folder test or val or valid beside it"),
        (rename("test/dog", "test/cow"), "must have the same classes as .*; only one has cow, dog"),
        (rename("train", "../elsewhere"), "must hold at least 2 folders, one for each class, got"),
    ],
)
def test_damaged_folder(damage, message, tmp_path):
    folder = image_folder(tmp_path / "data")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        data.load(str(folder))


def test_a_class_with_one_image_cannot_be_split(tmp_path):
    folder = image_folder(tmp_path, splits=("",))
    write_image(folder / "eel/0.png")
    with pytest.raises(ValueError, match="needs at least 2 images of every class"):
        data.load(str(folder))


def test_every_class_is_in_the_test_however_few_its_images(tmp_path):
    folder = image_folder(tmp_path, splits=("",), classes=("cat",), count=2)
    for i in range(98):
        write_image(folder / f"dog/{i}.png")
    loaded = data.load(str(folder))
    assert torch.bincount(loaded.train.labels).tolist() == [1, 78]
    assert torch.bincount(loaded.test.labels).tolist() == [1, 20]


def test_hidden_folders_are_left_out(tmp_path):
    image_folder(tmp_path)
    write_image(tmp_path / "train/cat/.ipynb_checkpoints/0-checkpoint.png")
    write_image(tmp_path / "train/cat/more/9.png")
    assert len(data.load(str(tmp_path)).train.labels) == 7
