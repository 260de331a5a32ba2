import itertools

import pytest
import torch

from advnas.data import images as data
from advnas.data.images import Augment, Batches, Evaluation, ImageData, Images, split_halves
from advnas.data.images.base import normalise, pixel_statistics

PLAIN = Augment(0, flip=False)
MEAN, STD = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3])


def random_images(count, height=8, width=8, channels=3, classes=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
    pixels[:, 0, 0, 0] = torch.arange(count)  # tells the images apart
    return Images(pixels, torch.arange(count) % classes)


def batches(images, batch_size, seed=0, index=None, augment=PLAIN):
    return Batches(
        data_of(images, augment=augment),
        torch.arange(len(images)) if index is None else index,
        batch_size,
        generator=torch.Generator().manual_seed(seed),
    )


def data_of(images, pad=0, augment=None):
    return ImageData(images, images, ("a", "b", "c", "d"), MEAN, STD, augment or Augment(pad, flip=True))


def one_epoch(source):
    """Its batches; bounded, so that a pass that never ends is a failure."""
    return list(itertools.islice(source, 100))


def identities(x):
    """The numbers that ``random_images`` wrote into the images."""
    return (x[:, 0, 0, 0] * STD[0] + MEAN[0]).mul(255).round().long()


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Data sets


@pytest.mark.parametrize("name", data.DATA)
def test_every_set_that_comes_with_the_package(name):
    """What the task and a resumed search take for granted. Sets of files: test_data_files.py."""
    try:
        loaded, again = data.load(name), data.load(name)
    except ValueError as error:
        assert str(error).startswith("data_dir: ")  # noqa: PT017
        pytest.skip("lies in files")
    for part, same in ((loaded.train, again.train), (loaded.test, again.test)):
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.pixels.shape == (len(part), loaded.image_size, loaded.image_size, loaded.in_channels)
        assert part.labels.unique().tolist() == list(range(len(loaded.classes)))
        assert equal((part.pixels, part.labels), (same.pixels, same.labels))
    for found, expected in zip((loaded.mean, loaded.std), pixel_statistics(loaded.train.pixels), strict=True):
        torch.testing.assert_close(found, expected)


def test_digits():
    digits = data.load("digits")
    assert digits.train.pixels.shape == (1198, 8, 8, 1)
    assert digits.test.pixels.shape == (599, 8, 8, 1)
    assert digits.train.pixels.dtype == torch.uint8
    assert digits.train.pixels.max() == 255
    assert digits.classes == tuple("0123456789")
    assert (digits.in_channels, digits.image_size) == (1, 8)
    shares = [torch.bincount(part.labels) / len(part) for part in (digits.train, digits.test)]
    assert (shares[0] - shares[1]).abs().max() < 0.002
    assert equal(
        (digits.train.pixels, digits.test.labels), (data.load("digits").train.pixels, data.load("digits").test.labels)
    )
    seen = {image.numpy().tobytes() for image in digits.train.pixels}
    assert sum(image.numpy().tobytes() in seen for image in digits.test.pixels) == 0


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match=rf"{', '.join(data.DATA)}, or a folder .* no folder cifar11"):
        data.load("cifar11")


# Augmentation


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_all_windows_of_the_padded_ones(flip):
    pad, height, width = 2, 6, 5
    image = torch.randint(1, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augmented = Augment(pad, flip)(image.expand(4000, height, width, 3), torch.Generator().manual_seed(1))
    assert augmented.shape == (4000, height, width, 3)
    padded = torch.zeros(height + 2 * pad, width + 2 * pad, 3, dtype=torch.uint8)
    padded[pad:-pad, pad:-pad] = image
    canvases = [padded, padded.flip(1)] if flip else [padded]
    windows = torch.stack(
        [
            canvas[top : top + height, left : left + width]
            for canvas in canvases
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
        ]
    )
    matches = (augmented.unsqueeze(1) == windows.unsqueeze(0)).flatten(2).all(2)
    assert (matches.sum(1) == 1).all()
    counts = matches.sum(0)
    expected = 4000 / len(windows)
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_images_of_a_batch_are_augmented_each_by_itself():
    images = random_images(64)
    augmented = Augment(0, flip=True)(images.pixels, torch.Generator().manual_seed(0))
    for image, original in zip(augmented, images.pixels, strict=True):
        assert torch.equal(image, original) or torch.equal(image, original.flip(1))


def test_augmentation_leaves_its_input_and_the_global_generator_alone():
    pixels = random_images(8).pixels
    before, state = pixels.clone(), torch.get_rng_state()
    Augment(4, flip=True)(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)


# Smaller images


def test_resized_pixels_are_the_means_of_those_that_they_cover():
    images = random_images(10, 8, 8)
    small = images.resized(4)
    assert small.pixels.shape == (10, 4, 4, 3)
    assert small.pixels.dtype == torch.uint8
    assert small.pixels.is_contiguous()
    assert torch.equal(small.labels, images.labels)
    expected = images.pixels.double().unflatten(2, (4, 2)).unflatten(1, (4, 2)).mean((2, 4))
    assert (small.pixels - expected).abs().max() <= 0.5
    odd = (
        images.resized(3).pixels[:, 1, 0].double()
    )  # rows 2 to 5, columns 0 to 2: whole pixels, where they overlap too
    assert (odd - images.pixels[:, 2:6, 0:3].double().mean((1, 2))).abs().max() <= 0.5


def test_many_images_are_resized_like_one():
    images = Images(
        torch.arange(4100)[:, None, None, None].fmod(256).to(torch.uint8).expand(-1, 4, 4, 1), torch.zeros(4100)
    )
    assert torch.equal(images.resized(2).pixels, images.pixels[:, :2, :2])


@pytest.mark.parametrize("size, pad, expected", [(8, 4, 4), (4, 4, 2), (4, 3, 2), (5, 1, 1), (4, 0, 0)])
def test_shifts_shrink_with_the_images(size, pad, expected):
    small = data_of(random_images(4), pad).resized(size)
    assert small.image_size == size
    assert small.test.pixels.shape == (4, size, size, 3)
    assert (small.augment.pad, small.augment.flip) == (expected, True)
    assert torch.equal(small.mean, MEAN)


# Normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise(channels):
    pixels = random_images(5, 7, 6, channels).pixels
    mean, std = MEAN[:channels], STD[:channels]
    x = normalise(pixels, mean, std)
    expected = (pixels.double() / 255 - mean.double()) / std.double()
    torch.testing.assert_close(x.double(), expected.permute(0, 3, 1, 2), rtol=0, atol=2e-6)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_statistics():
    pixels = random_images(40).pixels
    mean, std = pixel_statistics(pixels)
    values = pixels.double() / 255
    torch.testing.assert_close(mean.double(), values.mean((0, 1, 2)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), values.std((0, 1, 2), correction=0), rtol=1e-6, atol=0)


def test_training_data_has_mean_0_and_deviation_1():
    digits = data.load("digits")
    x = normalise(digits.train.pixels, digits.mean, digits.std)
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-4


# Batches


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (64, [10])])
def test_every_image_comes_once_in_an_epoch(batch_size, sizes):
    images = random_images(20)
    index = torch.arange(1, 20, 2)
    half = batches(images, batch_size, index=index)
    for _ in range(3):
        epoch = one_epoch(half)
        assert [len(y) for _, y in epoch] == sizes
        assert len(half) == len(sizes)
        numbers = torch.cat([identities(x) for x, _ in epoch])
        assert torch.equal(numbers.sort().values, index)
        assert torch.equal(torch.cat([y for _, y in epoch]), images.labels[numbers])


def test_order_depends_on_seed_and_epoch():
    images = random_images(32)
    augment = Augment(1, flip=True)
    first, again, other = (batches(images, 8, seed, augment=augment) for seed in (0, 0, 1))
    epochs = [[torch.cat([x for x, _ in one_epoch(part)]) for part in (first, again, other)] for _ in range(2)]
    for one, same, different in epochs:
        assert torch.equal(one, same)
        assert not torch.equal(one, different)
    assert not torch.equal(epochs[0][0], epochs[1][0])


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 6, 7])
def test_resumed_batches_go_on_bit_for_bit(stop, tmp_path):
    """Stopped before, in the middle of, and at the end of an epoch."""
    images = random_images(23)

    def forever(source):
        while True:
            yield from source

    make = {"augment": Augment(2, flip=True)}
    whole = forever(batches(images, 4, **make))
    expected = [next(whole) for _ in range(stop + 15)][stop:]

    stopped = batches(images, 4, **make)
    running = forever(stopped)
    for _ in range(stop):
        next(running)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = batches(images, 4, seed=99, **make)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    running = forever(resumed)
    for batch in expected:
        assert equal(next(running), batch)


def test_saved_state_does_not_change_when_the_iteration_goes_on():
    source = batches(random_images(12), 4)
    running = iter(source)
    next(running)
    state = source.state_dict()
    copy = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    one_epoch(running)
    one_epoch(source)
    assert state["position"] == copy["position"]
    assert equal((state["order"], state["generator"]), (copy["order"], copy["generator"]))


def test_state_of_other_images_is_refused():
    images = random_images(20)
    first, second = (batches(images, 4, index=half) for half in torch.arange(20).split(10))
    next(iter(first))
    with pytest.raises(ValueError, match="the state must be of the same images"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize(("batch_size", "count"), [(0, 5), (4, 0)])
def test_batches_that_would_never_come(batch_size, count):
    with pytest.raises(ValueError, match=f"must have a batch, got batch_size {batch_size} for {count} images"):
        batches(random_images(5), batch_size, index=torch.arange(count))


def test_evaluation_batches_are_in_order():
    images = random_images(10)
    index = torch.tensor([7, 2, 9, 0, 4])
    evaluation = Evaluation(data_of(images), images, index, 2)
    x, y = (torch.cat(part) for part in zip(*evaluation(9), strict=True))
    assert torch.equal(identities(x), index)
    assert torch.equal(x, normalise(images.pixels[index], MEAN, STD))
    assert torch.equal(y, images.labels[index])
    assert [len(y) for _, y in evaluation(9)] == [2, 3]
    assert [len(y) for _, y in evaluation(2)] == [2, 2]


# Halves


@pytest.mark.parametrize("counts", [[10, 20, 4], [7, 5, 3, 9], [1, 1], [1]])
def test_halves_are_stratified(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    halves = split_halves(labels, seed=3)
    assert torch.equal(torch.cat(halves).sort().values, torch.arange(len(labels)))
    by_class = [torch.bincount(labels[half], minlength=len(counts)) for half in halves]
    assert (by_class[0] - by_class[1]).abs().max() <= 1
    assert len(halves[0]) - len(halves[1]) in (0, 1)


def test_halves_depend_on_the_seed_alone():
    labels = torch.arange(100) % 5
    torch.manual_seed(0)
    first = split_halves(labels, 1)
    torch.manual_seed(1)
    assert equal(split_halves(labels, 1), first)
    assert not equal(split_halves(labels, 2), first)
