"""The toy regression of AdvantageNAS (Sato, Sakuma & Akimoto, AAAI 2021): which estimator finds a teacher's operations first?

    y(x) = mean_p sum_{ij} v_p[i, j] tanh(gate_p * (w_{p, a_p} (*) x)[i, j])

x is a 13x13 image, uniform in [-1, 1]. At each of ten positions p a fixed 7x7 convolution with stride 2 makes ten 4x4 channels,
and candidate operation k is channel k; then comes a fixed 4x4 convolution to one number. Weights are N(0, 1/fan_in), biases 0.
A teacher has one random operation at each position; the student shares all weights and learns the operations from the mean squared
error on batches of 100. In a trial all methods have the same weights, teacher and batches.

Writes paper-toy.csv and paper-toy.svg, the median and the quartiles over the trials of 100 x the loss of the argmax architecture,
and prints the medians beside those of the paper's code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import mse_loss

from advnas.checkpoint import write_atomic
from advnas.report.console import Rounds, console
from advnas.report.figures import svg
from advnas.run.folder import write_csv
from advnas.search import estimate
from advnas_ext import ESTIMATORS, Path
from benchmarks.sheet import RESULTS, Sheet

POSITIONS, OPS, IMAGE, KERNEL, MAP = 10, 10, 13, 7, 4
SHOWN = (100, 200, 400, 600)
CIRCLE: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "white", "markersize": 5}

Name = Literal["REINFORCE", "PARSEC", "GDAS", "ProxylessNAS", "SNAS", "AdvantageNAS", "DARTS", "NASP"]


@dataclass(frozen=True)
class Method:
    """An estimator and its settings.

    Attributes:
        paper: what the paper's code gave at the steps SHOWN: medians of 6 trials with other weights and teachers.
    """

    estimator: str
    color: str
    paper: tuple[float, ...]
    settings: dict[str, Any] = field(default_factory=dict)


# Colours of Okabe & Ito, told apart by colour-blind readers too.
METHODS: dict[Name, Method] = {
    "REINFORCE": Method("reinforce", "#E69F00", (1.90, 1.60, 0.99, 0.85)),
    "PARSEC": Method("parsec", "#999999", (3.5, 4.2, 3.7, 4.0)),
    "GDAS": Method("gdas", "#CC79A7", (1.66, 0.64, 0.10, 0.23), {"unpicked": "sum"}),
    "ProxylessNAS": Method("proxyless", "#56B4E9", (0.92, 0.65, 0.30, 0)),
    "SNAS": Method("snas", "#009E73", (0.43, 0.13, 0.13, 0.13)),
    "AdvantageNAS": Method("advantage", "#D55E00", (0.37, 0.40, 0, 0.21)),
    "DARTS": Method("darts", "#0072B2", (0.15, 0.16, 0.18, 0.13)),
    "NASP": Method("nasp", "#000000", (0, 0, 0, 0)),
}


@dataclass
class Settings:
    methods: tuple[Name, ...] = get_args(Name)
    trials: int = 12
    """Teachers."""
    steps: int = 2000
    """Steps of the logits."""
    every: int = 20
    """Steps between two measurements of the argmax architecture."""
    batch_size: int = 100
    lr: float = 1e-3
    """Of Adam (0.9, 0.999) for the logits."""
    held_out: int = 1000
    """Images on which architectures are measured."""
    seed: int = 0
    out: FilePath = RESULTS
    """Folder of paper-toy.csv and paper-toy.svg."""


class Toy:
    """Shared weights, a teacher, and images for one trial.

    Attributes:
        first: [positions, OPS, KERNEL * KERNEL], the candidate operations.
        second: [MAP * MAP, positions], the convolution after each position, over positions.
        teacher: int64 [positions].
        path_seed: of the paths that the estimators draw.
    """

    def __init__(self, seed: int, held_out: int, positions: int = POSITIONS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(positions, OPS, KERNEL**2, generator=generator) / KERNEL
        self.second = torch.randn(MAP**2, positions, generator=generator) / MAP / positions
        self.teacher = torch.randint(OPS, (positions,), generator=generator)
        self.path_seed = int(torch.randint(2**31, (), generator=generator))
        self.held_out = self.patches(generator, held_out)
        self._batch_state = generator.get_state()
        self._known: dict[tuple[int, ...], float] = {}

    @staticmethod
    def patches(generator: torch.Generator, images: int) -> Tensor:
        """What the first convolution sees of random images: [images, MAP * MAP, KERNEL * KERNEL]."""
        x = torch.rand(images, IMAGE, IMAGE, generator=generator) * 2 - 1
        return x.unfold(1, KERNEL, 2).unfold(2, KERNEL, 2).reshape(images, MAP**2, KERNEL**2)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The same ones at each call."""
        generator = torch.Generator()
        generator.set_state(self._batch_state)
        while True:
            yield self.patches(generator, batch_size)

    def output(self, patches: Tensor, path: Path) -> Tensor:
        """[images]: only the operations on the path are computed."""
        picked = self.first[torch.arange(len(self.first))[:, None], path.ops].flatten(0, 1)
        y = ((patches @ picked.T).unflatten(2, path.ops.shape) * path.gates).sum(3)
        if path.offsets is not None:
            y = y + path.offsets
        return (torch.tanh(y) * self.second).sum((1, 2))

    def loss(self, patches: Tensor, path: Path) -> Tensor:
        target = self.output(patches, Path.from_ops(self.teacher, requires_grad=False))
        return mse_loss(self.output(patches, path), target)

    def held_out_loss(self, ops: Tensor) -> float:
        key = tuple(ops.tolist())
        if key not in self._known:
            self._known[key] = self.loss(self.held_out, Path.from_ops(ops, requires_grad=False)).item()
        return self._known[key]


def search(toy: Toy, method: Method, settings: Settings) -> Iterator[tuple[int, float]]:
    """(step, 100 x the loss of the argmax architecture), before the first step and after every ``settings.every``."""
    kind = ESTIMATORS[method.estimator]
    estimator = kind(POSITIONS, OPS, total_steps=settings.steps, **method.settings)
    optimizer = torch.optim.Adam([estimator.logits], lr=settings.lr, betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(toy.path_seed)
    batches = toy.batches(settings.batch_size)
    for step in range(settings.steps + 1):
        if step % settings.every == 0:
            yield step, 100 * toy.held_out_loss(estimator.argmax())
        path = estimate(partial(toy.loss, next(batches)), estimator, generator)
        optimizer.step()
        optimizer.zero_grad()
        estimator.after_step(path)


# By method and step: quartile, median, quartile.
Curves = dict[Name, dict[int, tuple[float, float, float]]]


def run(settings: Settings) -> Curves:
    losses: dict[Name, dict[int, list[float]]] = {name: {} for name in settings.methods}
    with Rounds("trials", settings.trials * len(losses), console()) as rounds:
        for trial in range(settings.trials):
            toy = Toy(settings.seed + trial, settings.held_out)
            for name, curve in losses.items():
                for step, loss in search(toy, METHODS[name], settings):
                    curve.setdefault(step, []).append(loss)
                rounds.advance()
    return {name: {step: quartiles(values) for step, values in curve.items()} for name, curve in losses.items()}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Quartile, median, quartile."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, median, high


def rows(curves: Curves) -> list[dict[str, Any]]:
    columns = ("low_quartile", "median", "high_quartile")
    return [
        {"method": name, "step": step, **{column: f"{loss:.3g}" for column, loss in zip(columns, found, strict=True)}}
        for name, curve in curves.items()
        for step, found in curve.items()
    ]


def draw(curves: Curves) -> bytes:
    """A panel for each method; the axes show square roots, which spread out small numbers and still have a place for 0."""
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(10, 2.4 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, name in zip(panels, curves, strict=False):
        _panel(axes, name, curves)
    for axes in list(panels)[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=11)
    figure.supylabel("100 x loss of the argmax architecture", fontsize=11)
    gray = "#666666"
    legend = {
        "median": Line2D([], [], color=gray, linewidth=1.8),
        "from quartile to quartile": Patch(color=gray, alpha=0.25, linewidth=0),
        "the paper's code, medians of 6 other trials": Line2D([], [], color=gray, **CIRCLE),
    }
    figure.legend(list(legend.values()), list(legend), loc="outside upper center", ncols=3, frameon=False)
    return svg(figure, "paper-toy")


def _panel(axes: Axes, name: Name, curves: Curves) -> None:
    method, curve = METHODS[name], curves[name]
    steps = list(curve)
    low, median, high = zip(*curve.values(), strict=True)
    axes.fill_between(steps, low, high, color=method.color, alpha=0.25, linewidth=0)
    axes.plot(steps, median, color=method.color, linewidth=1.8)
    for step, loss in zip(SHOWN, method.paper, strict=True):
        if step <= steps[-1]:
            axes.plot(step, loss, color=method.color, clip_on=False, zorder=3, **CIRCLE)
    axes.set_title(name, color=method.color, fontweight="bold", fontsize=11)
    roots = (lambda x: x.clip(0) ** 0.5, lambda x: x**2)
    axes.set_xscale("function", functions=roots)
    axes.set_yscale("function", functions=roots)
    axes.set_xlim(0, max(steps[-1], 1))
    axes.set_xticks([step for step in (0, 100, 500, 1000, 2000) if step <= steps[-1]])
    axes.set_ylim(0, 5)
    axes.set_yticks([0, 0.1, 0.5, 1, 2, 4], ["0", "0.1", "0.5", "1", "2", "4"])
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def table_of(curves: Curves, trials: int) -> Table:
    measured = list(next(iter(curves.values())))
    steps = [step for step in measured if step in SHOWN or step == measured[-1]]
    lines = []
    for name, curve in curves.items():
        paper = {step: f" ({loss:.2f})" for step, loss in zip(SHOWN, METHODS[name].paper, strict=True)}
        lines.append([name, *(f"{curve[step][1]:.2f}{paper.get(step, '')}" for step in steps)])
    title = f"100 x loss of the argmax architecture, median of {trials} trials\n(in brackets: the paper's code)"
    return Sheet(title, ("after steps:", *map(str, steps)), rows=lines).rich()


def main(settings: Settings) -> None:
    torch.set_num_threads(1)  # the tensors are too small for more
    settings.out.mkdir(parents=True, exist_ok=True)
    curves = run(settings)
    write_csv(settings.out / "paper-toy.csv", rows(curves))
    write_atomic(settings.out / "paper-toy.svg", draw(curves))
    console().print(table_of(curves, settings.trials))
    console().print(f"{os.path.relpath(settings.out)}: paper-toy.csv, paper-toy.svg", soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
