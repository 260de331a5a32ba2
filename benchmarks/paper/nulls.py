"""What a search adds: the comparison that ends ``--preset fast`` (successive halving), begun from what costs nothing to find.

    python -m benchmarks.paper.nulls --data-dir DIR --table TABLE.csv       # or make paper-nulls

For each seed the same recipe ends with cells from

- rloo, critic: the search with this estimator, whose best cell and its neighbours are compared;
- largest: the cell of most parameters and its neighbours, without any search;
- random: cells that are drawn;
- naswot, synflow, zico: the best by a score of an untrained network (:mod:`benchmarks.paper.scores`) among more that are drawn.

The seconds of each are in the table; ``--cells`` sets how long comparing drawn cells takes. Every cell found is a file of
``--out``; what is there already is not run again. Writes nulls.csv and .md to ``--results``. The table is the referee.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advnas.checkpoint import write_atomic, write_json
from advnas.data import images
from advnas.halving import Contest, Halving, halve
from advnas.report.console import Progress, Rounds, console
from advnas.report.numbers import duration
from advnas.run.folder import RunFolder, write_csv
from advnas.run.search import restore, resume
from advnas.run.search import start as search
from advnas.run.watch import Watch
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tasks.image import ImageSearchConfig, ImageTask
from benchmarks.paper import jobs
from benchmarks.paper.scores import SCORES, score_cells

ACCURACY = NASBENCH201.columns[0]
SEARCHES = ("rloo", "critic")
STARTS = (*SEARCHES, "largest", "random", *SCORES)


@dataclass
class Settings:
    table: Path
    """NAS-Bench-201 table, the referee."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-py."""
    data: str = "cifar10"
    """Data set, as for advnas search."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    starts: tuple[str, ...] = STARTS
    cells: int = 32
    """That are compared where cells are drawn."""
    scored: int = 200
    """Drawn cells that get a score."""
    workers: int = 2
    """At a time, each with one thread."""
    out: Path = Path("runs/paper-nulls")
    results: Path = Path("benchmarks/results")
    set: dict[str, str] = field(default_factory=dict)
    """Settings of the recipe to change, such as --set halving_steps 30, for a trial."""


@dataclass(frozen=True)
class Run:
    """A comparison to be made.

    Attributes:
        start: where it begins.
        config: the recipe's, with the seed.
        file: for its result.
    """

    start: str
    config: ImageSearchConfig
    cells: int
    scored: int
    file: Path

    def go(self) -> None:
        torch.set_num_threads(1)
        task = ImageTask(self.config)
        searching = 0.0
        if self.start in SEARCHES:
            cell, searching = self._searched()
            found = self._around(task, cell)
        elif self.start == "largest":
            found = self._around(task, task.path_costs()["params"].costs.argmax(1))
        else:
            found = self._compared(task, lambda state: Contest(state, task, self._drawn(task)))
        seconds = round(searching + found["seconds"], 1)
        write_json(
            self.file, {"start": self.start, "seed": self.config.seed, "arch": found["arch"], "seconds": seconds}
        )

    def _searched(self) -> tuple[Tensor, float]:
        """The cell of a search, and the seconds that it took."""
        settings = {"estimator": self.start, "out": self.file.with_suffix(""), "halving_cells": 0}
        folder = RunFolder(self.file.with_suffix(""))
        if folder.checkpoint("search").exists():
            resume(folder.path, quiet())
        else:
            search(self.config.with_settings(settings, self.start), quiet())
        return restore(folder).state.best[0], folder.result()["seconds"]

    def _around(self, task: ImageTask, cell: Tensor) -> dict[str, Any]:
        """The comparison of a cell with its neighbours, made once where several starts of a seed come to the same cell."""
        file = self.file.with_name(f"around-{''.join(map(str, cell.tolist()))}.json")
        if not file.exists():

            def neighbours(state: SearchState) -> Contest:
                state.best = [cell]
                return Halving(state, task)

            write_json(file, self._compared(task, neighbours))
        return json.loads(file.read_text())

    def _compared(self, task: ImageTask, contest_of: Callable[[SearchState], Contest]) -> dict[str, Any]:
        """The winner, and the seconds from choosing the cells on."""
        began = time.perf_counter()
        contest = contest_of(SearchState(self.config, task))
        with Watch(contest, Progress(self.start, contest.rounds, {}, quiet())) as watch:
            halve(task, contest, watch)
        return {"arch": contest.found, "seconds": time.perf_counter() - began}

    def _drawn(self, task: ImageTask) -> Tensor:
        """Different cells, int64 [at most ``cells``, num_edges], the best by their score where the start is one."""
        generator = torch.Generator().manual_seed(self.config.seed)
        shape = self.scored if self.start in SCORES else self.cells, task.space.num_edges
        drawn = torch.randint(len(task.ops), shape, generator=generator).unique(dim=0)
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        if self.start in SCORES:
            found = score_cells(task, drawn, self.config.halving_cells, generator, [self.start])
            scores = torch.tensor([by_name[self.start] for by_name in found])
            drawn = drawn[scores.argsort(descending=True, stable=True)][: self.cells]
        return drawn


def quiet() -> Any:
    """A console that shows nothing: several runs share the terminal."""
    shown = console()
    shown.quiet = True
    return shown


def runs(settings: Settings) -> list[Run]:
    recipe = jobs.fast_recipe(settings, threads=1)
    jobs.keep(settings.out / "recipe.yaml", recipe)
    made = []
    for seed in settings.seeds:
        folder = settings.out / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        config = recipe.with_settings({"seed": seed}, "seed")
        for start in settings.starts:
            file = folder / f"{start}{drawn_from(start, settings)}.json"
            made.append(Run(start, config, settings.cells, settings.scored, file))
    return made


def drawn_from(start: str, settings: Settings) -> str:
    """What else a start depends on, for the name of its file."""
    if start in SCORES:
        return f"-{settings.cells}-of-{settings.scored}"
    return f"-{settings.cells}" if start == "random" else ""


def report(settings: Settings, rows: Sequence[dict[str, Any]]) -> None:
    settings.results.mkdir(parents=True, exist_ok=True)
    write_csv(settings.results / "nulls.csv", rows)
    text = table(settings, rows)
    write_atomic(settings.results / "nulls.md", text)
    print(text)


def table(settings: Settings, rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a start a line, the best mean first."""
    lines = ["| begun with | CIFAR-10, mean | least | by seed | time |", "|---|---:|---:|---|---|"]
    found = {start: [row for row in rows if row["start"] == start] for start in settings.starts}
    accuracies = {start: [row["accuracy"] for row in same] for start, same in found.items()}
    for start in sorted(found, key=lambda start: -statistics.mean(accuracies[start])):
        values = accuracies[start]
        took = statistics.mean(row["seconds"] for row in found[start])
        by_seed = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {start} | {statistics.mean(values):.2f} | {min(values):.2f} | {by_seed} | {duration(took)} |")
    seeds = ", ".join(map(str, settings.seeds))
    return (
        f"Test accuracy after 200 epochs by the table (%), seeds {seeds}, {settings.workers} runs at a time with one thread each; "
        f"{settings.cells} cells where cells are drawn, for scores the best of {settings.scored}. `make paper-nulls`, torch "
        f"{torch.__version__}.\n\n" + "\n".join(lines) + "\n"
    )


def main(settings: Settings) -> None:
    images.load(settings.data, settings.data_dir)  # says what is missing before anything runs
    jobs.require_names("starts", settings.starts, STARTS)
    referee = jobs.referee(settings.table)
    every = runs(settings)
    left = [run for run in every if not run.file.exists()]
    context = multiprocessing.get_context("spawn")
    with Rounds("comparing", len(left), console()) as rounds, ProcessPoolExecutor(settings.workers, context) as pool:
        for _ in pool.map(Run.go, left):
            rounds.advance()
    rows = [json.loads(run.file.read_text()) for run in every]
    report(settings, [{**row, "accuracy": referee.lookup(row["arch"])[ACCURACY]} for row in rows])


if __name__ == "__main__":
    jobs.main("nulls", __doc__, Settings, main)
