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
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path as FilePath
from typing import Literal

import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy import stats
from sides import PlainNetwork
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advnas.data.images import ImageData, Images, load
from advnas.search import evaluate, weight_step
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tasks.base import Scores
from advnas.tasks.image import ImageSearchConfig, ImageTask
from advnas_ext import Path

Side = Literal["plain", "engine"]
SIDES: tuple[Side, ...] = ("plain", "engine")
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
COLORS = {"plain": "#4477aa", "engine": "#cc6677"}
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
    out: FilePath = FilePath(__file__).parent / "results"
    """Folder of parity.csv, which holds the finished runs, and of parity.svg."""
    side: Literal["plain", "engine", "both"] = "both"
    """Which runs this process makes."""
    images: int = 50_000
    """Of the training set; half of them train the weights. Fewer, for a trial."""


@dataclass(frozen=True)
class Row:
    """An epoch of a run. ``valid_loss`` is the mean over the same paths and held-out images after each epoch."""

    seed: int
    side: str
    epoch: int
    train_loss: float
    valid_loss: float
    seconds: float  # of training, evaluation left out
    images: int
    threads: int


class Store:
    """parity.csv: runs are added whole, by any number of processes."""

    def __init__(self, path: FilePath, settings: Settings) -> None:
        self.path = path
        self.settings = settings

    def runs(self) -> dict[tuple[int, str], list[Row]]:
        """The finished runs, by seed and side.

        Raises:
            SystemExit: one of them has other settings.
        """
        runs: dict[tuple[int, str], list[Row]] = defaultdict(list)
        if self.path.exists():
            with self.path.open(newline="") as file:
                for text in csv.DictReader(file):
                    row = Row(
                        seed=int(text["seed"]),
                        side=text["side"],
                        epoch=int(text["epoch"]),
                        train_loss=float(text["train_loss"]),
                        valid_loss=float(text["valid_loss"]),
                        seconds=float(text["seconds"]),
                        images=int(text["images"]),
                        threads=int(text["threads"]),
                    )
                    runs[row.seed, row.side].append(row)
        for (seed, side), rows in runs.items():
            found, wanted = (len(rows), rows[0].images), (self.settings.epochs, self.settings.images)
            if found != wanted:
                raise SystemExit(
                    f"parity.py: {self.path} holds seed {seed} of {side} with {found[0]} epochs on {found[1]} images, "
                    f"not {wanted[0]} on {wanted[1]}; give another --out"
                )
        return {key: rows for key, rows in runs.items() if key[0] < self.settings.seeds}

    def add(self, rows: Sequence[Row]) -> None:
        """In one piece, behind what other processes have added."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.tell() == 0:
                writer.writerow([field.name for field in fields(Row)])
            writer.writerows([getattr(row, field.name) for field in fields(Row)] for row in rows)
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
    config = ImageSearchConfig(
        data="cifar10",
        estimator="random",
        seed=seed,
        epochs=settings.epochs,
        channels=16,
        cells=1,
        batch_size=64,
        lr=0.025,
        lr_min=0.001,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        grad_clip=5,
        valid_batches=4,
        threads=settings.threads,
    )
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


def train(
    task: ImageTask, state: SearchState, side: Side, settings: Settings, advance: Callable[[], None]
) -> list[Row]:
    """A whole run. ``advance`` is called after each step and after each path that is evaluated."""
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
        valid_loss = statistics.fmean(losses)
        state.epoch, state.step, state.scores = state.epoch + 1, 0, Scores()
        values = (round(train_loss, 6), round(valid_loss, 6), round(seconds, 2))
        rows.append(Row(state.config.seed, side, state.epoch, *values, settings.images, settings.threads))
    return rows


def make_runs(settings: Settings, store: Store, console: Console) -> None:
    done = store.runs()
    wanted = SIDES if settings.side == "both" else (settings.side,)
    # Sides in turn, so that what is there after a while can be compared.
    missing = [(seed, side) for seed in range(settings.seeds) for side in wanted if (seed, side) not in done]
    if not missing:
        return
    images = load("cifar10", settings.data_dir)
    images = replace(
        images, train=Images(images.train.pixels[: settings.images], images.train.labels[: settings.images])
    )
    compare(settings, images)
    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        task = progress.add_task("", total=None)
        for count, (seed, side) in enumerate(missing):
            searched, state = make_state(settings, seed, side, images)
            units = settings.epochs * (state.steps_per_epoch + len(VALID_PATHS))
            progress.update(task, total=units * len(missing), description=f"seed {seed}, {side}")
            if (seed, side) not in store.runs():  # another process may have made it meanwhile
                store.add(train(searched, state, side, settings, lambda: progress.advance(task)))
            progress.update(task, completed=units * (count + 1))


def summarise(settings: Settings, runs: dict[tuple[int, str], list[Row]]) -> Table:
    """Final losses of both sides, and the seconds of a run without its evaluation."""
    title = f"After {settings.epochs} epochs on {settings.images // 2} images, {settings.seeds} seeds; diff.: engine - plain"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "plain", "engine", "diff.", "95 % of that", "sd of plain"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for loss, name in LOSSES.items():
        plain, engine = ([getattr(runs[seed, side][-1], loss) for seed in range(settings.seeds)] for side in SIDES)
        paired = [b - a for a, b in zip(plain, engine, strict=True)]
        difference = statistics.fmean(paired)
        interval = spread = "needs 2 seeds"
        if len(paired) > 1:
            # Student's t for the mean of the pairs.
            half = stats.t.ppf(0.975, len(paired) - 1) * statistics.stdev(paired) / len(paired) ** 0.5
            interval, spread = f"{difference - half:+.4f} to {difference + half:+.4f}", f"{statistics.stdev(plain):.4f}"
        means = (f"{statistics.fmean(values):.4f}" for values in (plain, engine))
        table.add_row(name, *means, f"{difference:+.4f}", interval, spread)
    seconds = [statistics.fmean(runs[seed, side][-1].seconds for seed in range(settings.seeds)) for side in SIDES]
    table.add_row("seconds a run", *(f"{value:.0f}" for value in seconds))
    return table


def draw(settings: Settings, runs: dict[tuple[int, str], list[Row]], path: FilePath) -> None:
    """Both losses by epoch: each seed thin, their mean thick."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "parity", "font.size": 9}):
        figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        epochs = range(1, settings.epochs + 1)
        for axis, (loss, name) in zip(axes, LOSSES.items(), strict=True):
            for side in SIDES:
                curves = [[getattr(row, loss) for row in runs[seed, side]] for seed in range(settings.seeds)]
                for curve in curves:
                    axis.plot(epochs, curve, color=COLORS[side], linewidth=0.6, alpha=0.6)
                mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
                label = {"plain": "plain PyTorch", "engine": "advnas_ext"}[side]
                axis.plot(epochs, mean, color=COLORS[side], linewidth=2.2, label=label)
            axis.set_xlabel("epoch")
            axis.set_title(f"{name}, {settings.seeds} seeds")
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main(settings: Settings) -> None:
    if settings.seeds < 1 or settings.epochs < 1:
        raise SystemExit(f"parity.py: needs --seeds >= 1 and --epochs >= 1, got {settings.seeds} and {settings.epochs}")
    torch.set_num_threads(settings.threads)
    console = Console()
    store = Store(settings.out / "parity.csv", settings)
    make_runs(settings, store, console)
    runs = store.runs()
    missing = [f"{seed} {side}" for seed in range(settings.seeds) for side in SIDES if (seed, side) not in runs]
    if missing:
        console.print(f"not there yet: {', '.join(missing)}; the table and the figure need all")
        return
    console.print(summarise(settings, runs))
    figure = settings.out / "parity.svg"
    draw(settings, runs, figure)
    console.print(f"written to {figure}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
