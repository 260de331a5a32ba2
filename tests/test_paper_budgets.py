"""The experiment of searches within limits, on generated numbers."""

import csv
import dataclasses
import json

import pytest
import torch
from benchmarks.paper import budgets

from advnas import front
from advnas.spaces.nasbench201 import NASBENCH201


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Every cell of the space, with made-up numbers."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    cells = torch.cartesian_prod(*[torch.arange(len(NASBENCH201.ops))] * 6)
    rows = [
        f"{i},{NASBENCH201.format(ops)},{i / 200},{i / 300},{i / 400},{(ops == 3).sum()},{0.001 * (1 + int(ops.sum()))}"
        for i, ops in enumerate(cells)
    ]
    columns = "cifar10_test_200,cifar100_test_200,imagenet16_120_test_200,flops_m,latency_s"
    path.write_text("\n".join([f"index,arch_str,{columns}", *rows]) + "\n")
    return path


def test_the_referee_by_hand():
    referee = budgets.Referee({"a": 1, "b": 2, "c": 2, "d": 3}, {"a": 90, "b": 94, "c": 91, "d": 99})
    assert referee.best(2) == 94
    assert referee.largest(2) == 92.5
    assert (referee.best(1.5), referee.largest(1.5)) == (90, 90)
    assert (referee.best(9), referee.largest(9)) == (99, 99)


def test_a_small_experiment_from_end_to_end(table, tmp_path, monkeypatch, capsys, jobs_here):
    monkeypatch.setattr(budgets, "PATHS", 50)
    monkeypatch.setattr(front, "DRAWN", 6)
    monkeypatch.setattr(front, "FINALISTS", 3)
    settings = budgets.Settings(
        table=table,
        data="digits",
        seeds=(3,),
        flops=(2e6, 5e6),
        threads=1,
        out=tmp_path / "runs",
        results=tmp_path / "results",
        set={
            "epochs": "1", "warmup_epochs": "1", "channels": "2", "steps_per_epoch": "2", "valid_batches": "1", "image_size": "4",
            "halving_cells": "1", "halving_steps": "1",
        },
    )  # fmt: skip
    budgets.main(settings)
    rows = list(csv.DictReader((tmp_path / "results" / "paper-budgets.csv").open()))
    assert len(rows) == 2 + 5
    for row in rows:
        assert float(row["found"]) <= float(row["best"])
        assert float(row["random"]) <= float(row["best"])
    text = (tmp_path / "results" / "paper-budgets.md").read_text()
    without = dataclasses.replace(settings, random=False, results=tmp_path / "without")
    budgets.main(without)
    assert [{**row, "random": None} for row in csv.DictReader((without.results / "paper-budgets.csv").open())] == [
        {**row, "random": None} for row in rows
    ]
    assert "| largest |\n" in (without.results / "paper-budgets.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("\n| ") == 2 * 2 + 2 + 5
    drawn = json.loads((tmp_path / "runs" / "flops-seed-3" / "random.json").read_text())
    assert len(drawn) == 2
    assert (tmp_path / "runs" / "latency-seed-3" / "front.csv").exists()
