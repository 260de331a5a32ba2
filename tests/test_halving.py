"""The end of a search: the best cell and its neighbours, trained and halved."""

import csv
import json

import pytest
import torch

from advnas import halving
from advnas.data import images as data
from advnas.halving import Halving
from advnas.report.console import Progress
from advnas.run import search as run
from advnas.run.watch import Interrupted, Watch
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tasks.image import ImageSearchConfig, ImageTask

TINY = {
    "data": "digits",
    "channels": 2,
    "cells": 1,
    "epochs": 1,
    "steps_per_epoch": 2,
    "batch_size": 16,
    "valid_batches": 1,
    "without": ("none",),
    "halving_cells": 2,
    "halving_steps": 2,
    "threads": 1,
}
SIZES = [19, 9, 4, 2]


@pytest.fixture
def searched():
    """A search whose best cell is known, without ``none``."""
    config = ImageSearchConfig(**{**TINY, "halving_cells": 1})
    task = ImageTask(config, data.load("digits"))
    state = SearchState(config, task)
    state.task = task
    state.best = [torch.tensor([3, 1, 2, 0, 1, 3])]
    return state


def halving_of(state, loss_of, monkeypatch):
    """The halving of a search where the loss of every cell is known, and the cells that were measured."""
    measured = []

    def known(network, path, batches):
        measured.append(path.ops[:, 0].tolist())
        return {"loss": loss_of(path.ops[:, 0]), "accuracy": 0.0}

    monkeypatch.setattr(state.task, "measure", known)
    return Halving(state, state.task), measured


def test_neighbours_differ_on_one_edge():
    ops = torch.tensor([3, 1, 2, 0, 1, 3])
    cells = halving.neighbourhood(ops, 4)
    assert cells.shape == (1 + 6 * 3, 6)
    assert torch.equal(cells[0], ops)
    assert ((cells[1:] != ops).sum(1) == 1).all()
    assert len(cells.unique(dim=0)) == len(cells)
    assert set(cells.flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(3))
def test_halving_finds_the_cell_of_the_smallest_loss(searched, monkeypatch, seed):
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))

    def loss_of(ops):
        return values[torch.arange(6), ops].sum().item()

    comparison, measured = halving_of(searched, loss_of, monkeypatch)
    steps = []
    monkeypatch.setattr(halving, "train_step", lambda task, state: steps.append(len(state.left)))
    with Watch(comparison, Progress("comparing", comparison.rounds, {})) as watch:
        halving.halve(searched.task, comparison, watch)
    cells = halving.neighbourhood(searched.best[0], 4).tolist()
    ranked = sorted(cells, key=lambda ops: loss_of(torch.tensor(ops)))
    assert len(comparison.left) == 1
    assert cells[comparison.left[0]] == ranked[0]
    assert (
        comparison.archs[comparison.left[0]] == searched.arch(torch.tensor(ranked[0])) == comparison.history[-1]["arch"]
    )
    # Half of the cells go after each comparison, and the others train until they have twice the steps.
    assert measured[:19] == cells
    assert measured[19:] == ranked[:9] + ranked[:4] + ranked[:2]
    assert steps == [19] * 2 + [9] * 2 + [4] * 4 + [2] * 8
    assert [row["cells"] for row in comparison.history] == [19, 9, 4, 2]
    assert comparison.total_work == sum(steps)


def test_compared_cells_train_on_the_same_batches_from_the_same_weights(searched):
    comparison = Halving(searched, searched.task)
    one, other = comparison.networks[0], comparison.networks[1]
    for name, weight in one.named_parameters():
        if name in dict(other.named_parameters()):
            assert torch.equal(weight, dict(other.named_parameters())[name]), name
    seen = [[] for _ in comparison.networks]
    for network, calls in zip(comparison.networks, seen, strict=True):
        network.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args))
    halving.train_step(searched.task, comparison)
    assert comparison.work == len(comparison.left) == 19
    assert all(torch.equal(calls[0][0], seen[0][0][0]) for calls in seen)
    for calls, ops in zip(seen, halving.neighbourhood(searched.best[0], 4), strict=True):
        assert torch.equal(calls[0][1].ops[:, 0], ops)


def test_a_search_ends_with_it(tmp_path):
    folder = run.start(ImageSearchConfig(**TINY, out=tmp_path / "run"))
    with (folder / "halving.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["cells"]) for row in rows] == SIZES
    result = json.loads((folder / "result.json").read_text())
    with (folder / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    found, best = NASBENCH201.parse(result["arch"]), NASBENCH201.parse(last["arch"])
    assert (found != best).sum() <= 1
    assert result["arch"] == rows[-1]["arch"]
    assert result["seconds"] > float(last["seconds"])


@pytest.mark.parametrize("stop_after", [1, 2, 3])  # in the first round, at its end, in the second
def test_an_interrupted_comparison_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, stop_after):
    run.start(ImageSearchConfig(**TINY, out=tmp_path / "whole"))
    real, count = Watch.after_step, iter(range(1, 1000))

    def after_step(watch):
        watch.stop = isinstance(watch.state, Halving) and next(count) == stop_after
        real(watch)

    monkeypatch.setattr(Watch, "after_step", after_step)
    with pytest.raises(Interrupted, match=r"advnas search --resume .*part"):
        run.start(ImageSearchConfig(**TINY, out=tmp_path / "part"))
    assert not (tmp_path / "part" / "result.json").exists()
    run.resume(tmp_path / "part")
    rows = [list(csv.DictReader((tmp_path / name / "halving.csv").open())) for name in ("whole", "part")]
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in some] for some in rows]
    assert without_time[0] == without_time[1]
    results = [json.loads((tmp_path / name / "result.json").read_text())["arch"] for name in ("whole", "part")]
    assert results[0] == results[1]
