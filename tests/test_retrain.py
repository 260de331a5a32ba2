"""Training a found cell from scratch."""

import json
import os
import signal

import pytest

from advnas import retrain, run
from advnas.config import RetrainConfig, SearchConfig
from advnas.spaces.nasbench201 import cost
from advnas.watch import Interrupted, Watch

ARCH = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
TINY = {"arch": ARCH, "epochs": 2, "channels": 4, "cells": 1, "batch_size": 64, "threads": 1}


def result(folder):
    return json.loads((folder / retrain.RESULT).read_text())


def test_it_learns_and_reports_an_interval(tmp_path):
    folder = retrain.start(RetrainConfig(**TINY | {"epochs": 6, "channels": 8}, out=tmp_path / "run"))
    found = result(folder)
    low, high = found["test_accuracy_95"]
    assert 0.5 < low < found["test_accuracy"] < high < 1
    assert high - low < 0.1
    assert found["test_images"] == 599
    expected = cost(ARCH, 8, 1, 8, 1, 10)
    assert (found["params"], found["flops"]) == (expected.params, expected.flops)


def test_the_same_seed_gives_the_same_accuracy(tmp_path):
    first, second = (result(retrain.start(RetrainConfig(**TINY, out=tmp_path / name))) for name in "ab")
    assert first["test_accuracy"] == second["test_accuracy"]


def test_it_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = result(retrain.start(RetrainConfig(**TINY, out=tmp_path / "whole")))
    config = RetrainConfig(**TINY, out=tmp_path / "parts")
    after_step, steps = Watch.after_step, 0

    def counting(self):
        nonlocal steps
        steps += 1
        if steps == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_step", counting)
        with pytest.raises(Interrupted, match="go on with: the command"):
            retrain.start(config, command="the command")
    assert not (tmp_path / "parts" / retrain.RESULT).exists()
    assert result(retrain.start(config, go_on=True))["test_accuracy"] == whole["test_accuracy"]


def test_the_cell_of_a_run(tmp_path):
    folder = run.start(SearchConfig(channels=4, cells=1, epochs=1, steps_per_epoch=2, threads=1, out=tmp_path / "run"))
    settings = retrain.settings_of(folder)
    assert settings.arch == json.loads((folder / "result.json").read_text())["arch"]
    assert (settings.data, settings.out) == ("digits", folder)


def test_what_is_no_finished_search_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no result\.json"):
        retrain.settings_of(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="not the result of a search"):
        retrain.settings_of(tmp_path)
    with pytest.raises(ValueError, match="there is no cell to train"):
        retrain.start(RetrainConfig(out=tmp_path / "x"))


def test_a_second_retraining_does_not_overwrite_the_first(tmp_path):
    config = RetrainConfig(**TINY | {"epochs": 1}, out=tmp_path / "run")
    retrain.start(config)
    with pytest.raises(FileExistsError, match="holds a retraining already"):
        retrain.start(config)
