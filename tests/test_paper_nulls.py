"""The experiment on what a search adds, small, and scores of untrained networks by hand."""

import csv
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from benchmarks.paper import authors, budgets, nb201, nulls, ptb, scores, signals
from benchmarks.paper.scores import synflow, zico
from torch import nn

from advnas.run.folder import RunFolder
from advnas.run.search import start
from advnas.run.watch import Interrupted
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tasks.image import ImageSearchConfig, ImageTask


@pytest.fixture
def table(tmp_path):
    """Every cell, with the number of its 3x3 convolutions for an accuracy."""
    cells = torch.cartesian_prod(*[torch.arange(len(NASBENCH201.ops))] * 6)
    rows = [f"{i},{NASBENCH201.format(ops)},{(ops == 3).sum()},1,1" for i, ops in enumerate(cells)]
    path = tmp_path / "table.csv"
    columns = "index,arch_str,cifar10_test_200,cifar100_test_200,imagenet16_120_test_200"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def test_every_start_ends_with_a_cell(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nulls, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(1))
    settings = nulls.Settings(
        table=table,
        data="digits",
        seeds=(3, 4),
        cells=2,
        scored=3,
        out=tmp_path / "runs",
        results=tmp_path / "results",
        set={
            "epochs": "2", "warmup_epochs": "1", "channels": "2", "steps_per_epoch": "1", "valid_batches": "1", "image_size": "4",
            "halving_cells": "1", "halving_steps": "1", "batch_size": "8",
        },
    )  # fmt: skip
    nulls.main(settings)
    rows = list(csv.DictReader((tmp_path / "results" / "nulls.csv").open()))
    assert [(row["start"], row["seed"]) for row in rows] == [(s, seed) for seed in "34" for s in settings.starts]
    for row in rows:
        ops = NASBENCH201.parse(row["arch"])
        assert float(row["accuracy"]) == (ops == 3).sum()
        assert (ops != 0).all()  # none is not searched
    text = (tmp_path / "results" / "nulls.md").read_text()
    assert all(f"| {start} |" in text for start in settings.starts)
    with pytest.raises(
        ValueError, match=r"recipe\.yaml: the runs beside it have another data, epochs; choose another --out"
    ):
        nulls.main(replace(settings, data="clutter", set={**settings.set, "epochs": "3"}))
    # What is there is not run again.
    monkeypatch.setattr(nulls.Run, "go", lambda run: pytest.fail("ran again"))
    nulls.main(settings)
    assert list(csv.DictReader((tmp_path / "results" / "nulls.csv").open())) == rows


SMALL = {
    "data": "digits",
    "channels": 2,
    "epochs": 2,
    "warmup_epochs": 1,
    "steps_per_epoch": 2,
    "halving_cells": 1,
    "halving_steps": 1,
    "without": ("none",),
    "image_size": 4,
}


def test_what_is_drawn(monkeypatch):
    config = ImageSearchConfig(**SMALL)
    task = ImageTask(config)
    seen = []
    monkeypatch.setitem(
        scores.SCORES, "naswot", lambda task, network, batches: seen.append(network.path.ops[:, 0]) or len(seen)
    )

    def drawn(start):
        return nulls.Run(start, config, 3, 9, None)._drawn(task)

    assert len(drawn("random")) == 3
    assert torch.equal(drawn("naswot"), torch.stack(seen[:-4:-1]))
    assert len(seen) == 9


def test_a_search_ends_as_the_command_does_and_shares_comparisons(tmp_path, monkeypatch):
    config = ImageSearchConfig(**SMALL, estimator="rloo")
    whole = RunFolder(start(replace(config, out=tmp_path / "whole"))).result()
    run = nulls.Run("rloo", config, 3, 9, tmp_path / "rloo.json")
    run.go()
    found = json.loads(run.file.read_text())
    assert found["arch"] == whole["arch"]
    (around,) = tmp_path.glob("around-*.json")
    searched = RunFolder(tmp_path / "rloo").result()
    assert found["seconds"] == round(searched["seconds"] + json.loads(around.read_text())["seconds"], 1)
    # Another start that comes to the same cell does not compare again.
    again = nulls.Run("critic", config, 3, 9, tmp_path / "critic.json")
    monkeypatch.setattr(nulls.Run, "_compared", lambda *args: pytest.fail("compared again"))
    monkeypatch.setattr(nulls.Run, "_searched", lambda run: (task_cell(around), 1.0))
    again.go()
    assert json.loads(again.file.read_text())["arch"] == found["arch"]


def task_cell(around):
    return torch.tensor([int(op) for op in around.stem.removeprefix("around-")])


def test_the_largest_cell_is_that_of_3x3_convolutions(tmp_path):
    run = nulls.Run("largest", ImageSearchConfig(**SMALL), 3, 9, tmp_path / "largest.json")
    run.go()
    (around,) = tmp_path.glob("around-*.json")
    ops = ImageTask(run.config).ops
    assert [ops[op] for op in task_cell(around)] == ["nor_conv_3x3"] * 6


def test_the_table_is_in_the_order_of_the_means():
    settings = nulls.Settings(table=None, seeds=(1, 2), starts=("rloo", "random"))
    rows = [
        {"start": start, "seed": seed, "accuracy": value, "seconds": 60.0}
        for start, values in (("rloo", (1.0, 2.0)), ("random", (5.0, 1.0)))
        for seed, value in zip((1, 2), values, strict=True)
    ]
    lines = nulls.table(settings, rows).splitlines()[-2:]
    assert lines[0].startswith("| random | 3.00 | 1.00 | 5.00, 1.00 |")
    assert lines[1].startswith("| rloo | 1.50 | 1.00 | 1.00, 2.00 |")


def test_synflow_by_hand():
    """Two layers: R = sum |b| |a|, and a layer's weights have R together. Batch norm is left out, and nothing changes."""
    network = nn.Sequential(
        nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1, affine=False), nn.Conv2d(1, 1, 1, bias=False)
    )
    network[0].weight.data = torch.tensor([-1.0, 3.0]).view(1, 2, 1, 1)
    network[2].weight.data.fill_(-2.0)
    assert synflow(network, (2, 1, 1)) == pytest.approx(2 * (1 + 3) * 2)
    assert network[2].weight.item() == -2
    assert network[2].weight.dtype == torch.float32


def test_zico_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.zero_()
    batches = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])]
    # Gradients (1, 2) and (3, 2): the second weight has no deviation and does not count. mean 2, deviation 1.
    assert zico(layer, lambda x: layer(x).sum(), batches) == pytest.approx(math.log(2 / 1))
    assert layer.weight.grad is None


def test_how_well_scores_rank(table, tmp_path, capsys):
    settings = scores.Settings(table=table, data="digits", cells=12, modules=1, results=tmp_path)
    scores.main(settings)
    rows = {row["score"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert list(rows) == ["naswot", "synflow", "zico"]
    # Larger networks have more weights to add up, and here more accuracy.
    assert float(rows["synflow"]["spearman"]) > 0.5
    assert rows["synflow"]["published"] == "0.74"
    assert all(float(row["low"]) <= float(row["spearman"]) <= float(row["high"]) for row in rows.values())


def test_unknown_names_are_refused_before_anything_runs(table, tmp_path):
    out = tmp_path / "runs"
    common = {"table": table, "data": "digits", "out": out}
    for go, settings, message in [
        (nulls.main, nulls.Settings(**common, starts=("rloo", "synflw")), "starts: must be among rloo, .*, got synflw"),
        (budgets.main, budgets.Settings(**common, kinds=("flop",)), "kinds: must be among flops, latency, got flop"),
        (authors.main, authors.Settings(**common, estimators=("foo",)), "estimators: .*, got foo"),
        (nb201.main, nb201.Settings(**common, estimators=("foo",)), "estimators: .*, got foo"),
        (signals.go, signals.Settings(estimators=("random",)), "estimators: must be among advantage, .*, got random"),
        (ptb.Experiment, ptb.Settings(data="tiny", out=out, estimators=("foo",)), "estimators: .*, got foo"),
    ]:
        with pytest.raises(ValueError, match=message):
            go(settings)
    assert not out.exists()


def test_an_interrupted_search_goes_on(tmp_path, interrupt):
    run = nulls.Run("rloo", ImageSearchConfig(**SMALL), 3, 9, tmp_path / "rloo.json")
    interrupt(SearchState, 1, 1)
    with pytest.raises(Interrupted):
        run.go()
    assert not run.file.exists()
    run.go()
    assert run.file.exists()
