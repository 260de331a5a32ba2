"""The toy regression of AdvantageNAS (Sato, Sakuma & Akimoto, AAAI 2021): which estimator finds a teacher's operations first?

    y(x) = mean_p sum_{ij} v_p[i, j] tanh(gate_p * (w_{p, a_p} (*) x)[i, j])

x is a 13x13 image, uniform in [-1, 1]. At each of ten positions p a fixed 7x7 convolution with stride 2 makes ten 4x4 channels,
and candidate operation k is channel k; then comes a fixed 4x4 convolution to one number. Weights are N(0, 1/fan_in), biases 0.
A teacher has one random operation at each position; the student shares all weights and learns the operations from the mean squared
error on batches of 100. In a trial all methods have the same weights, teacher and batches.

Writes results.csv (100 x the loss of the argmax architecture) and losses.svg (median and quartiles over the trials) to --out.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import matplotlib
import torch
import tyro
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor
from torch.nn.functional import mse_loss

from advnas_ext import ESTIMATORS, Path

POSITIONS, OPS, IMAGE, KERNEL, MAP = 10, 10, 13, 7, 4
SHOWN = (100, 200, 400, 600)

# Label: estimator, its settings, and what the paper's code gave at the steps SHOWN (medians of 6 trials, other teachers).
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "REINFORCE": ("reinforce", {}, (1.90, 1.60, 0.99, 0.85)),
    "PARSEC": ("parsec", {}, (3.5, 4.2, 3.7, 4.0)),
    "GDAS": ("gdas", {"unpicked": "sum"}, (1.66, 0.64, 0.10, 0.23)),
    "ProxylessNAS": ("proxyless", {}, (0.92, 0.65, 0.30, 0)),
    "SNAS": ("snas", {}, (0.43, 0.13, 0.13, 0.13)),
    "AdvantageNAS": ("advantage", {}, (0.37, 0.40, 0, 0.21)),
    "DARTS": ("darts", {}, (0.15, 0.16, 0.18, 0.13)),
    "NASP": ("nasp", {}, (0, 0, 0, 0)),
}


@dataclass
class Settings:
    trials: int = 6
    """Teachers."""
    steps: int = 2000
    """Steps of the logits."""
    every: int = 10
    """Steps between two measurements of the argmax architecture."""
    batch_size: int = 100
    lr: float = 1e-3
    """Of Adam (0.9, 0.999) for the logits."""
    held_out: int = 1000
    """Images on which architectures are measured."""
    seed: int = 0
    out: FilePath = FilePath("runs/paper-toy")
    """Folder of results.csv and losses.svg."""


class Toy:
    """Shared weights, a teacher, and images for one trial.

    Attributes:
        first: [POSITIONS, OPS, KERNEL * KERNEL], the candidate operations.
        second: [MAP * MAP, POSITIONS], the convolution after each position, over POSITIONS.
        teacher: int64 [POSITIONS].
    """

    def __init__(self, seed: int, held_out: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(POSITIONS, OPS, KERNEL**2, generator=generator) / KERNEL
        self.second = torch.randn(MAP**2, POSITIONS, generator=generator) / MAP / POSITIONS
        self.teacher = torch.randint(OPS, (POSITIONS,), generator=generator)
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
        picked = self.first[torch.arange(POSITIONS)[:, None], path.ops].flatten(0, 1)
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


def search(toy: Toy, method: str, settings: Settings, seed: int) -> Iterator[tuple[int, float]]:
    """(step, 100 x the loss of the argmax architecture), before the first step and after every ``settings.every``."""
    name, own, _ = METHODS[method]
    estimator = ESTIMATORS[name](POSITIONS, OPS, total_steps=settings.steps, **own)
    optimizer = torch.optim.Adam([estimator.logits], lr=settings.lr, betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(seed)
    batches = toy.batches(settings.batch_size)
    for step in range(settings.steps + 1):
        if step % settings.every == 0:
            yield step, 100 * toy.held_out_loss(estimator.argmax())
        path = estimator.sample(generator)
        loss = toy.loss(next(batches), path)
        loss.backward()
        estimator.assign_grad(path, loss)
        optimizer.step()
        optimizer.zero_grad()
        estimator.after_step(path)


Results = dict[str, dict[int, list[float]]]  # method, step: a value for each trial


def run(settings: Settings) -> Results:
    results: Results = {method: {} for method in METHODS}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=settings.trials * len(METHODS) * (settings.steps // settings.every + 1))
        for trial in range(settings.trials):
            toy = Toy(settings.seed + trial, settings.held_out)
            for method in METHODS:
                progress.update(bar, description=f"trial {trial + 1}: {method}")
                for step, loss in search(toy, method, settings, settings.seed + trial):
                    results[method].setdefault(step, []).append(loss)
                    progress.advance(bar)
    return results


def write_csv(results: Results, path: FilePath) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "step", "trial", "loss_times_100"])
        for method, curve in results.items():
            for step, losses in curve.items():
                writer.writerows([method, step, trial, f"{loss:.6g}"] for trial, loss in enumerate(losses))


def draw(results: Results, path: FilePath) -> None:
    matplotlib.rcParams["svg.hashsalt"] = "paper-toy"  # the same results give the same file
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for method, curve in results.items():
        steps = list(curve)
        values = torch.tensor(list(curve.values()))
        low, median, high = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75]), dim=1)
        (line,) = axes.plot(steps, median, label=method, linewidth=2 if method == "AdvantageNAS" else 1.2)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel="100 x loss of the argmax architecture", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def table(results: Results, trials: int) -> Table:
    last = max(next(iter(results.values())))
    steps = [step for step in SHOWN if step in results["NASP"]]
    made = Table(
        title=f"100 x loss of the argmax architecture at a step, medians of {trials} trials; in brackets the paper's code",
        box=SIMPLE,
    )
    made.add_column("method", no_wrap=True)
    for step in [*steps, last]:
        made.add_column(str(step), justify="right", no_wrap=True)
    for method, curve in results.items():
        paper = dict(zip(SHOWN, METHODS[method][2], strict=True))
        cells = [f"{statistics.median(curve[step]):.2f} ({paper[step]:.2f})" for step in steps]
        made.add_row(method, *cells, f"{statistics.median(curve[last]):.2f}")
    return made


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    settings.out.mkdir(parents=True, exist_ok=True)
    results = run(settings)
    write_csv(results, settings.out / "results.csv")
    draw(results, settings.out / "losses.svg")
    console = Console()
    console.print(table(results, settings.trials))
    console.print(f"{settings.out / 'results.csv'} and {settings.out / 'losses.svg'}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
