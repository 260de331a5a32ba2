"""A search for several limits at once: what goes into its pool, what comes out of it, and that it can be interrupted."""

import csv
import itertools
import json

import pytest
import torch

from advnas import front, halving
from advnas.data import images as data
from advnas.front import Field, Pool
from advnas.halving import Contestant
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
    "halving_steps": 2,
    "threads": 1,
    "max_flops": ("2M", "3M", "6M"),
}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(front, "DRAWN", 12)
    monkeypatch.setattr(front, "FINALISTS", 8)


@pytest.fixture
def searched():
    config = ImageSearchConfig(**{**TINY, "estimator": "random"})
    task = ImageTask(config, data.load("digits"))
    return task, SearchState(config, task), limits_of(config, task)


def rows_of(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def field(searched):
    task, _, limits = searched
    return Field(task, limits, seed=0)


def finalists_of(field):
    """By promises that are made up."""
    generator = torch.Generator().manual_seed(0)
    field.promises = {ops: tuple(torch.randn(2, generator=generator).tolist()) for ops in field.drawn()}
    return field.finalists()


def test_a_field_has_every_network_once_as_its_cheapest_cell(field):
    cells = every_cell(field.task.space, field.task.ops)
    costs = field.limits[0].costs.of(cells).tolist()
    cheapest = {}
    for ops, cost in zip(cells, costs, strict=True):
        name = field.task.identity(ops)
        cheapest[name] = min(cost, cheapest.get(name, cost))
    own = {
        field.task.identity(torch.tensor(ops)): field.limits[0].costs.of(torch.tensor(ops)).item()
        for ops in field.networks
    }
    assert len(own) == len(field.networks)
    assert own == cheapest


def test_near_a_limit_is_the_dearest_quarter_within_it(field, few):
    networks = field.networks
    for number, limit in enumerate(field.limits):
        costs = limit.costs.of(torch.tensor(networks))
        within = costs[costs <= limit.value].sort(descending=True).values
        near = field.near(number, networks)
        wanted = max(-(-len(within) // 4), 8)
        least = within[wanted - 1]  # those that cost as much are in, too
        assert limit.costs.of(torch.tensor(near)).min() == least
        assert len(near) == (within >= least).sum() < len(within)


def test_what_is_looked_at_is_near_a_limit(field, searched, few):
    field.look(searched[1])
    looked = list(field.promises)
    assert len(set(looked)) == len(looked) <= 12 * len(field.limits)
    for number in range(len(field.limits)):
        assert len(field.near(number, looked)) >= 12
    assert all(len(values) == 2 for values in field.promises.values())


def test_the_finalists_promise_most_within_each_limit(field, few):
    cells, contenders = finalists_of(field)
    assert len(cells.unique(dim=0)) == len(cells)
    for number, places in enumerate(contenders):
        near = field.near(number, field.promises)
        by_kind = [sorted(field.promises[ops][kind] for ops in near) for kind in (0, 1)]
        total = {ops: sum(by_kind[kind].index(field.promises[ops][kind]) for kind in (0, 1)) for ops in near}
        chosen = [total[tuple(cells[place].tolist())] for place in places]
        assert chosen == sorted(total.values(), reverse=True)[:8]


@pytest.mark.parametrize("sign", [1, -1])
def test_each_limit_gets_the_best_of_its_own_by_what_all_losses_tell(searched, field, few, monkeypatch, sign):
    task, state, limits = searched
    monkeypatch.setattr(front, "smoothed", lambda cells, losses: sign * losses)
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    monkeypatch.setattr(Contestant, "loss", property(lambda self: sums(values, self.path.ops[:, 0]).item()))
    trained = []
    monkeypatch.setattr(halving, "train", lambda task, state, watch: trained.append((set(state.left), state.steps)))
    cells, contenders = finalists_of(field)
    pool = Pool(state, task, cells, contenders)
    with Watch(pool, Progress("comparing", pool.rounds, {})) as watch:
        halving.halve(task, pool, watch)
    for limit, places, found in zip(limits, contenders, pool.front(), strict=True):
        losses = sums(values, cells[places])
        best = (sign * losses).argmin()
        assert found["arch"] == task.arch(cells[places][best])
        assert found["loss"] == pytest.approx(losses[best].item())
        assert limit.allows(cells[places][best])
    assert len(trained) == pool.rounds == 2  # 8 for each limit, then 2
    assert trained[0] == (set(range(pool.size)), state.config.halving_steps // 2)
    for (earlier, steps), (later, more) in itertools.pairwise(trained):
        assert later <= earlier
        assert more == 4 * steps


def test_a_search_for_several_limits(tmp_path, few):
    folder = run.start(ImageSearchConfig(**TINY, out=tmp_path / "run"))
    rows = rows_of(folder / "front.csv")
    assert [float(row["limit"]) for row in rows] == [2e6, 3e6, 6e6]
    config = ImageSearchConfig(**TINY)
    task = ImageTask(config)
    for row, limit in zip(rows, limits_of(config, task), strict=True):
        cost = limit.costs.of(task.places(row["arch"])).item()
        assert float(row["flops"]) == cost <= limit.value
        assert float(row["loss"]) > 0
    result = json.loads((folder / "result.json").read_text())
    assert result["arch"] == rows[-1]["arch"]
    assert result["flops"] == float(rows[-1]["flops"])
    assert (folder / "front.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("where", [(0, 1), (1, 2)])  # round and step
def test_an_interrupted_pool_goes_on_as_if_it_had_not_stopped(tmp_path, interrupt, few, where):
    run.start(ImageSearchConfig(**TINY, out=tmp_path / "whole"))
    interrupt(Pool, *where)
    with pytest.raises(Interrupted, match=r"advnas search --resume .*part"):
        run.start(ImageSearchConfig(**TINY, out=tmp_path / "part"))
    run.resume(tmp_path / "part")
    assert rows_of(tmp_path / "whole" / "front.csv") == rows_of(tmp_path / "part" / "front.csv")


def test_ctrl_c_while_networks_are_looked_at_says_how_to_go_on(tmp_path, few, monkeypatch):
    def pressed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ImageTask, "promises", pressed)
        with pytest.raises(Interrupted, match=r"looking at networks; go on with: advnas search --resume .*part"):
            run.start(ImageSearchConfig(**TINY, out=tmp_path / "part"))
    run.start(ImageSearchConfig(**TINY, out=tmp_path / "whole"))
    run.resume(tmp_path / "part")
    assert rows_of(tmp_path / "whole" / "front.csv") == rows_of(tmp_path / "part" / "front.csv")


def test_a_pool_of_another_plan_does_not_go_on(searched, field, few):
    task, state, _ = searched
    cells, contenders = finalists_of(field)
    saved = Pool(state, task, cells, contenders).state_dict()
    assert saved["plan"] == [1, 4]
    Pool(state, task, cells, contenders).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"begun by an earlier version; remove checkpoint/front\.pt"):
        Pool(state, task, cells, contenders).load_state_dict({**saved, "plan": [1, 2, 4]})  # by halves after the first


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
