"""How time and memory grow with the batch, the channels, the cells and the image, for ours and plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from advnas.report.figures import svg
from benchmarks.sheet import Sheet
from benchmarks.steps.measure import compare
from benchmarks.steps.sides import OURS, PLAIN, STEPS, peak_of
from benchmarks.steps.work import Case

SIDES = {OURS: "tab:blue", PLAIN: "tab:orange"}
ALLOWED = 1.1  # the exponent of growth that passes as linear: times are not exact


@dataclass(frozen=True)
class Axis:
    """A size that varies.

    Attributes:
        field: of Case.
        exponent: the work of a step grows with this power of the size, by nature: pixels are the square of an image's height,
            multiply-adds of a convolution the square of its channels.
        memory_exponent: the same of the activations.
    """

    name: str
    field: str
    values: Sequence[int]
    exponent: int = 1
    memory_exponent: int = 1


AXES = (
    Axis("images in the batch", "batch_size", (16, 32, 64, 128, 256)),
    Axis("channels", "channels", (8, 16, 32, 64), exponent=2),
    Axis("cells in a stage", "cells", (1, 2, 4, 8)),
    Axis("height and width of the images", "image_size", (16, 32, 64), exponent=2, memory_exponent=2),
)


@dataclass
class Curve:
    """One side along one axis.

    Attributes:
        ms: medians over the paths, of a weight step and an architecture step together.
        mib: peak memory of a weight step, in a process of its own.
    """

    ms: list[float]
    mib: list[float]


Curves = dict[tuple[str, str], Curve]  # field, side


def points() -> int:
    return sum(len(axis.values) for axis in AXES)


def measure(case: Case, paths: Tensor, threads: int, advance: Callable[[], None]) -> Curves:
    """``advance`` is called after each point."""
    curves = {(axis.field, side): Curve([], []) for axis in AXES for side in SIDES}
    for axis in AXES:
        for value in axis.values:
            at = replace(case, **{axis.field: value})
            comparison = compare(at, SIDES, paths, lambda: None)
            for side in SIDES:
                curve = curves[axis.field, side]
                curve.ms.append(sum(comparison[side, to_gates].median for to_gates in STEPS))
                curve.mib.append(peak_of(side, False, at, paths, threads))
            advance()
    return curves


def exponent(axis: Axis, values: Sequence[float]) -> float:
    """p of values ~ size^p between the first and the last point."""
    return math.log(values[-1] / values[0]) / math.log(axis.values[-1] / axis.values[0])


def sheet(curves: Curves) -> Sheet:
    """The check that nothing of ours grows faster than the work."""
    made = Sheet(
        "Growth: p of time ~ size^p and of memory ~ size^p from the smallest to the largest size, and what they have by nature: "
        "multiply-adds grow with the square of the channels, and everything with the square of the image's height",
        ("size", "from - to", "by nature", "time", "memory", "plain: time", "memory", "ours within"),
    )
    for axis in AXES:
        both = [curves[axis.field, side] for side in SIDES]
        found = [exponent(axis, values) for curve in both for values in (curve.ms, curve.mib)]
        natural = (axis.exponent, axis.memory_exponent)
        within = all(p <= ALLOWED * limit for p, limit in zip(found[:2], natural, strict=True))
        span = f"{axis.values[0]} - {axis.values[-1]}"
        numbers = (f"{p:.2f}" for p in found)
        made.rows.append([axis.name, span, f"{natural[0]}, {natural[1]}", *numbers, "yes" if within else "no"])
    return made


def draw(curves: Curves, path: FilePath) -> None:
    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, axis in zip(figure.subplots(2, 2).flat, AXES, strict=True):
        _panel(axes, axis, curves)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    more = figure.axes[len(AXES)].get_legend_handles_labels()  # of the first panel's right side
    figure.legend(handles + more[0], labels + more[1], loc="outside lower center", ncols=3, frameon=False)
    path.write_bytes(svg(figure, "growth"))


def _panel(axes: Axes, axis: Axis, curves: Curves) -> None:
    """Time on the left, memory on the right, against the size, or against its square where the work is that."""
    right = axes.twinx()
    x = [value**axis.exponent for value in axis.values]
    for side, color in SIDES.items():
        curve = curves[axis.field, side]
        axes.plot(x, curve.ms, color=color, marker="o", label=f"{side}: time")
        right.plot(x, curve.mib, color=color, marker="s", alpha=0.5, linestyle=":", label=f"{side}: memory")
    start = curves[axis.field, OURS].ms[0]
    axes.plot(x, [start * value / x[0] for value in x], color="gray", linestyle="--", label="linear")
    axes.set(xscale="log", yscale="log", xlabel=axis.name + (" (axis: squares)" if axis.exponent == 2 else ""))
    axes.set_ylabel("ms, both steps")
    right.set(yscale="log", ylabel="peak MiB")
    for each in (axes, right):
        each.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        each.yaxis.set_major_formatter("{x:g}")
        each.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(x, [str(value) for value in axis.values])
    axes.minorticks_off()
