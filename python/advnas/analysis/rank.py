"""How well the supernet ranks cells, which bounds what any search on it can find.

Cells are drawn from all that the search can find and, because only the best ones matter in the end, as many from the best part of
them. Each is measured by its loss with the shared weights on held-out images; Spearman's rank correlation of -loss with the table's
accuracy says how well that orders them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from scipy.stats import ConstantInputWarning, spearmanr
from torch import Tensor

from advnas.report.figures import plain, svg
from advnas.run.search import Search
from advnas.search import evaluate
from advnas.tables import Table

TOP = 0.05  # share of the searched cells that counts as the best ones
CHOSEN = 10  # cells of the smallest loss whose accuracies are averaged
LEAST = 4  # cells that a rank correlation needs
RESAMPLES = 1000


@dataclass(frozen=True)
class Ranked:
    """Cells with the loss of each and what the table says.

    Attributes:
        population: what they were drawn from.
        archs: their strings.
        losses: float64 [count], on held-out images, with the shared weights.
        accuracies: float64 [count], percent.
    """

    population: str
    archs: Sequence[str]
    losses: Tensor
    accuracies: Tensor

    @cached_property
    def spearman(self) -> tuple[float, float, float]:
        """Rank correlation of -loss with accuracy, and its 95% bootstrap interval over cells; NaN where all are equal."""
        generator = torch.Generator().manual_seed(0)
        picks = torch.randint(len(self.losses), (RESAMPLES, len(self.losses)), generator=generator)
        resampled = torch.tensor([_spearman(self.losses[pick], self.accuracies[pick]) for pick in picks])
        low, high = resampled.nanquantile(torch.tensor([0.025, 0.975])).tolist()
        return _spearman(self.losses, self.accuracies), low, high

    @property
    def chosen(self) -> float:
        """Mean accuracy of the ``CHOSEN`` cells with the smallest losses."""
        return self.accuracies[self.losses.argsort(stable=True)[:CHOSEN]].mean().item()

    @property
    def mean(self) -> float:
        """Mean accuracy of all."""
        return self.accuracies.mean().item()


def measure(
    run: Search, table: Table, column: str, cells: int, batches: int, advance: Callable[[], None] = lambda: None
) -> list[Ranked]:
    """``cells`` cells drawn from all that the search can find, and as many from the best ``TOP`` of them; all where they are fewer.

    Args:
        run: a search; its weights and logits are not changed.
        column: of the table.
        batches: held-out batches for each cell.
        advance: called after each cell.

    Raises:
        ValueError: the table has no such column, or too few of the cells.
    """
    if column not in table.columns:
        raise ValueError(f"{table.path}: has no column {column!r}; choose among {', '.join(table.columns)}")
    task, space = run.task, run.task.space
    places = torch.tensor([space.ops.index(op) for op in task.ops])  # of the searched operations, ascending
    parsed = {arch: space.parse(arch) for arch in table.rows}
    every = [arch for arch, ops in parsed.items() if torch.isin(ops, places).all()]
    every.sort(key=lambda arch: -table.rows[arch][column])
    best = every[: math.ceil(TOP * len(every))]
    if len(best) < LEAST:
        raise ValueError(
            f"{table.path}: must hold at least {math.ceil(LEAST / TOP)} cells of the search, got {len(every)}"
        )
    generator = torch.Generator().manual_seed(0)

    def ranked(population: str, archs: Sequence[str]) -> Ranked:
        drawn = [archs[pick] for pick in torch.randperm(len(archs), generator=generator)[:cells].tolist()]
        losses = []
        for arch in drawn:
            metrics = evaluate(task, run.state, torch.searchsorted(places, parsed[arch]), batches)
            losses.append(metrics["loss"])
            advance()
        accuracies = [table.rows[arch][column] for arch in drawn]
        return Ranked(population, drawn, *torch.tensor([losses, accuracies], dtype=torch.float64))

    return [ranked("all", every), ranked(f"best {TOP:.0%}", best)]


def records(results: Sequence[Ranked], column: str) -> list[dict[str, Any]]:
    """A record a cell, for a CSV file."""
    return [
        {"population": ranked.population, "arch": arch, "loss": loss, column: accuracy}
        for ranked in results
        for arch, loss, accuracy in zip(ranked.archs, ranked.losses.tolist(), ranked.accuracies.tolist(), strict=True)
    ]


COLUMNS = ("cells from", "cells", "Spearman (95% interval)", f"mean of the {CHOSEN} of smallest loss", "mean of all")


def rows(results: Sequence[Ranked]) -> list[list[str]]:
    """A row a population, for people: see ``COLUMNS``."""
    return [
        [
            ranked.population,
            str(len(ranked.archs)),
            _interval(ranked),
            f"{ranked.chosen:.2f}",
            f"{ranked.mean:.2f}",
        ]
        for ranked in results
    ]


def figure(results: Sequence[Ranked], column: str) -> bytes:
    """Accuracy against loss, as SVG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4.5 * len(results), 4), layout="constrained")
    for axes, ranked in zip(drawing.subplots(1, len(results), squeeze=False).flat, results, strict=True):
        axes.scatter(ranked.losses, ranked.accuracies, s=10, color="#0072B2", alpha=0.6, linewidths=0)
        axes.set_title(f"{len(ranked.archs)} cells, {ranked.population}: Spearman {_interval(ranked)}", fontsize=10)
        axes.set(xlabel="loss with the shared weights", ylabel=column)
        plain(axes)
    return svg(drawing, "rank")


def _interval(ranked: Ranked) -> str:
    rho, low, high = ranked.spearman
    return f"{rho:.2f} ({low:.2f} to {high:.2f})"


def _spearman(losses: Tensor, accuracies: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # NaN says it
        return float(spearmanr(-losses, accuracies).statistic)
