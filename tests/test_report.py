import io
import math

import pytest
import torch
from PIL import Image
from rich.console import Console

from advnas.report import console, curves, figures, numbers
from advnas.report.comparison import FOUND, OTHER, comparison
from advnas.run.folder import Logits
from advnas.spaces.nasbench201 import NASBENCH201


@pytest.mark.parametrize(
    "correct, count, low, high",
    # Newcombe 1998, table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval(correct, count, low, high):
    assert numbers.wilson(correct, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.94, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_duration(seconds, text):
    assert numbers.duration(seconds) == text


def test_paired_differences_by_hand():
    """Of 100 examples both are right on 60, only the first on 25, only the second on 5."""
    first = torch.tensor([True] * 85 + [False] * 15)
    second = torch.tensor([True] * 60 + [False] * 25 + [True] * 5 + [False] * 10)
    difference, low, high = numbers.paired_difference(first, second)
    half = 1.959964 * math.sqrt(30 - 400 / 100) / 100
    assert (difference, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert numbers.paired_difference(first, first) == (0, 0, 0)


def test_paired_intervals_cover_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        both = torch.rand(1000, generator=generator) < 0.5
        first = both | (torch.rand(1000, generator=generator) < 0.4)  # 0.7
        second = both | (torch.rand(1000, generator=generator) < 0.2)  # 0.6
        _, low, high = numbers.paired_difference(first, second)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_comparison_is_a_picture():
    values = {"random cell": (0.5, (0.45, 0.55)), "found cell": (0.75, (0.7, 0.8))}
    picture = comparison(values, "found cell", "accuracy, %").decode()
    assert picture.count(FOUND.lower()) >= 2
    assert picture.count(OTHER.lower()) >= 2


def test_progress_is_a_line_an_epoch_where_there_is_no_terminal():
    out = io.StringIO()
    progress = console.Progress(
        "searching", 20, {"loss": ".2f", "accuracy": ".1%", "absent": ".1f"}, Console(file=out, width=200)
    )
    progress.start(0, 40)
    progress.advance(1, 40)
    progress.line({"epoch": 3, "loss": 1.234, "accuracy": 0.5, "arch": "|x|"})
    progress.stop()
    assert out.getvalue() == "epoch  3/20  loss 1.23  accuracy 50.0%\n"


def test_progress_shows_the_time_left_on_a_terminal():
    out = io.StringIO()
    progress = console.Progress("searching", 20, {}, Console(file=out, width=100, force_terminal=True))
    progress.start(20, 30)
    progress.advance(30, 40)
    progress.stop()
    assert "searching" in out.getvalue()
    assert "75%" in out.getvalue()
    assert "left" in out.getvalue()


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("table", [{}, {"cifar10_test_200": 90.0}])
def test_curves_are_a_picture(epochs, table):
    history = [
        {"epoch": i + 1, "train_loss": 2.0 - i / 9, "valid_loss": 2.1, "valid_accuracy": 0.3, "entropy": 1.5, **table}
        for i in range(epochs)
    ]
    logits = [
        [[float(i * op) for op in range(len(NASBENCH201.ops))] for _ in NASBENCH201.edges] for i in range(epochs + 1)
    ]
    logits = Logits(NASBENCH201.edge_names, NASBENCH201.ops, logits)
    picture = Image.open(io.BytesIO(curves.curves(history, logits, "valid_accuracy", "cifar10_test_200")))
    assert picture.format == "PNG"
    assert picture.width > 1000
    # The coloured lines of the operations are there, not only axes.
    colours = {tuple(colour[:3]) for _, colour in picture.convert("RGB").getcolors(picture.width * picture.height)}
    for name in figures.COLOURS[: len(NASBENCH201.ops)]:
        assert tuple(int(name[i : i + 2], 16) for i in (1, 3, 5)) in colours


def test_softmax_is_stable():
    assert curves.softmax([1000.0, 1000.0, -1000.0]) == [0.5, 0.5, 0.0]
    assert math.isclose(sum(curves.softmax([0.3, -2.0, 1.0])), 1)
