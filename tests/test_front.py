"""A search for several limits at once: what goes into its pool, what comes out of it, and that it can be interrupted."""

import csv
import itertools
import json

import pytest
import torch

from advnas import front, halving
from advnas.data import images as data
from advnas.front import Pool, entrants, main_effects
from advnas.limits import Limit, limits_of, sums
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
    "halving_cells": 1,
    "halving_steps": 1,
    "threads": 1,
    "max_flops": ("2M", "3M", "6M"),
}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(front, "PATHS", 60)
    monkeypatch.setattr(front, "BATCHES", 1)
    monkeypatch.setattr(front, "ENTRANTS", 4)


@pytest.fixture
def searched():
    config = ImageSearchConfig(**{**TINY, "estimator": "random"})
    task = ImageTask(config, data.load("digits"))
    return task, SearchState(config, task), limits_of(config, task)


def rows_of(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_main_effects_are_those_of_an_additive_loss(searched, monkeypatch):
    task, state, _ = searched
    true = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(front, "PATHS", 200)
    monkeypatch.setattr(task, "measure", lambda network, path, batches: {"loss": 3 + sums(true, path.ops[:, 0]).item()})
    found = main_effects(task, state)
    torch.testing.assert_close(
        found - found.mean(1, keepdim=True), true - true.mean(1, keepdim=True), atol=1e-5, rtol=0
    )


def test_the_entrants_are_the_best_different_networks_of_each_limit(searched, few):
    task, _, limits = searched
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cells = entrants(task, limits, scores)
    names = [task.identity(ops) for ops in cells]
    assert len(set(names)) == len(names) <= 4 * len(limits)
    for limit in limits:
        best = limit.best(scores, 1)[0]
        assert task.identity(best) in names
        assert limit.allows(cells).sum() >= 4


def test_each_limit_gets_the_cell_of_the_smallest_loss_within_it(searched, few, monkeypatch):
    task, state, limits = searched
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cells = entrants(task, limits, -values)
    shuffled = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    monkeypatch.setattr(task, "measure", lambda network, path, batches: {"loss": sums(shuffled, path.ops[:, 0]).item()})
    trained = []
    monkeypatch.setattr(halving, "train_step", lambda task, state: trained.append(set(state.left)))
    pool = Pool(state, task, cells, limits)
    with Watch(pool, Progress("comparing", pool.rounds, {})) as watch:
        halving.halve(task, pool, watch)
    for limit, found in zip(limits, pool.found(), strict=True):
        within = cells[limit.allows(cells)]
        best = within[sums(shuffled, within).argmin()]
        assert found["arch"] == task.arch(best)
        assert found["valid_loss"] == pytest.approx(sums(shuffled, best).item())
    assert trained[0] == set(range(len(cells)))
    assert all(later <= earlier for earlier, later in itertools.pairwise(trained))
    losses = [found["valid_loss"] for found in pool.found()]
    assert losses == sorted(losses, reverse=True)  # more room is never worse


def test_a_search_for_several_limits(tmp_path, few):
    folder = run.start(ImageSearchConfig(**TINY, out=tmp_path / "run"))
    rows = rows_of(folder / "front.csv")
    assert [float(row["limit"]) for row in rows] == [2e6, 3e6, 6e6]
    config = ImageSearchConfig(**TINY)
    task = ImageTask(config)
    for row, limit in zip(rows, limits_of(config, task), strict=True):
        cost = limit.costs.of(task.places(row["arch"])).item()
        assert float(row["flops"]) == cost <= limit.value
        assert float(row["valid_loss"]) > 0
    result = json.loads((folder / "result.json").read_text())
    assert result["arch"] == rows[-1]["arch"]
    assert result["flops"] == float(rows[-1]["flops"])
    assert (folder / "front.svg").read_bytes().startswith(b"<?xml")
    assert (folder / "config.yaml").read_text().count("estimator: random") == 1


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_pool_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, few, stop_after):
    run.start(ImageSearchConfig(**TINY, out=tmp_path / "whole"))
    real, count = Watch.after_step, iter(range(1, 1000))

    def after_step(watch):
        watch.stop = isinstance(watch.state, Pool) and next(count) == stop_after
        real(watch)

    monkeypatch.setattr(Watch, "after_step", after_step)
    with pytest.raises(Interrupted, match=r"advnas search --resume .*part"):
        run.start(ImageSearchConfig(**TINY, out=tmp_path / "part"))
    run.resume(tmp_path / "part")
    assert rows_of(tmp_path / "whole" / "front.csv") == rows_of(tmp_path / "part" / "front.csv")


@pytest.mark.parametrize("estimator", ["rloo", "nasp", "random"])
def test_a_search_within_one_limit(tmp_path, estimator):
    settings = {**TINY, "max_flops": "2M", "estimator": estimator, "epochs": 2}
    folder = run.start(ImageSearchConfig(**settings, out=tmp_path / "run"))
    task = ImageTask(ImageSearchConfig(**settings))
    (limit,) = limits_of(task.config, task)
    found = [row["arch"] for file in ("history.csv", "halving.csv") for row in rows_of(folder / file)]
    result = json.loads((folder / "result.json").read_text())
    for arch in [*found, result["arch"]]:
        assert limit.allows(task.places(arch)), arch
    assert result["flops"] <= 2e6
    assert not (folder / "front.csv").exists()


def test_neighbours_within_a_limit():
    config = ImageSearchConfig(data="digits")
    task = ImageTask(config)
    path = task.path_costs()["flops"]
    conv, pool = NASBENCH201.ops.index("nor_conv_3x3"), NASBENCH201.ops.index("avg_pool_3x3")
    ops = torch.tensor([conv, pool, conv, pool, pool, conv])
    tight = Limit(
        limits_of(ImageSearchConfig(data="digits", max_flops="9M"), task)[0].costs, "flops", path.of(ops).item()
    )
    cells = halving.neighbourhood(ops, 5, tight)
    assert torch.equal(cells[0], ops)
    assert tight.allows(cells).all()
    assert len(cells.unique(dim=0)) == len(cells)
    moved = [cell for cell in cells if sorted(cell.tolist()) == sorted(ops.tolist())]
    assert len(moved) == 1 + 9  # a convolution for a pooling, on other edges: no change of one edge leads there
    assert len(cells) == 1 + 3 * 4 + 3 * 2 + 9  # a convolution replaced, or a pooling by what costs nothing either
