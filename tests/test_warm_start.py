"""A search that takes over another one's warm-up: as if it had been its own."""

import csv
import json
from unittest import mock

import pytest
import torch

from advnas.run import search as run
from advnas.run.folder import RunFolder
from advnas.run.watch import Watch
from advnas.tasks.image import ImageSearchConfig

SMALL = {
    "data": "digits",
    "channels": 2,
    "cells": 1,
    "steps_per_epoch": 3,
    "batch_size": 16,
    "valid_batches": 1,
    "threads": 1,
}


def rows(folder):
    with (folder / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def config(**settings):
    return ImageSearchConfig(**{**SMALL, "epochs": 4, "warmup_epochs": 2, "arch_lr": 0.1, **settings})


@pytest.fixture(scope="module")
def warm_up(tmp_path_factory):
    return run.start(config(epochs=2, out=tmp_path_factory.mktemp("runs") / "warm-up"))


@pytest.mark.parametrize("estimator", ["advantage", "rloo", "gdas", "darts"])
def test_it_goes_on_as_if_the_warm_up_had_been_its_own(warm_up, tmp_path, estimator):
    whole = run.start(config(estimator=estimator, halving_cells=1, halving_steps=1, out=tmp_path / "whole"))
    taken = run.start(
        config(estimator=estimator, halving_cells=1, halving_steps=1, warm_start=warm_up, out=tmp_path / "taken")
    )
    assert rows(taken) == rows(whole)
    assert (taken / "logits.csv").read_text() == (whole / "logits.csv").read_text()
    one, other = (
        torch.load(RunFolder(folder).checkpoint("search"), weights_only=True)["state"] for folder in (whole, taken)
    )
    for name, value in one["parts"]["network"].items():
        assert torch.equal(value, other["parts"]["network"][name])
    found, expected = (json.loads((folder / "result.json").read_text()) for folder in (taken, whole))
    assert found["arch"] == expected["arch"]


def test_it_goes_on_from_its_first_epoch(warm_up, tmp_path, monkeypatch):
    """Whatever stopped it there."""
    whole = run.start(config(warm_start=warm_up, out=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_step", mock.Mock(side_effect=OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            run.start(config(warm_start=warm_up, out=tmp_path / "part"))
    run.resume(tmp_path / "part")
    assert rows(tmp_path / "part") == rows(whole)


def test_time_of_the_warm_up_counts(warm_up, tmp_path):
    taken = run.start(config(warm_start=warm_up, out=tmp_path / "taken"))
    seconds = [[float(row["seconds"]) for row in csv.DictReader((f / "history.csv").open())] for f in (warm_up, taken)]
    assert seconds[1][:2] == seconds[0]
    assert seconds[1][2] > seconds[0][1]


@pytest.mark.parametrize("changed", [{"channels": 3}, {"seed": 1}, {"lr": 0.2}, {"reduction": "light"}])
def test_a_warm_up_of_another_search_is_refused(warm_up, tmp_path, changed):
    with pytest.raises(ValueError, match=f"other settings .{next(iter(changed))} "):
        run.start(config(warm_start=warm_up, out=tmp_path / "taken", **changed))
    assert not (tmp_path / "taken").exists()


def test_a_search_that_went_beyond_its_warm_up_is_refused(tmp_path):
    beyond = run.start(config(epochs=3, out=tmp_path / "beyond"))
    with pytest.raises(ValueError, match=r"after 2 epochs of warm-up, got 3; run it with --epochs 2"):
        run.start(config(warm_start=beyond, out=tmp_path / "taken"))
