"""Scores of untrained networks that searches without training go by, larger the better, and how well they rank NAS-Bench-201.

    synflow:  sum_w |w dR/dw|,  R = sum of the outputs for an input of ones, weights |w|, no batch norm
              (Tanaka, Kunin, Yamins & Ganguli, NeurIPS 2020; for cells Abdelfattah et al., ICLR 2021)
    zico:     sum_layers log sum_w E|g_w| / std g_w,  g_w the gradients of the loss on different batches
              (Li, Yang, Bhardwaj & Marculescu, ICLR 2023)
    naswot:   the codes of :func:`advnas.untrained.promises`

    python -m benchmarks.paper.scores --data-dir DIR --table TABLE.csv

scores cells that are drawn from all 15,625, in the benchmark's full-size networks on CIFAR-10, and writes the rank correlation of
each score with accuracy, beside the published one, to scores.csv of ``--results``.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advnas.analysis.rank import Ranked
from advnas.report.console import Rounds, console, print_table
from advnas.run.folder import write_csv
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tasks.image import ImageSearchConfig, ImageTask
from advnas.training import seeded
from advnas.untrained import promises
from benchmarks.paper import jobs

Batch = tuple[Tensor, Tensor]
Score = Callable[[ImageTask, nn.Module, Sequence[Batch]], float]

# Spearman's correlation with the accuracies on CIFAR-10, over all cells, as the papers named above give it.
PUBLISHED = {"synflow": 0.74, "zico": 0.80}


def synflow(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Args: the network, which is not changed, and the shape of one input. In float64; 0 where nothing gets through."""
    network = copy.deepcopy(network).double()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    weights = list(network.parameters())
    with torch.no_grad():
        for weight in weights:
            weight.abs_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is a Identity, not a BatchNorm2d; ")  # our own
        flow = network(torch.ones(1, *shape, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    return sum((w * g).abs().sum().item() for w, g in zip(weights, gradients, strict=True) if g is not None)


def zico(network: nn.Module, loss: Callable[[Any], Tensor], batches: Iterable[Any]) -> float:
    """Of the weights of convolutions and linear layers.

    Args:
        network: at its initial weights.
        loss: of the network on a batch.
        batches: at least two.
    """
    layers = [module.weight for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    by_batch = [torch.autograd.grad(loss(batch), layers, allow_unused=True) for batch in batches]
    score = 0.0
    for gradients in zip(*by_batch, strict=True):
        if gradients[0] is not None:
            found = torch.stack(gradients).double()
            deviation = found.std(0, unbiased=False)
            known = deviation > 0
            total = (found.abs().mean(0)[known] / deviation[known]).sum().item()
            score += math.log(total) if total > 0 else 0.0
    return score


SCORES: Mapping[str, Score] = {
    "naswot": lambda task, network, seen: promises(network, seen[0][0])[0],
    "synflow": lambda task, network, seen: synflow(network, tuple(seen[0][0].shape[1:])),
    "zico": lambda task, network, seen: zico(network, lambda batch: task.score(network, batch, None).loss, seen),
}


def score_cells(
    task: ImageTask, cells: Tensor, modules: int, generator: torch.Generator, names: Sequence[str]
) -> Iterator[dict[str, float]]:
    """The scores of each cell, all on the same two batches and from the same initial weights.

    Args:
        cells: int64 [count, num_edges].
        modules: cells in each stage of its network.
    """
    stream = iter(task.weight_stream(torch.Generator().manual_seed(0)))
    seen = [next(stream), next(stream)]
    for ops in cells:
        network = seeded(generator, lambda: task.supernet(modules)).fix(ops)  # type: ignore[operator]
        yield {name: SCORES[name](task, network, seen) for name in names}


@dataclass
class Settings:
    table: Path
    """NAS-Bench-201 table, for the accuracies."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-py."""
    data: str = "cifar10"
    """Data set, as for advnas search."""
    cells: int = 300
    """That are drawn."""
    modules: int = 5
    """Cells in each stage of a network."""
    seed: int = 0
    results: Path = Path("benchmarks/results")


def main(settings: Settings) -> None:
    table = jobs.referee(settings.table)
    column = NASBENCH201.columns[0]
    task = ImageTask(ImageSearchConfig(data=settings.data, data_dir=settings.data_dir, seed=settings.seed))
    generator = torch.Generator().manual_seed(settings.seed)
    cells = torch.randint(len(task.ops), (settings.cells, task.space.num_edges), generator=generator)
    found = []
    with Rounds("scoring cells", len(cells), console()) as rounds:
        for scores in score_cells(task, cells, settings.modules, generator, tuple(SCORES)):
            found.append(scores)
            rounds.advance()
    archs = [task.arch(ops) for ops in cells]
    accuracies = torch.tensor([table.lookup(arch)[column] for arch in archs], dtype=torch.float64)
    rows = [
        row(Ranked(name, archs, -torch.tensor([scores[name] for scores in found], dtype=torch.float64), accuracies))
        for name in SCORES
    ]
    settings.results.mkdir(parents=True, exist_ok=True)
    write_csv(settings.results / "scores.csv", rows)
    print_table("scores", list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def row(ranked: Ranked) -> dict[str, Any]:
    spearman, low, high = (round(value, 3) for value in ranked.spearman)
    return {
        "score": ranked.population,
        "cells": len(ranked.archs),
        "spearman": spearman,
        "low": low,
        "high": high,
        "published": PUBLISHED.get(ranked.population, ""),
    }


if __name__ == "__main__":
    jobs.main("scores", __doc__, Settings, main)
