"""Experiments on what credit is worth, small."""

import csv
import statistics

import pytest
import torch
from benchmarks.paper import authors, credit
from benchmarks.paper.jobs import Job

from advnas.report.console import Rounds
from advnas.run import search as run
from advnas.tasks.image import ImageSearchConfig

SMALL = {"channels": "2", "cells": "1", "steps_per_epoch": "3", "valid_batches": "1", "batch_size": "16"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    settings = {"data": "digits", "epochs": 2, "warmup_epochs": 1, "threads": 1, "without": ("none",), "arch_lr": 0.3}
    small = {name: int(value) for name, value in SMALL.items()}
    return run.start(ImageSearchConfig(**settings, **small, out=tmp_path_factory.mktemp("runs") / "run"))


def test_variants_are_measured_on_the_same_paths(searched, tmp_path, capsys):
    settings = credit.Settings(run=searched, epochs=(1, 2), batches=6, paths=4, results=tmp_path)
    credit.go(settings)
    credit.go(settings)  # adds its rows
    rows = list(csv.DictReader((tmp_path / "credit.csv").open()))
    exact = [row for row in rows if row["variant"] == "exact"]
    assert len(exact) == 4
    rows = [row for row in rows if row["variant"] != "exact"]
    for row in (*rows, *exact):  # a softmax's gradient sums to 0 on every edge
        assert sum(float(value) for name, value in row.items() if name.startswith("push_")) == pytest.approx(
            0, abs=1e-6
        )
    names = [row["variant"] for row in rows]
    assert len(names) == 4 * len(set(names))
    assert {"reinforce", "4 paths, critic", "advantage", "advantage, input, operation means off"} < set(names)
    assert [row["epoch"] for row in rows[: len(rows) // 2]] == ["1"] * (len(rows) // 4) + ["2"] * (len(rows) // 4)
    assert float(rows[0]["entropy"]) == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-3)
    assert "4 paths, critic" in capsys.readouterr().out


def made(paths=8, batches=400):
    """Paths of a loss that adds up, with batches that add a constant to it and advantages that are the operations' values."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    values = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    p = logits.softmax(1)
    ops = torch.stack([torch.multinomial(row, batches * paths, True, generator=generator) for row in p], 1)
    ops = ops.unflatten(0, (batches, paths))
    credit_of_each = values[torch.arange(3), ops]
    batch = torch.randn(batches, 1, generator=generator, dtype=torch.float64)
    noisy = credit_of_each + 3
    measured = credit.Measured(logits, ops, credit_of_each.sum(-1) + batch, (noisy, credit_of_each), 1.0, (2.0, 3.0))
    return measured, p * (values - (p * values).sum(1, keepdim=True))


def test_all_variants_of_a_loss_that_adds_up_have_the_exact_gradient_for_their_mean():
    measured, exact = made()
    for name, gradients, seconds in credit.variants(measured):
        flat = gradients.flatten(0, 1)
        error = flat.std(0) / len(flat) ** 0.5
        assert ((flat.mean(0) - exact).abs() < 4.5 * error + 1e-3).all(), name
        assert seconds in (1.0, 2.0, 3.0, 4.0), name


def test_noise_that_variants_share_with_the_exact_gradient_is_no_correlation(searched, tmp_path, monkeypatch):
    """Advantages whose mean is orthogonal to the gradient, with the noise of the loss."""
    seeds = iter(range(24))
    values = torch.tensor([[0.3, -0.3, 0.0, 0.0], [0.0, 0.0, 0.3, -0.3]], dtype=torch.float64)

    def noisy(run, logits, batches, paths, rounds):
        generator = torch.Generator().manual_seed(next(seeds))
        ops = torch.randint(4, (batches, paths, 6), generator=generator)
        noise = 2 * torch.randn(batches, paths, generator=generator, dtype=torch.float64)
        both = (values[1, ops] + noise[..., None],) * 2
        uniform = torch.zeros(6, 4, dtype=torch.float64)
        return credit.Measured(uniform, ops, values[0, ops].sum(-1) + noise, both, 1.0, (2.0, 3.0))

    monkeypatch.setattr(credit, "measure", noisy)
    credit.go(credit.Settings(run=searched, epochs=(1,) * 24, batches=150, paths=8, results=tmp_path))
    rows = [row for row in csv.DictReader((tmp_path / "credit.csv").open()) if row["variant"] != "exact"]
    for name, correlation in (("advantage", 0), ("advantage, operation means off", 0), ("4 paths, leave one out", 1)):
        found = [float(row["correlation"]) for row in rows if row["variant"] == name]
        assert statistics.mean(found) == pytest.approx(correlation, abs=0.12), name
        assert any(value < correlation for value in found)


def test_what_is_taken_off_takes_noise_off():
    measured, _ = made()
    noise = {name: gradients.flatten(0, 1).var(0).sum().item() for name, gradients, _ in credit.variants(measured)}
    assert noise["4 paths, critic"] < 0.02 * noise["4 paths, leave one out"]
    assert noise["advantage, operation means off"] < 1e-6 * noise["advantage, edge means off"]
    assert noise["advantage, edge means off"] < 0.5 * noise["advantage"]
    assert noise["reinforce, critic"] < 0.8 * noise["reinforce"]


def test_the_state_of_the_search_is_left_alone(searched):
    from advnas.analysis import searched as restored

    _, run_again = restored(searched)
    before = [weight.clone() for weight in run_again.state.network.parameters()]
    with Rounds("", 2) as rounds:
        credit.measure(run_again, torch.zeros(6, 4), 2, 4, rounds)
    assert all(torch.equal(a, b) for a, b in zip(before, run_again.state.network.parameters(), strict=True))


def test_the_authors_settings_end_to_end(made_up_table, tmp_path, monkeypatch, capsys, jobs_here):
    settings = authors.Settings(
        table=made_up_table,
        data="digits",
        seeds=(1, 2),
        estimators=("advantage", "critic"),
        workers=1,
        out=tmp_path / "runs",
        results=tmp_path / "results",
        set={"epochs": "3", "warmup_epochs": "1", "schedule_epochs": "4", **SMALL},
    )
    authors.main(settings)
    rows = list(csv.DictReader((tmp_path / "results" / "paper-nb201-authors.csv").open()))
    assert [float(row["iterations"]) for row in rows] == [0, 3, 6] * 4
    assert {float(row["seconds"]) for row in rows if row["iterations"] == "0"} == {0}
    starts = {(row["seed"], row["cifar10_test_200"]) for row in rows if row["iterations"] == "0"}
    assert len(starts) == 2, "estimators of a seed share its warm-up"
    lines = capsys.readouterr().out.splitlines()
    assert "| estimator | after 3 | after 6 | by seed | seconds |" in lines
    (line,) = [line for line in lines if line.startswith("| critic |")]
    found = [
        statistics.median(
            float(row["cifar10_test_200"])
            for row in rows
            if row["estimator"] == "critic" and row["iterations"] == steps
        )
        for steps in ("3", "6")
    ]
    assert line.startswith(f"| critic | {found[0]:.2f} | {found[1]:.2f} |")
    assert "<svg" in (tmp_path / "results" / "paper-nb201-authors.svg").read_text()

    monkeypatch.setattr(Job, "start", lambda job: pytest.fail("a run that is done must not be run again"))
    authors.main(settings)


def test_the_authors_recipe_is_theirs():
    recipe = ImageSearchConfig().with_settings(authors.RECIPE, "recipe")
    assert recipe.warmup_epochs * recipe.steps_per_epoch == pytest.approx(50 * 25000 / 64, rel=0.005)
    assert (recipe.epochs - recipe.warmup_epochs) * recipe.steps_per_epoch == pytest.approx(7.5 * 25000 / 64, rel=0.005)
    assert (recipe.channels, recipe.cells, recipe.reduction, recipe.image_size) == (16, 5, "residual", None)
