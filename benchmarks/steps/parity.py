"""Whether a supernet trains as well on this engine as in plain PyTorch: the same training on both, seed by seed.

NAS-Bench-201's supernet on the half of CIFAR-10 that trains weights, on uniform random paths. For one seed both sides start from
the same weights and see the same images, augmentation and paths; they differ in rounding alone, which training amplifies until the
runs are as different as two seeds. So the question is whether the losses differ in the mean: the paired difference of the final
losses is shown with its interval of 95 %, beside the spread that the seeds make.

A finished run is kept as its rows of parity.csv and not repeated; --side lets two processes share the work, and an interrupted run
starts again. When all are there, the table is printed and parity.svg written.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advnas.data.images import ImageData, Images, load
from advnas.report.console import Rounds, console, print_table
from advnas.report.figures import plain, svg
from advnas.run.folder import read_csv
from advnas.search import evaluate, weight_step
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tasks.base import Scores
from advnas.tasks.image import ImageSearchConfig, ImageTask
from advnas_ext import Path
from benchmarks.sheet import RESULTS
from benchmarks.steps.plain import PlainNetwork

Side = Literal["plain", "engine"]
SIDES: tuple[Side, ...] = ("plain", "engine")
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
LABELS = {"plain": "plain PyTorch", "engine": "advnas_ext"}
COLORS = {"plain": "#4477aa", "engine": "#cc6677"}
RECIPE = {"data": "cifar10", "estimator": "random", "channels": 16, "cells": 1, "batch_size": 64, "valid_batches": 4}
RECIPE |= {"lr": 0.025, "lr_min": 0.001, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "grad_clip": 5}
VALID_PATHS = torch.randint(
    len(NASBENCH201.ops), (32, NASBENCH201.num_edges), generator=torch.Generator().manual_seed(0)
)


@dataclass
class Settings:
    data_dir: FilePath
    """Folder that holds cifar-10-batches-py."""
    seeds: int = 5
    """Runs of each side; their seeds are 0, 1, ..."""
    epochs: int = 6
    threads: int = 1
    out: FilePath = RESULTS
    """Folder of parity.csv, which holds the finished runs, and of parity.svg."""
    side: Literal["plain", "engine", "both"] = "both"
    """Which runs this process makes."""
    images: int = 50_000
    """Of the training set; half of them train the weights. Fewer, for a trial."""

    @property
    def file(self) -> FilePath:
        return self.out / "parity.csv"

    def all_runs(self) -> list[tuple[int, Side]]:
        """Sides in turn, so that what is there after a while can be compared."""
        return [(seed, side) for seed in range(self.seeds) for side in SIDES]


# An epoch of a run: valid_loss is the mean over the same paths and held-out images after each epoch; seconds are of training,
# evaluation left out.
Row = dict[str, Any]
Runs = dict[tuple[int, str], list[Row]]  # by seed and side
COLUMNS = ("seed", "side", "epoch", "train_loss", "valid_loss", "seconds", "images", "threads")


def finished(settings: Settings) -> Runs:
    """What parity.csv holds.

    Raises:
        SystemExit: one of its runs has other settings.
    """
    runs: Runs = defaultdict(list)
    for row in read_csv(settings.file) if settings.file.exists() else []:
        runs[row["seed"], row["side"]].append(row)
    for (seed, side), rows in runs.items():
        found, wanted = (len(rows), rows[0]["images"]), (settings.epochs, settings.images)
        if found != wanted:
            raise SystemExit(
                f"parity.py: {settings.file} holds seed {seed} of {side} with {found[0]} epochs on {found[1]} images, "
                f"not {wanted[0]} on {wanted[1]}; give another --out"
            )
    return {key: rows for key, rows in runs.items() if key[0] < settings.seeds}


def add(rows: list[Row], path: FilePath) -> None:
    """Rows are added in one piece, behind what other processes have added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END) == 0:
            writer.writeheader()
        writer.writerows(rows)
        file.write(text.getvalue())


class PlainSupernet(nn.Module):
    """The independent plain PyTorch network, called as this package's network is."""

    def __init__(self, network: nn.Module, config: ImageSearchConfig) -> None:
        super().__init__()
        self.plain = PlainNetwork(config.channels, config.cells)
        self.plain.load_state_dict(network.state_dict())
        self.plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, path: Path) -> Tensor:
        return self.plain(x, path.ops.flatten().tolist(), path.gates.flatten())


def make_state(settings: Settings, seed: int, side: Side, images: ImageData) -> tuple[ImageTask, SearchState]:
    """A search that never steps its logits: its weight steps are the training. Random numbers depend on the seed alone."""
    own = {"seed": seed, "epochs": settings.epochs, "threads": settings.threads}
    config = ImageSearchConfig().with_settings({**RECIPE, **own}, "parity.py")
    task = ImageTask(config, images)
    state = SearchState(config, task)
    if side == "plain":
        network = PlainSupernet(state.network, config)
        state.network = network
        state.weights = list(network.parameters())
        state.weight_optimizer.param_groups[0]["params"] = state.weights
    return task, state


def compare(settings: Settings, images: ImageData) -> None:
    """One loss and all its gradients on both sides, in float64 from the same weights.

    Raises:
        SystemExit: they differ.
    """
    ops = torch.tensor([3, 1, 2, 4, 2, 3])
    found = []
    for side in SIDES:
        _, state = make_state(settings, 0, side, images)
        x, y = next(state.weight_batches)
        loss = cross_entropy(state.network.double()(x[:8].double(), Path.from_ops(ops, dtype=torch.float64)), y[:8])
        loss.backward()
        # The bias of a convolution before batch norm has gradient 0, which need not be computed.
        parameters = {name.removeprefix("plain."): p for name, p in state.network.named_parameters()}
        found.append({name: p.grad for name, p in parameters.items() if p.grad is not None and p.grad.norm() > 1e-12})
    if found[0].keys() != found[1].keys():
        raise SystemExit(f"parity.py: only one side has gradients of {sorted(found[0].keys() ^ found[1].keys())}")
    error = max(((found[0][n] - found[1][n]).abs().max() / found[0][n].abs().max()).item() for n in found[0])
    if error > 1e-9:
        raise SystemExit(f"parity.py: gradients of the two sides differ by {error:.1e} in float64")


def train(task: ImageTask, state: SearchState, settings: Settings, advance: Callable[[], None]) -> list[Row]:
    """The epochs of a whole run. ``advance`` is called after each step and after each path that is evaluated."""
    rows: list[Row] = []
    seconds = 0.0
    while state.epoch < settings.epochs:
        begin = state.seconds
        while state.step < state.steps_per_epoch:
            weight_step(task, state)
            state.schedule.step()
            state.step += 1
            advance()
        seconds += state.seconds - begin
        train_loss = state.scores.means()["loss"]
        losses = []
        for ops in VALID_PATHS:
            losses.append(evaluate(task, state, ops, state.config.valid_batches)["loss"])
            advance()
        state.epoch, state.step, state.scores = state.epoch + 1, 0, Scores()
        values = (state.epoch, round(train_loss, 6), round(statistics.fmean(losses), 6), round(seconds, 2))
        rows.append(dict(zip(("epoch", "train_loss", "valid_loss", "seconds"), values, strict=True)))
    return rows


def make_runs(settings: Settings) -> None:
    missing = [key for key in settings.all_runs() if key not in finished(settings)]
    missing = [key for key in missing if settings.side in ("both", key[1])]
    if not missing:
        return
    images = load("cifar10", settings.data_dir)
    few = Images(images.train.pixels[: settings.images], images.train.labels[: settings.images])
    images = replace(images, train=few)
    compare(settings, images)
    for seed, side in missing:
        if (seed, side) in finished(settings):  # another process has made it meanwhile
            continue
        task, state = make_state(settings, seed, side, images)
        total = settings.epochs * (state.steps_per_epoch + len(VALID_PATHS))
        with Rounds(f"seed {seed}, {side}, of {len(missing)} runs", total) as rounds:
            rows = train(task, state, settings, rounds.advance)
        own = {"seed": seed, "side": side, "images": settings.images, "threads": settings.threads}
        add([{**own, **row} for row in rows], settings.file)


def summarise(settings: Settings, runs: Runs) -> None:
    """Print the final losses of both sides, and the seconds of a run without its evaluation."""

    def last(side: str, name: str) -> list[float]:
        return [runs[seed, side][-1][name] for seed in range(settings.seeds)]

    rows = []
    for loss, name in LOSSES.items():
        plain_losses, engine_losses = last("plain", loss), last("engine", loss)
        paired = [b - a for a, b in zip(plain_losses, engine_losses, strict=True)]
        interval = spread = "needs 2 seeds"
        if len(paired) > 1:
            low, high = stats.ttest_1samp(paired, 0).confidence_interval()  # Student's t for the mean of the pairs
            interval, spread = f"{low:+.4f} to {high:+.4f}", f"{statistics.stdev(plain_losses):.4f}"
        means = (f"{statistics.fmean(values):.4f}" for values in (plain_losses, engine_losses))
        rows.append([name, *means, f"{statistics.fmean(paired):+.4f}", interval, spread])
    rows.append(["seconds a run", *(f"{statistics.fmean(last(side, 'seconds')):.0f}" for side in SIDES)])
    title = f"After {settings.epochs} epochs on {settings.images // 2} images, {settings.seeds} seeds; diff.: engine - plain"
    print_table(title, ("", "plain", "engine", "diff.", "95 % of that", "sd of plain"), rows)


def draw(settings: Settings, runs: Runs, path: FilePath) -> None:
    """Both losses by epoch: each seed thin, their mean thick."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    epochs = range(1, settings.epochs + 1)
    for axes, (loss, name) in zip(figure.subplots(1, 2), LOSSES.items(), strict=True):
        for side in SIDES:
            curves = [[row[loss] for row in runs[seed, side]] for seed in range(settings.seeds)]
            for curve in curves:
                axes.plot(epochs, curve, color=COLORS[side], linewidth=0.6, alpha=0.6)
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            axes.plot(epochs, mean, color=COLORS[side], linewidth=2.2, label=LABELS[side])
        axes.set_xlabel("epoch")
        axes.set_title(f"{name}, {settings.seeds} seeds", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes)
    figure.axes[0].legend(frameon=False)
    path.write_bytes(svg(figure, "parity"))


def main(settings: Settings) -> None:
    if settings.seeds < 1 or settings.epochs < 1:
        raise SystemExit(f"parity.py: needs --seeds >= 1 and --epochs >= 1, got {settings.seeds} and {settings.epochs}")
    torch.set_num_threads(settings.threads)
    make_runs(settings)
    runs = finished(settings)
    missing = [f"{seed} {side}" for seed, side in settings.all_runs() if (seed, side) not in runs]
    if missing:
        console().print(f"not there yet: {', '.join(missing)}; the table and the figure need all")
        return
    summarise(settings, runs)
    draw(settings, runs, settings.out / "parity.svg")
    console().print(f"written to {settings.out / 'parity.svg'}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
