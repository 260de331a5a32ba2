"""The front of NAS-Bench-201 on CIFAR-10: the best cells within several limits from one search, beside two that know less.

For each seed ``advnas search --preset fast``, with ``none`` among the operations, finds a cell within each of five limits, of
FLOPs and again of latency. Its regret within a limit is the test accuracy of the best cell there by the table, less that of the
cell found. Beside it stand

- largest: the cell that costs most within the limit, the mean where several cost the same: what a front finds if it takes size for
  quality;
- random search: of 1,500 random cells those within the limit, and of them the one of the least loss with the weights of a supernet,
  which the recipe's epochs have trained on uniform paths.

Every search is a folder of ``--out``; what is there already is not run again, and an interrupted one goes on. Writes
paper-budgets.csv and .md to ``--results``. The table is the referee; of it the searches see the latencies alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advnas.checkpoint import write_atomic, write_json
from advnas.data import images
from advnas.report.console import Rounds, console
from advnas.report.numbers import duration, written
from advnas.run.folder import RunFolder, write_csv
from advnas.run.search import restore
from advnas.search import evaluate
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tables import Table
from benchmarks.paper import jobs
from benchmarks.paper.jobs import Job, keep

ACCURACY = NASBENCH201.columns[0]
PATHS, BATCHES = 1500, 4  # of the random search, and held-out batches for each
COSTS = {"flops": ("flops_m", 1e6), "latency": ("latency_s", 1.0)}  # columns of the table, and what a unit of them is


@dataclass
class Settings:
    table: Path
    """NAS-Bench-201 table (CSV), the referee; its latencies are those that a user has measured."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-py."""
    data: str = "cifar10"
    """Data set, as for advnas search."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    flops: tuple[float, ...] = (20e6, 60e6, 80e6, 100e6, 120e6)
    """Limits of FLOPs."""
    latency_percentiles: tuple[float, ...] = (5, 10, 20, 30, 50)
    """Limits of latency: percentiles over the cells of the table."""
    kinds: tuple[str, ...] = tuple(COSTS)
    random: bool = True
    """Also search at random on a supernet."""
    workers: int = 1
    """Searches at a time."""
    threads: int = 2
    """Of each search."""
    out: Path = Path("runs/paper-budgets")
    results: Path = Path("benchmarks/results")
    set: dict[str, str] = field(default_factory=dict)
    """Settings of the recipe to change, such as --set epochs 3, for a trial."""


@dataclass(frozen=True)
class Referee:
    """What the table says of one kind of cost.

    Attributes:
        costs, accuracies: by cell.
    """

    costs: Mapping[str, float]
    accuracies: Mapping[str, float]

    @classmethod
    def of(cls, table: Table, kind: str) -> Referee:
        column, unit = COSTS[kind]
        rows = table.rows.items()
        return cls({arch: row[column] * unit for arch, row in rows}, {arch: row[ACCURACY] for arch, row in rows})

    def within(self, limit: float) -> list[str]:
        return [arch for arch, cost in self.costs.items() if cost <= limit * (1 + 1e-6)]

    def best(self, limit: float) -> float:
        return max(self.accuracies[arch] for arch in self.within(limit))

    def largest(self, limit: float) -> float:
        within = self.within(limit)
        most = max(self.costs[arch] for arch in within)
        return statistics.mean(self.accuracies[arch] for arch in within if self.costs[arch] >= most * (1 - 1e-6))


class Experiment:
    """The runs of one experiment; see the module."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = jobs.referee(settings.table, *(column for column, _ in COSTS.values()))
        latencies = np.array([row["latency_s"] for row in self.table.rows.values()])
        points = np.percentile(latencies, settings.latency_percentiles).tolist()
        self.limits: dict[str, Sequence[float]] = {"flops": settings.flops, "latency": points}
        recipe = jobs.fast_recipe(settings, threads=settings.threads, without=())
        for kind in settings.kinds:
            limited = {f"max_{kind}": tuple(map(repr, self.limits[kind]))}
            if kind == "latency":
                limited["latencies"] = settings.table
            keep(settings.out / f"{kind}.yaml", recipe.with_settings(limited, "recipe"))
        supernet = recipe.with_settings({"estimator": "random", "halving_cells": 0}, "recipe")
        keep(settings.out / "supernet.yaml", supernet)

    def go(self) -> None:
        settings = self.settings
        searches = {(kind, seed): self.search(kind, seed) for kind in settings.kinds for seed in settings.seeds}
        supernets = {seed: self.search("supernet", seed) for seed in settings.seeds if settings.random}
        jobs.run("searching", [*searches.values(), *supernets.values()], settings.workers)
        for (_, seed), job in searches.items():
            if settings.random:
                self.compare(job.run, supernets[seed].run)
        rows = [row for (kind, seed), job in searches.items() for row in self.rows(kind, seed, job.run)]
        report(settings, rows)

    def search(self, kind: str, seed: int) -> Job:
        recipe = str(self.settings.out / f"{kind}.yaml")
        return Job.search(self.settings.out / f"{kind}-seed-{seed}", "--config", recipe, "--seed", str(seed))

    def compare(self, folder: RunFolder, supernet: RunFolder) -> None:
        """Measure random cells with the weights of a supernet, and write the best one of each limit of a search to random.json."""
        if (folder / "random.json").exists():
            return
        limits, run = restore(folder).limits, restore(supernet)
        torch.set_num_threads(self.settings.threads)
        generator = torch.Generator().manual_seed(run.config.seed)
        cells = torch.randint(len(run.task.ops), (PATHS, run.task.space.num_edges), generator=generator)
        with Rounds("random search", len(cells), console()) as rounds:
            losses = []
            for ops in cells:
                losses.append(evaluate(run.task, run.state, ops, BATCHES)["loss"])
                rounds.advance()
        found = {}
        for limit in limits:
            within = torch.where(limit.allows(cells), torch.tensor(losses), torch.inf)
            if not within.isfinite().any():
                raise ValueError(f"limit {limit}: none of {PATHS} random cells is within it; choose a larger one")
            found[repr(limit.value)] = run.task.arch(cells[within.argmin()])
        write_json(folder / "random.json", found)

    def rows(self, kind: str, seed: int, folder: RunFolder) -> list[dict[str, Any]]:
        """A row for each limit of a search."""
        referee = Referee.of(self.table, kind)
        drawn = json.loads((folder / "random.json").read_text()) if self.settings.random else {}
        return [
            {
                "kind": kind,
                "seed": seed,
                "limit": row["limit"],
                "arch": row["arch"],
                "best": referee.best(row["limit"]),
                "found": referee.accuracies[row["arch"]],
                "largest": round(referee.largest(row["limit"]), 3),
                **({"random": referee.accuracies[drawn[repr(row["limit"])]]} if drawn else {}),
                "seconds": folder.result()["seconds"],
            }
            for row in folder.front()
        ]


def report(settings: Settings, rows: Sequence[dict[str, Any]]) -> None:
    settings.results.mkdir(parents=True, exist_ok=True)
    write_csv(settings.results / "paper-budgets.csv", rows)
    text = "\n".join(table(kind, [row for row in rows if row["kind"] == kind]) for kind in settings.kinds)
    write_atomic(settings.results / "paper-budgets.md", text)
    print(text)


def table(kind: str, rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a limit a line, and the means over them."""
    nulls = [name for name in ("largest", "random") if name in rows[0]]
    lines = [f"| limit | best by the table | found: regret by seed | found: mean regret | {' | '.join(nulls)} |"]
    lines.append("|---|---:|---|---:|" + "---:|" * len(nulls))
    limits = list(dict.fromkeys(row["limit"] for row in rows))
    for limit in limits:
        of_limit = [row for row in rows if row["limit"] == limit]
        seeds = ", ".join(f"{row['best'] - row['found']:.2f}" for row in of_limit)
        means = " | ".join(f"{mean_regret(of_limit, name):.2f}" for name in ("found", *nulls))
        lines.append(f"| {written(limit, kind)} | {of_limit[0]['best']:.2f} | {seeds} | {means} |")
    seeds = sorted({row["seed"] for row in rows})
    each = ", ".join(f"{mean_regret([row for row in rows if row['seed'] == seed], 'found'):.2f}" for seed in seeds)
    means = " | ".join(f"{mean_regret(rows, name):.2f}" for name in ("found", *nulls))
    lines.append(f"| mean |  | {each} | {means} |")
    took = [row["seconds"] for row in rows]
    return (
        f"{kind}: regret in percentage points of test accuracy after 200 epochs, seeds {', '.join(map(str, seeds))}; a search took "
        f"{duration(min(took))} to {duration(max(took))}. `python -m benchmarks.paper.budgets`, torch {torch.__version__}.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def mean_regret(rows: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(row["best"] - row[name] for row in rows)


def main(settings: Settings) -> None:
    jobs.require_names("kinds", settings.kinds, COSTS)
    images.load(settings.data, settings.data_dir)  # says what is missing before anything runs
    Experiment(settings).go()


if __name__ == "__main__":
    jobs.main("budgets", __doc__, Settings, main)
