"""A search for several limits at once: what goes into its pool, what comes out of it, and that it can be interrupted."""

import csv
import itertools
import json

import pytest
import torch

from advnas import front, halving
from advnas.data import images as data
from advnas.front import Field, Pool, Scouts, main_effects
from advnas.limits import Limit, every_cell, limits_of, sums
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
    monkeypatch.setattr(front, "ENTRANTS", (4, 2))
    monkeypatch.setattr(front, "FINALISTS", 4)


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


@pytest.fixture
def field(searched):
    task, _, limits = searched
    effects = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Field(task, limits, effects, seed=0)


def test_a_field_has_every_network_once_as_its_cheapest_cell(field):
    cells = every_cell(field.task.space, field.task.ops)
    costs = field.limits[0].costs.of(cells).tolist()
    cheapest = {}
    for ops, cost in zip(cells, costs, strict=True):
        name = field.task.identity(ops)
        cheapest[name] = min(cost, cheapest.get(name, cost))
    own = {name: field.limits[0].costs.of(torch.tensor(ops)).item() for name, ops in field.cheapest.items()}
    assert own == cheapest


def test_near_a_limit_is_the_dearest_quarter_within_it(field):
    networks = list(field.cheapest.values())
    for number, limit in enumerate(field.limits):
        costs = limit.costs.of(torch.tensor(networks))
        within = costs <= limit.value
        near = field.near(number, networks)
        assert within.sum() / 4 <= len(near) <= within.sum()
        dearest = limit.costs.of(torch.tensor(near))
        assert dearest.max() <= limit.value
        rest = [ops for ops, holds in zip(networks, within.tolist(), strict=True) if holds and ops not in set(near)]
        assert not rest or limit.costs.of(torch.tensor(rest)).max() < dearest.min()


def test_the_first_wave_is_drawn_from_the_better_half(field, few):
    cells = field.entrants(0)
    assert len(cells.unique(dim=0)) == len(cells) == 4 * len(field.limits)
    for number in range(len(field.limits)):
        networks = field.near(number, field.cheapest.values())
        median = sums(field.effects, torch.tensor(networks)).median()
        near = torch.tensor(field.near(number, [tuple(ops) for ops in cells.tolist()]))
        assert (sums(field.effects, near) <= median).sum() >= 4


def test_later_waves_are_new_neighbours_of_the_best_ones(field, few):
    first = field.entrants(0)
    for place, ops in enumerate(first.tolist()):
        field.losses[tuple(ops)] = float(place % 7)
    second = field.entrants(1)
    parents = [ops for number in range(len(field.limits)) for ops in field.best(number)[: front.PARENTS]]
    around = {
        field.task.identity(ops)
        for parent in parents
        for ops in halving.neighbourhood(torch.tensor(parent), 5, field.limits[-1])
    }
    assert 0 < len(second) <= 2 * len(field.limits)
    for ops in second:
        assert tuple(ops.tolist()) not in field.losses
        assert field.task.identity(ops) in around
        assert any(field.near(number, [tuple(ops.tolist())]) for number in range(len(field.limits)))


def test_the_finalists_are_the_best_scouts_of_each_limit(field, few):
    for place, ops in enumerate(field.entrants(0).tolist()):
        field.losses[tuple(ops)] = float(-place % 7)
    cells, contenders = field.finalists()
    assert len(cells.unique(dim=0)) == len(cells)
    for number, places in enumerate(contenders):
        losses = [field.losses[tuple(cells[place].tolist())] for place in places]
        every = sorted(field.losses[ops] for ops in field.near(number, field.losses))
        assert losses == every[: front.FINALISTS]


def test_each_limit_gets_the_cell_of_the_smallest_loss_among_its_own(searched, field, few, monkeypatch):
    task, state, limits = searched
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    monkeypatch.setattr(task, "measure", lambda network, path, batches: {"loss": sums(values, path.ops[:, 0]).item()})
    trained = []
    monkeypatch.setattr(halving, "train", lambda task, state, watch: trained.append((set(state.left), state.steps)))
    scouts = Scouts(state, task, field.entrants(0), 0)
    with Watch(scouts, Progress("scouting", scouts.rounds, {})) as watch:
        halving.halve(task, scouts, watch)
    assert trained == [(set(range(scouts.size)), max(1, state.config.halving_steps // 2))]
    cells = [scouts.cells[place] for place in scouts.losses]
    assert list(scouts.losses.values()) == [sums(values, ops).item() for ops in cells]
    field.losses = {tuple(ops.tolist()): loss for ops, loss in zip(cells, scouts.losses.values(), strict=True)}
    trained.clear()
    pool = Pool(state, task, *field.finalists())
    with Watch(pool, Progress("comparing", pool.rounds, {})) as watch:
        halving.halve(task, pool, watch)
    for number, found in enumerate(pool.front()):
        best = field.best(number)[0]
        assert found["arch"] == task.arch(torch.tensor(best))
        assert found["valid_loss"] == pytest.approx(field.losses[best])
        assert limits[number].allows(torch.tensor(best))
    assert trained[0] == (set(range(pool.size)), state.config.halving_steps)
    for (earlier, steps), (later, more) in itertools.pairwise(trained):
        assert later <= earlier
        assert more == 2 * steps


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


@pytest.mark.parametrize("where", [Scouts, Pool])
@pytest.mark.parametrize("stop_after", [2, 4])
def test_an_interrupted_front_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, few, where, stop_after):
    run.start(ImageSearchConfig(**TINY, out=tmp_path / "whole"))
    real, count = Watch.after_step, iter(range(1, 1000))

    def after_step(watch):
        watch.stop = isinstance(watch.state, where) and next(count) == stop_after
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
