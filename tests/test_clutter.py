"""Cluttered digits: made the same each time, of digits of their own side."""

import pytest
import torch

from advnas.data import images as data
from advnas.data.images import clutter, digits


@pytest.fixture(scope="module")
def loaded():
    return data.load("clutter")


def test_what_it_is(loaded):
    for part, count in clutter.COUNTS.items():
        images = getattr(loaded, part)
        assert images.pixels.shape == (count, 16, 16, 1)
        assert images.pixels.dtype == torch.uint8
        assert images.labels.shape == (count,)
        shares = torch.bincount(images.labels, minlength=10) / count
        assert ((shares > 0.08) & (shares < 0.12)).all()
    assert loaded.classes == tuple("0123456789")
    assert not torch.equal(loaded.train.pixels[:100], loaded.test.pixels[:100])


def test_it_is_the_same_each_time(loaded):
    again = clutter.load()
    assert torch.equal(again.train.pixels, loaded.train.pixels)
    assert torch.equal(again.test.labels, loaded.test.labels)


def test_scenes_hold_their_digit_somewhere(monkeypatch):
    """Without noise and pieces, a scene is a digit of its class, dimmed, and nothing else."""
    monkeypatch.setattr(clutter, "NOISE", 0.0)
    monkeypatch.setattr(clutter, "PIECES", 0)
    source = digits.load().train
    scenes = clutter.scenes(source, 300, seed=3)
    corners = set()
    for pixels, label in zip(scenes.pixels.squeeze(3).float(), scenes.labels.tolist(), strict=True):
        windows = pixels.unfold(0, 8, 1).unfold(1, 8, 1)  # [9, 9, 8, 8]
        inside = windows.sum((2, 3))
        assert inside.max() == pixels.sum()
        of_class = source.pixels[source.labels == label].squeeze(3).float()
        best = windows[inside == inside.max()].flatten(1)
        similar = (
            torch.nn.functional.normalize(best, dim=1) @ torch.nn.functional.normalize(of_class.flatten(1), dim=1).t()
        )
        assert similar.max() > 0.999
        corners.add(int(inside.argmax()))
    assert len(corners) > 40
    brightness = scenes.pixels.flatten(1).max(1).values
    assert brightness.min() < 0.7 * 255 < 0.9 * 255 < brightness.max()


def test_every_digit_comes_equally_often():
    source = digits.load().test
    scenes = clutter.scenes(source, 2 * len(source), seed=0)
    assert torch.equal(torch.bincount(scenes.labels), 2 * torch.bincount(source.labels))
