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

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy import stats

from advnas.checkpoint import write_atomic
from advnas.data import images
from advnas.report.figures import COLOURS, plain, svg
from advnas.run.folder import RunFolder, write_csv
from advnas.run.search import restore
from advnas.state import SearchState
from advnas_ext import ESTIMATORS
from benchmarks.paper import jobs
from benchmarks.paper.jobs import SETTINGS, Job, WarmStarted, equal_time, step_seconds

OTHERS = ("cifar100_test_200", "imagenet16_120_test_200")  # columns beside CIFAR-10
OPPONENT = "advantage"  # of the paired tests
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
class Searches:
    """What one estimator has done, a search a seed, with the logit learning rate that was chosen."""

    arch_lr: float
    jobs: Sequence[Job]
    epochs: int
    warmup_epochs: int
    seconds_per_step: float
    """As it was measured in turns: a busy machine favours nobody."""

    def seconds(self, job: Job) -> list[float]:
        """Of learning, after each epoch."""
        rows = job.run.history()
        per_epoch = job.run.result()["steps"] / len(rows) * self.seconds_per_step
        return [max(0, row["epoch"] - self.warmup_epochs) * per_epoch for row in rows]

    def accuracies(self) -> list[list[float]]:
        """[seeds][epochs], on CIFAR-10 by the table."""
        return [[row["cifar10_test_200"] for row in job.run.history()] for job in self.jobs]

    def last(self) -> list[float]:
        return [values[-1] for values in self.accuracies()]


class Experiment(WarmStarted):
    """The runs of one experiment; see the module."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        recipe = jobs.fast_recipe(settings, table=settings.table, threads=1, halving_cells=0)
        super().__init__(settings.out, recipe)

    def go(self) -> None:
        settings, names = self.settings, self.settings.estimators
        every_seed = [*settings.tuning_seeds, *settings.seeds]
        self.run("warm-up", [self.warm_up(seed) for seed in every_seed])
        file = settings.out / "epochs.json"
        epochs = equal_time(file, self.recipe, self.recipe.estimator, names, partial(self.cost, every_seed[0]))
        tuning = {
            (name, lr): [self.tried(seed, name, lr, epochs[name]) for seed in settings.tuning_seeds]
            for name in names
            for lr in (settings.arch_lrs[:1] if name == "random" else settings.arch_lrs)
        }
        self.run("tuning", [job for same in tuning.values() for job in same])
        losses = {key: statistics.mean(valid_loss(job) for job in same) for key, same in tuning.items()}
        cost = json.loads(file.read_text())["seconds_per_step"]
        done = {}
        for name in names:
            lr = min((lr for other, lr in tuning if other == name), key=lambda lr: losses[name, lr])
            searches = [self.tried(seed, name, lr, epochs[name]) for seed in settings.seeds]
            done[name] = Searches(lr, searches, epochs[name], self.recipe.warmup_epochs, cost[name])
        self.run(
            "comparing", [job for same in zip(*(each.jobs for each in done.values()), strict=True) for job in same]
        )
        report(settings, done)

    def run(self, label: str, searches: Sequence[Job]) -> None:
        jobs.run(label, searches, self.settings.workers)

    def tried(self, seed: int, name: str, lr: float, epochs: int) -> Job:
        return self.search(seed, name, f"{name}-{lr:g}", epochs, "--arch-lr", str(lr))

    def cost(self, seed: int) -> dict[str, float]:
        """Seconds of a weight step and an architecture step together at uniform logits, of every estimator."""
        warmed = restore(RunFolder(self.warm_up(seed).folder))
        searches = {}
        for name in ESTIMATORS:
            own = {"estimator": name, "estimator_settings": SETTINGS.get(name, {}), "epochs": warmed.config.epochs + 1}
            state = SearchState(warmed.config.with_settings(own, "timing"), warmed.task)
            state.warm_start(warmed.state.state_dict())
            searches[name] = (warmed.task, state)
        return step_seconds(searches, TIMED)


def valid_loss(job: Job) -> float:
    """Of the cell of the largest logits after the last epoch, with the shared weights."""
    return job.run.history()[-1]["valid_loss"]


def report(settings: Settings, done: dict[str, Searches]) -> None:
    """Write the rows of all runs, the table and the figure."""
    settings.results.mkdir(parents=True, exist_ok=True)
    kept = ("seconds", "valid_loss", "entropy", "cifar10_test_200")
    rows = [
        {"estimator": name, "arch_lr": searches.arch_lr, "seed": seed, "epoch": row["epoch"],
         "learning_seconds": f"{after:.1f}", **{column: row[column] for column in kept}}
        for name, searches in done.items()
        for seed, job in zip(settings.seeds, searches.jobs, strict=True)
        for row, after in zip(job.run.history(), searches.seconds(job), strict=True)
    ]  # fmt: skip
    write_csv(settings.results / "paper-nb201.csv", rows)
    text = table(settings, done)
    write_atomic(settings.results / "paper-nb201.md", text)
    write_atomic(settings.results / "paper-nb201.svg", draw(done))
    print(text)


def table(settings: Settings, done: dict[str, Searches]) -> str:
    """Markdown: an estimator a line, best first."""
    last = {name: searches.last() for name, searches in done.items()}
    lines = [
        "| estimator | logit rate | epochs | learning, s | CIFAR-10 | by seed "
        f"| minus {OPPONENT}, paired t | CIFAR-100 | ImageNet16-120 |",
        "|---|---:|---:|---:|---:|---|---|---:|---:|",
    ]
    for name in sorted(done, key=lambda name: -statistics.mean(last[name])):
        searches, values = done[name], last[name]
        learning = statistics.mean(searches.seconds(job)[-1] for job in searches.jobs)
        found = [job.run.result()["table"] for job in searches.jobs]
        others = " | ".join(f"{statistics.mean(of_cell[column] for of_cell in found):.2f}" for column in OTHERS)
        seeds = ", ".join(f"{value:.2f}" for value in values)
        against = "" if name == OPPONENT or OPPONENT not in last else paired(values, last[OPPONENT])
        what = f"| {name} | {searches.arch_lr:g} | {searches.epochs} | {learning:.0f} | {mean_interval(values)}"
        lines.append(f"{what} | {seeds} | {against} | {others} |")
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


def draw(done: dict[str, Searches]) -> bytes:
    """Accuracy of the argmax cell against time, mean and 95% interval over the seeds."""
    rows = -(-len(done) // 4)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, sharex=True, sharey=True, squeeze=False).flat
    for panel in panels[len(done) :]:
        panel.set_visible(False)
    for place, (name, searches) in enumerate(done.items()):
        values = torch.tensor(searches.accuracies())
        times = torch.tensor([searches.seconds(job) for job in searches.jobs]).mean(0)
        learns = times > 0
        learns[:-1] |= times[1:] > 0  # from the last epoch of the warm-up on
        times, values = times[learns], values[:, learns]
        mean, count = values.mean(0), len(values)
        half = stats.t.ppf(0.975, max(count - 1, 1)) * values.std(0, correction=min(1, count - 1)) / count**0.5
        colour, panel = COLOURS[1 + place % (len(COLOURS) - 1)], panels[place]
        panel.plot(times, mean, color=colour)
        panel.fill_between(times, mean - half, mean + half, color=colour, alpha=0.25, linewidth=0)
        panel.set_title(name, fontsize=10)
        panel.set_ylim(90, 94.5)
        plain(panel)
    figure.supxlabel("seconds of learning, after the warm-up")
    figure.supylabel("test accuracy by the table, %")
    return svg(figure, "paper-nb201")


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    jobs.require_names("estimators", settings.estimators, ESTIMATORS)
    images.load(settings.data, settings.data_dir)  # says what is missing before anything runs
    jobs.referee(settings.table, *OTHERS)
    Experiment(settings).go()


if __name__ == "__main__":
    jobs.main("nb201", __doc__, Settings, main)
