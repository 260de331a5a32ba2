"""NAS-Bench-201 on CIFAR-10, every estimator side by side: accuracy of the current cell against time.

The recipe is that of ``--preset fast`` without its last part, the training of neighbours, so that what is compared is the
estimators' own work. For each seed one warm-up is run, and every estimator goes on from it (``--warm-start``), as if it had been
its own. All learn for the same time: the steps of each are timed first, in turns, and those that cost more get fewer epochs. Each
has the logit learning rate that did best on the tuning seeds, by the found cell's loss on held-out images. The table is looked at
only afterwards.

Every run is a folder of ``--out``; what is there already is not run again, and an interrupted run goes on. Writes
paper-nb201.csv, .md and .svg to ``--results``.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
import tyro
import yaml
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy import stats

from advnas.checkpoint import write_atomic
from advnas.data import images
from advnas.report.figures import COLOURS
from advnas.run.folder import RunFolder, write_csv
from advnas.run.search import Search, restore
from advnas.search import architecture_step, weight_step
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tables import Table
from advnas.tasks.image import ImageSearchConfig, ImageTask
from advnas_ext import ESTIMATORS

OTHERS = ("cifar100_test_200", "imagenet16_120_test_200")  # columns beside CIFAR-10
OPPONENT = "advantage"  # of the paired tests
SETTINGS = {"gdas": {"unpicked": "sum"}}  # as the paper's code has it
TIMED = 40  # pairs of steps


@dataclass
class Settings:
    table: Path
    """NAS-Bench-201 table (CSV), the referee."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-py."""
    data: str = "cifar10"
    """Data set, as for advnas search."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    tuning_seeds: tuple[int, ...] = (101,)
    """Other seeds, on which logit learning rates are chosen."""
    arch_lrs: tuple[float, ...] = (0.003, 0.01, 0.03)
    """Logit learning rates to choose from."""
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    workers: int = 2
    """Runs at a time, each with one thread."""
    out: Path = Path("runs/paper-nb201")
    results: Path = Path("benchmarks/results")
    set: dict[str, str] = field(default_factory=dict)
    """Settings of the recipe to change, such as --set epochs 3 warmup_epochs 1, for a trial."""


@dataclass(frozen=True)
class Run:
    """A run folder and the flags that differ from the recipe."""

    folder: Path
    flags: tuple[str, ...]


class Experiment:
    """The runs of one experiment; see the module."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        preset = ImageSearchConfig().with_settings(ImageTask.presets["fast"], "preset fast")
        changed = {name: yaml.safe_load(value) for name, value in settings.set.items()}
        own = {
            "data": settings.data,
            "data_dir": settings.data_dir,
            "table": settings.table,
            "threads": 1,
            "halving_cells": 0,
        }
        self.recipe = preset.with_settings({**changed, **own}, "recipe")
        settings.out.mkdir(parents=True, exist_ok=True)
        write_atomic(settings.out / "recipe.yaml", self.recipe.to_yaml())

    def go(self) -> None:
        seeds = [*self.settings.tuning_seeds, *self.settings.seeds]
        self.run("warm-up", [self.warm_up(seed) for seed in seeds])
        epochs = self.epochs()
        tuning = {
            (name, lr): [self.search(seed, name, lr, epochs) for seed in self.settings.tuning_seeds]
            for name in self.settings.estimators
            for lr in ([self.settings.arch_lrs[0]] if name == "random" else self.settings.arch_lrs)
        }
        self.run("tuning", [run for runs in tuning.values() for run in runs])
        chosen = {
            name: min(
                (lr for other, lr in tuning if other == name),
                key=lambda lr: statistics.mean(valid_loss(run) for run in tuning[name, lr]),
            )
            for name in self.settings.estimators
        }
        runs = {
            name: [self.search(seed, name, chosen[name], epochs) for seed in self.settings.seeds]
            for name in self.settings.estimators
        }
        self.run("comparing", [runs[name][i] for i in range(len(self.settings.seeds)) for name in runs])
        report(self.settings, runs, chosen, epochs, self.recipe.warmup_epochs)

    def warm_up(self, seed: int) -> Run:
        flags = ("--seed", str(seed), "--epochs", str(self.recipe.warmup_epochs))
        return Run(self.settings.out / f"seed-{seed}" / "warm-up", flags)

    def search(self, seed: int, name: str, lr: float, epochs: dict[str, int]) -> Run:
        start = str(self.warm_up(seed).folder)
        flags = ("--seed", str(seed), "--estimator", name, "--arch-lr", str(lr), "--warm-start", start)
        flags += ("--epochs", str(epochs[name]))
        for setting, value in SETTINGS.get(name, {}).items():
            flags += ("--estimator-settings", setting, value)
        return Run(self.settings.out / f"seed-{seed}" / f"{name}-{lr:g}", flags)

    def epochs(self) -> dict[str, int]:
        """Epochs for each estimator, so that all learn for as long as the recipe's own does; measured once."""
        file = self.settings.out / "epochs.json"
        if not file.exists():
            warm_up = self.warm_up([*self.settings.tuning_seeds, *self.settings.seeds][0])
            cost = step_seconds(restore(RunFolder(warm_up.folder)), tuple(ESTIMATORS))
            learning = self.recipe.epochs - self.recipe.warmup_epochs
            own = cost[self.recipe.estimator]
            epochs = {
                name: self.recipe.warmup_epochs + max(1, round(learning * own / took)) for name, took in cost.items()
            }
            write_atomic(file, json.dumps({"seconds_per_step": cost, "epochs": epochs}, indent=2) + "\n")
        return json.loads(file.read_text())["epochs"]

    def run(self, label: str, runs: Sequence[Run]) -> None:
        """Do what of these is not done."""
        left = [run for run in runs if not (run.folder / "result.json").exists()]
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
        )
        with Progress(
            *columns, TimeRemainingColumn(elapsed_when_finished=False), speed_estimate_period=3600
        ) as progress:
            bar = progress.add_task(label, total=len(left))
            with ThreadPoolExecutor(self.settings.workers) as pool:
                try:
                    for _ in pool.map(self.one, left):
                        progress.advance(bar)
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def one(self, run: Run) -> None:
        if (run.folder / "checkpoint").exists():
            flags: tuple[str, ...] = ("--resume", str(run.folder))
        else:
            flags = ("--config", str(self.settings.out / "recipe.yaml"), "--out", str(run.folder), *run.flags)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        with run.folder.with_name(f"{run.folder.name}.log").open("a") as log:
            command = [sys.executable, "-m", "advnas", "search", *flags]
            subprocess.run(command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def step_seconds(run: Search, names: Sequence[str]) -> dict[str, float]:
    """Seconds of a weight step and an architecture step together at uniform logits: medians of steps taken in turns."""
    searches = {}
    for name in {run.config.estimator, *names}:
        own = {"estimator": name, "estimator_settings": SETTINGS.get(name, {}), "epochs": run.config.epochs + 1}
        searches[name] = SearchState(run.config.with_settings(own, "timing"), run.task)
        searches[name].warm_start(run.state.state_dict())
    took: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(TIMED):
        for name, timed in searches.items():
            started = time.perf_counter()
            weight_step(run.task, timed)
            if timed.learns:
                architecture_step(run.task, timed)
            took[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def valid_loss(run: Run) -> float:
    """Of the cell of the largest logits after the last epoch, with the shared weights."""
    return float(history(run)[-1]["valid_loss"])


def history(run: Run) -> list[dict[str, str]]:
    with (run.folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def result(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "result.json").read_text())


def learning_seconds(settings: Settings, name: str, run: Run, warmup_epochs: int) -> list[float]:
    """After each epoch, from the cost of a step as it was measured in turns: a busy machine favours nobody."""
    cost = json.loads((settings.out / "epochs.json").read_text())["seconds_per_step"][name]
    rows = history(run)
    per_epoch = result(run)["steps"] / len(rows) * cost
    return [max(0, int(row["epoch"]) - warmup_epochs) * per_epoch for row in rows]


def report(
    settings: Settings,
    runs: dict[str, list[Run]],
    chosen: dict[str, float],
    epochs: dict[str, int],
    warmup_epochs: int,
) -> None:
    """Write the rows of all runs, the table and the figure."""
    settings.results.mkdir(parents=True, exist_ok=True)
    seconds = {
        name: [learning_seconds(settings, name, run, warmup_epochs) for run in done] for name, done in runs.items()
    }
    rows = [
        {"estimator": name, "arch_lr": chosen[name], "seed": seed, "epoch": row["epoch"], "learning_seconds": f"{after:.1f}",
         "seconds": row["seconds"], "valid_loss": row["valid_loss"], "entropy": row["entropy"],
         "cifar10_test_200": row["cifar10_test_200"]}
        for name, done in runs.items()
        for seed, run, times in zip(settings.seeds, done, seconds[name], strict=True)
        for row, after in zip(history(run), times, strict=True)
    ]  # fmt: skip
    write_csv(settings.results / "paper-nb201.csv", rows)
    write_atomic(settings.results / "paper-nb201.md", table(settings, runs, chosen, epochs, seconds))
    draw(runs, seconds, settings.results / "paper-nb201.svg")
    print((settings.results / "paper-nb201.md").read_text())


def table(
    settings: Settings,
    runs: dict[str, list[Run]],
    chosen: dict[str, float],
    epochs: dict[str, int],
    seconds: dict[str, list[list[float]]],
) -> str:
    """Markdown: an estimator a line, best first."""
    found = {name: [result(run) for run in done] for name, done in runs.items()}
    last = {name: [float(history(run)[-1]["cifar10_test_200"]) for run in done] for name, done in runs.items()}
    lines = [
        "| estimator | logit rate | epochs | learning, s | CIFAR-10 | by seed "
        f"| minus {OPPONENT}, paired t | CIFAR-100 | ImageNet16-120 |",
        "|---|---:|---:|---:|---:|---|---|---:|---:|",
    ]
    for name in sorted(runs, key=lambda name: -statistics.mean(last[name])):
        learning = statistics.mean(times[-1] for times in seconds[name])
        others = [f"{statistics.mean(run['table'][column] for run in found[name]):.2f}" for column in OTHERS]
        seeds = ", ".join(f"{value:.2f}" for value in last[name])
        against = "" if name == OPPONENT or OPPONENT not in last else paired(last[name], last[OPPONENT])
        lines.append(
            f"| {name} | {chosen[name]:g} | {epochs[name]} | {learning:.0f} | {mean_interval(last[name])} | {seeds} | {against} | "
            + " | ".join(others)
            + " |"
        )
    seeds = ", ".join(map(str, settings.seeds))
    return (
        f"Test accuracy after 200 epochs by the table (%), seeds {seeds}, {settings.workers} runs at a time with one thread each; "
        f"mean and 95% interval (Student). `make paper-nb201`, torch {torch.__version__}.\n\n" + "\n".join(lines) + "\n"
    )


def mean_interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} +- {half:.2f}"


def paired(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean difference by seed and the p-value of the paired t-test."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2 or statistics.stdev(differences) == 0:
        return f"{mean:+.2f}"
    return f"{mean:+.2f}, p = {stats.ttest_rel(values, others).pvalue:.3f}"


def draw(runs: dict[str, list[Run]], seconds: dict[str, list[list[float]]], path: Path) -> None:
    """Accuracy of the argmax cell against time, mean and 95% interval over the seeds."""
    matplotlib.rcParams["svg.hashsalt"] = "paper-nb201"
    names = list(runs)
    figure = Figure(figsize=(12, 2.6 * -(-len(names) // 4)), layout="constrained")
    panels = figure.subplots(-(-len(names) // 4), 4, sharex=True, sharey=True, squeeze=False).flat
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for place, (name, panel) in enumerate(zip(names, panels, strict=False)):
        values = torch.tensor([[float(row["cifar10_test_200"]) for row in history(run)] for run in runs[name]])
        times = torch.tensor(seconds[name]).mean(0)
        learns = times > 0
        learns[:-1] |= times[1:] > 0  # from the last epoch of the warm-up on
        times, values = times[learns], values[:, learns]
        mean, count = values.mean(0), len(values)
        half = stats.t.ppf(0.975, max(count - 1, 1)) * values.std(0, correction=min(1, count - 1)) / count**0.5
        colour = COLOURS[1 + place % (len(COLOURS) - 1)]
        panel.plot(times, mean, color=colour)
        panel.fill_between(times, mean - half, mean + half, color=colour, alpha=0.25, linewidth=0)
        panel.set_title(name, fontsize=10)
        panel.set_ylim(90, 94.5)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("seconds of learning, after the warm-up")
    figure.supylabel("test accuracy by the table, %")
    figure.savefig(path, metadata={"Date": None})


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    images.load(settings.data, settings.data_dir)  # says what is missing before anything runs
    Table.load(settings.table, NASBENCH201)
    Experiment(settings).go()


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"paper_nb201: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"paper_nb201: a run failed; see the .log beside its folder: {' '.join(error.cmd)}")
    except KeyboardInterrupt:
        sys.exit("paper_nb201: stopped; the same command goes on")
