"""The end of a search: the best cell and its neighbours, trained and halved."""

import csv
import json

import pytest
import torch

from advnas import halving
from advnas.data import images as data
from advnas.halving import Contestant, Halving
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

    def known(contestant):
        measured.append(contestant.path.ops[:, 0].tolist())
        return loss_of(contestant.path.ops[:, 0])

    monkeypatch.setattr(Contestant, "loss", property(known))
    return Halving(state, state.task), measured


def test_neighbours_differ_on_one_edge():
    ops = torch.tensor([3, 1, 2, 0, 1, 3])
    cells = halving.neighbourhood(ops, 4)
    assert cells.shape == (1 + 6 * 3, 6)
    assert torch.equal(cells[0], ops)
    assert ((cells[1:] != ops).sum(1) == 1).all()
    assert len(cells.unique(dim=0)) == len(cells)
    assert set(cells.flatten().tolist()) == {0, 1, 2, 3}


def run_halving(comparison, task, monkeypatch):
    """To the end without training; how many cells trained for how many steps in each round."""
    trained = {}

    def train_step(contestant, task):
        contestant.steps += 1
        trained[comparison.epoch] = trained.get(comparison.epoch, 0) + 1

    monkeypatch.setattr(Contestant, "train_step", train_step)
    with Watch(comparison, Progress("comparing", comparison.rounds, {})) as watch:
        halving.halve(task, comparison, watch)
    return list(trained.values())


@pytest.mark.parametrize("seed", range(3))
def test_where_the_first_cell_stays_best_its_neighbours_are_halved(searched, monkeypatch, seed):
    """Half of the cells go after each comparison, and the others train until they have twice the steps."""
    values = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed))
    values[torch.arange(6), searched.best[0]] = -1

    def loss_of(ops):
        return values[torch.arange(6), ops].sum().item()

    comparison, measured = halving_of(searched, loss_of, monkeypatch)
    steps = run_halving(comparison, searched.task, monkeypatch)
    cells = [cell.tolist() for cell in comparison.cells]
    assert cells[0] == searched.best[0].tolist()
    ranked = sorted(cells, key=lambda ops: loss_of(torch.tensor(ops)))
    assert comparison.left == [0]
    assert comparison.found == searched.arch(searched.best[0]) == comparison.history[-1]["arch"]
    assert measured[:19] == cells
    assert measured[19:] == ranked[:9] + ranked[:4] + ranked[:2]
    assert steps == [19 * 2, 9 * 2, 4 * 4, 2 * 8]
    assert [row["cells"] for row in comparison.history] == SIZES
    assert comparison.work == comparison.total_work == sum(steps)


def test_compared_cells_train_on_the_same_batches_from_the_same_weights(searched):
    comparison = Halving(searched, searched.task)
    weights = [dict(each.network.state_dict()) for each in comparison.contestants.values()]
    for name, weight in weights[0].items():
        assert all(torch.equal(weight, other[name]) for other in weights if name in other), name
    late = Halving(searched, searched.task).contestants[1]
    seen = []
    for contestant in (comparison.contestants[0], comparison.contestants[1], late):
        calls = []
        contestant.network.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args))
        for _ in range(3):
            contestant.train_step(searched.task)
        seen.append(calls)
    assert all(torch.equal(one[0], other[0]) for calls in seen for one, other in zip(calls, seen[0], strict=True))
    assert not torch.equal(seen[0][0][0], seen[0][1][0])
    assert [torch.equal(calls[0][1].ops[:, 0], comparison.cells[i]) for i, calls in enumerate(seen[:2])] == [True, True]
    known, again = comparison.contestants[1].network.state_dict(), late.network.state_dict()
    assert all(torch.equal(known[name], again[name]) for name in known)


def test_what_is_compared_is_the_loss_of_the_later_half_of_training(searched, monkeypatch):
    contestant = Halving(searched, searched.task).contestants[0]
    seen = []
    loss = searched.task.loss
    monkeypatch.setattr(searched.task, "loss", lambda *args: seen.append(loss(*args)) or seen[-1])
    for _ in range(5):
        contestant.train_step(searched.task)
    assert len({each.item() for each in seen}) == 5
    assert contestant.loss == pytest.approx(sum(each.item() for each in seen[2:]) / 3)
    contestant.losses[-1] = torch.tensor(torch.inf)
    with pytest.raises(FloatingPointError, match=r"loss of \|.* must be finite, got inf"):
        _ = contestant.loss


@pytest.mark.parametrize("plan", [None, [1, 2, 4], [2, 4, 8, 32]])
def test_a_comparison_of_an_earlier_version_says_so(searched, plan):
    state = Halving(searched, searched.task).state_dict()
    assert state["plan"] == [2, 4, 8, 16]
    state |= {"plan": plan}
    with pytest.raises(ValueError, match="begun by an earlier version; remove"):
        Halving(searched, searched.task).load_state_dict(state)


def test_a_search_ends_with_it(tmp_path):
    folder = run.start(ImageSearchConfig(**TINY, out=tmp_path / "run"))
    with (folder / "halving.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [int(row["cells"]) for row in rows]
    assert cells == SIZES
    result = json.loads((folder / "result.json").read_text())
    with (folder / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    found, best = NASBENCH201.parse(result["arch"]), NASBENCH201.parse(last["arch"])
    assert found.shape == best.shape
    assert result["arch"] == rows[-1]["arch"]
    assert result["seconds"] > float(last["seconds"])


@pytest.mark.parametrize(
    "where", [(0, 1), (0, 2), (1, 3)]
)  # round and step: the first cell's first and last one, in the second
def test_an_interrupted_comparison_goes_on_as_if_it_had_not_stopped(tmp_path, interrupt, where):
    run.start(ImageSearchConfig(**TINY, out=tmp_path / "whole"))
    interrupt(Halving, *where)
    with pytest.raises(Interrupted, match=r"advnas search --resume .*part"):
        run.start(ImageSearchConfig(**TINY, out=tmp_path / "part"))
    assert not (tmp_path / "part" / "result.json").exists()
    run.resume(tmp_path / "part")
    rows = [list(csv.DictReader((tmp_path / name / "halving.csv").open())) for name in ("whole", "part")]
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in some] for some in rows]
    assert without_time[0] == without_time[1]
    results = [json.loads((tmp_path / name / "result.json").read_text())["arch"] for name in ("whole", "part")]
    assert results[0] == results[1]
