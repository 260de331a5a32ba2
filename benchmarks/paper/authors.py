"""AdvantageNAS's comparison on CIFAR-10 at its authors' settings: accuracy of the current cell against time and iterations.

    python -m benchmarks.paper.authors --data-dir DIR --table TABLE.csv       # or make paper-nb201-authors

NAS-Bench-201's network of five cells a stage without ``none``, 50 epochs of weights on uniform paths, then weights and logits in
turns, on schedules of 40 epochs of which the paper shows the first 7.5. A warm-up for each seed; every estimator goes on from it.
All have the same settings, so no time is made equal: cells are compared at every time and at every iteration. The table is looked
at only afterwards.

Every run is a folder of ``--out``; what is there already is not run again, and an interrupted run goes on. Writes
paper-nb201-authors.csv, .md and .svg to ``--results``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure

from advnas.checkpoint import write_atomic
from advnas.data import images
from advnas.report.figures import COLOURS, plain, svg
from advnas.run.folder import write_csv
from advnas.tasks.image import ImageSearchConfig
from advnas_ext import ESTIMATORS
from benchmarks.paper import jobs
from benchmarks.paper.jobs import Job, WarmStarted, parsed

HALVES = 2  # rows of the history for each of the paper's epochs
EARLY = (1, 2, 4)  # rows after the warm-up that the table shows beside the last one
RECIPE = {
    "without": ("none",),
    "channels": 16,
    "cells": 5,
    "batch_size": 64,
    "lr": 0.1,
    "lr_min": 0.0,
    "weight_decay": 5e-4,
    "grad_clip": 1.0,
    "arch_lr": 3e-4,
    "arch_lr_min": 0.0,
    "arch_betas": (0.5, 0.999),
    "arch_weight_decay": 3e-3,
    "arch_grad_clip": 1.0,
    "warmup_epochs": 50 * HALVES,
    "schedule_epochs": 90 * HALVES,
    "epochs": 115,  # 7.5 after the warm-up
    "steps_per_epoch": 196,
}


@dataclass
class Settings:
    table: Path
    """NAS-Bench-201 table, the referee."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-py."""
    data: str = "cifar10"
    """Data set, as for advnas search."""
    seeds: tuple[int, ...] = (1, 2, 3)
    estimators: tuple[str, ...] = ("advantage", "reinforce", "parsec", "gdas", "proxyless", "critic")
    workers: int = 2
    """Runs at a time, each with one thread."""
    out: Path = Path("runs/paper-nb201-authors")
    results: Path = Path("benchmarks/results")
    set: dict[str, str] = field(default_factory=dict)
    """Settings to change, such as --set epochs 3 warmup_epochs 1, for a trial."""


class Experiment(WarmStarted):
    """The runs; see the module."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        data = {"data": settings.data, "data_dir": settings.data_dir, "table": settings.table, "threads": 1}
        recipe = ImageSearchConfig().with_settings({**RECIPE, **parsed(settings.set), **data}, "recipe")
        super().__init__(settings.out, recipe)

    def go(self) -> dict[str, list[Job]]:
        """The finished searches of every estimator, a seed each."""
        settings = self.settings
        jobs.run("warm-up", [self.warm_up(seed) for seed in settings.seeds], settings.workers)
        searches = {
            (name, seed): self.search(seed, name, name, self.recipe.epochs)
            for seed in settings.seeds
            for name in settings.estimators
        }
        jobs.run("searching", list(searches.values()), settings.workers)
        return {name: [searches[name, seed] for seed in settings.seeds] for name in settings.estimators}


def trial(job: Job, warmup: int, steps: int) -> list[dict[str, float]]:
    """Iterations and seconds after the warm-up, and accuracy by the table, for each row of the history from its end on."""
    rows = [row for row in job.run.history() if row["epoch"] >= warmup]
    return [
        {
            "iterations": (row["epoch"] - warmup) * steps,
            "seconds": row["seconds"] - rows[0]["seconds"],
            "cifar10_test_200": row["cifar10_test_200"],
        }
        for row in rows
    ]


def report(settings: Settings, recipe: ImageSearchConfig, done: Mapping[str, Sequence[Job]]) -> None:
    """Write every trial, the table and the figure."""
    assert recipe.steps_per_epoch is not None
    trials = {
        name: [trial(job, recipe.warmup_epochs, recipe.steps_per_epoch) for job in same] for name, same in done.items()
    }
    settings.results.mkdir(parents=True, exist_ok=True)
    rows = [
        {"estimator": name, "seed": seed, **{column: round(value, 2) for column, value in row.items()}}
        for name, same in trials.items()
        for seed, points in zip(settings.seeds, same, strict=True)
        for row in points
    ]
    write_csv(settings.results / "paper-nb201-authors.csv", rows)
    text = table(settings, trials)
    write_atomic(settings.results / "paper-nb201-authors.md", text)
    write_atomic(settings.results / "paper-nb201-authors.svg", draw(trials))
    print(text)


def table(settings: Settings, trials: Mapping[str, list[list[dict[str, float]]]]) -> str:
    """Markdown: an estimator a line, by the median of its last cells."""
    count = min(len(points) for same in trials.values() for points in same)
    rows = [*(row for row in EARLY if row < count - 1), count - 1]
    some = next(iter(trials.values()))[0]
    names = [f"after {some[row]['iterations']:.0f}" for row in rows]
    lines = [
        "| estimator | " + " | ".join([*names, "by seed", "seconds"]) + " |",
        "|---|" + "---:|" * len(rows) + "---|---:|",
    ]
    found = {
        name: [[points[row]["cifar10_test_200"] for points in same] for row in rows] for name, same in trials.items()
    }
    for name in sorted(found, key=lambda name: -statistics.median(found[name][-1])):
        medians = [f"{statistics.median(values):.2f}" for values in found[name]]
        seeds = ", ".join(f"{value:.2f}" for value in found[name][-1])
        seconds = statistics.median(points[count - 1]["seconds"] for points in trials[name])
        lines.append("| " + " | ".join([name, *medians, seeds, f"{seconds:.0f}"]) + " |")
    seeds = ", ".join(map(str, settings.seeds))
    return (
        "Test accuracy after 200 epochs by the table (%) of the cells of the largest logits, medians after so many "
        f"iterations and the last ones by seed, {seeds}; {settings.workers} runs at a time with one thread each. "
        f"`make paper-nb201-authors`, torch {torch.__version__}.\n\n" + "\n".join(lines) + "\n"
    )


def draw(trials: Mapping[str, list[list[dict[str, float]]]]) -> bytes:
    """The median of the trials, each of them thin, against iterations and against time."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for place, (name, same) in enumerate(trials.items()):
        colour = COLOURS[1 + place % (len(COLOURS) - 1)]
        for panel, across in zip(panels, ("iterations", "seconds"), strict=True):
            for points in same:
                values = [point["cifar10_test_200"] for point in points]
                panel.plot([point[across] for point in points], values, color=colour, alpha=0.3, linewidth=0.7)
            medians = [
                statistics.median(point["cifar10_test_200"] for point in points) for points in zip(*same, strict=True)
            ]
            places = [statistics.median(point[across] for point in points) for points in zip(*same, strict=True)]
            panel.plot(places, medians, color=colour, label=name if across == "iterations" else None)
            panel.set_xlabel(f"{across} after the warm-up")
            plain(panel)
    panels[0].set_ylabel("test accuracy by the table, %")
    figure.legend(loc="outside right upper", frameon=False)
    return svg(figure, "paper-nb201-authors")


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    jobs.require_names("estimators", settings.estimators, ESTIMATORS)
    images.load(settings.data, settings.data_dir)  # says what is missing before anything runs
    jobs.referee(settings.table)
    experiment = Experiment(settings)
    report(settings, experiment.recipe, experiment.go())


if __name__ == "__main__":
    jobs.main("authors", __doc__, Settings, main)
