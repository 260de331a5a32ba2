import json
import math
import os

import pytest
import torch

from advnas.cost import cost
from advnas.data import images as data
from advnas.report.numbers import wilson
from advnas.retrain import RetrainState
from advnas.retrain import retrain as loop
from advnas.run import retrain
from advnas.run import search as run
from advnas.run.folder import RunFolder
from advnas.run.watch import Interrupted, Watch
from advnas.tasks.image import ImageRetrainConfig, ImageSearchConfig, ImageTask

ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|nor_conv_1x1~1|avg_pool_3x3~2|"
TINY = {"channels": 4, "cells": 1, "epochs": 3, "batch_size": 400, "threads": 1}


@pytest.fixture
def config(tmp_path):
    return ImageRetrainConfig(**TINY, arch=ARCH, out=tmp_path / "run")


def result_of(folder):
    return json.loads((folder / "retrain.json").read_text())


def without_time(result):
    return {name: value for name, value in result.items() if name not in ("seconds", "out")}


def test_the_result_says_what_was_trained_and_how_well_it_does(config):
    result = result_of(retrain.start(config))
    assert set(ImageRetrainConfig.names()) <= result.keys()
    images = data.load("digits")
    count = len(images.test)
    assert result["test_images"] == count
    correct = round(result["test_accuracy"] * count)
    assert result["test_accuracy"] == correct / count
    assert result["test_accuracy_95"] == pytest.approx(wilson(correct, count))
    expected = cost(ImageTask(config, images).network(ARCH), (1, 1, 8, 8))
    assert (result["params"], result["flops"]) == (expected.params, expected.flops)
    assert result["seconds"] > 0


def test_it_learns(config):
    result = result_of(retrain.start(ImageRetrainConfig(**{**config.to_dict(), "epochs": 4, "batch_size": 64})))
    assert result["test_accuracy"] > 0.8


def test_the_test_accuracy_is_that_of_the_trained_network_in_eval_mode(config):
    images = data.load("digits")
    task, state = state_of(config)
    with Watch(state, progress=SilentProgress()) as watch:
        loop(task, state, watch)
    tested = task.test(state.network)
    count = tested["test_images"]
    correct = round(tested["test_accuracy"] * count)
    state.network.eval()
    pixels = images.test.pixels.permute(0, 3, 1, 2) / 255
    x = (pixels - images.mean.view(1, -1, 1, 1)) / images.std.view(1, -1, 1, 1)
    with torch.no_grad():
        right = int((state.network(x).argmax(1) == images.test.labels).sum())
    assert count == len(images.test)
    assert abs(correct - right) <= 1  # rounding may decide one image


def state_of(config):
    task = ImageTask(config, data.load("digits"))
    return task, RetrainState(config, task)


class SilentProgress:
    def start(self, done, total): ...
    def advance(self, done, total): ...
    def line(self, row, unit): ...
    def stop(self): ...


def test_the_whole_training_set_is_used_and_the_rate_falls_to_0(config):
    task, state = state_of(config)
    assert state.stream.index.tolist() == list(range(len(task.images.train)))
    with Watch(state, progress=SilentProgress()) as watch:
        loop(task, state, watch)
    assert state.recipe.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert state.history[-1]["train_loss"] < state.history[0]["train_loss"]
    assert 0 < state.history[-1]["train_accuracy"] <= 1
    assert state.work == state.total_work == 3 * state.steps_per_epoch


def test_only_the_operations_of_the_cell_are_there(config):
    _, state = state_of(config)
    # By hand, with 4 channels in the first stage: stem; cells of a 3x3 and a 1x1 convolution; reductions; last norm; classifier.
    stem, head = 9 * 4 + 2 * 4, 2 * 16 + 16 * 10 + 10
    cells = sum((9 + 1) * width**2 + 2 * 2 * width for width in (4, 8, 16))
    reductions = sum((9 + 1) * width // 2 * width + 9 * width**2 + 2 * 2 * width for width in (8, 16))
    assert sum(p.numel() for p in state.network.parameters()) == stem + cells + reductions + head


def test_the_seed_decides_everything(config, tmp_path):
    first = result_of(retrain.start(config))
    torch.manual_seed(99)
    second = result_of(retrain.start(ImageRetrainConfig(**{**config.to_dict(), "out": tmp_path / "again"})))
    assert without_time(first) == without_time(second)


def test_an_interrupted_retraining_goes_on_bit_for_bit(config, tmp_path, monkeypatch):
    whole = ImageRetrainConfig(**{**config.to_dict(), "out": tmp_path / "whole"})
    expected = result_of(retrain.start(whole))
    weights = torch.load(RunFolder(whole.out).checkpoint("retrain"), weights_only=True)["state"]["parts"]["network"]
    count, real = iter(range(1, 1000)), Watch.after_step

    def after_step(watch):
        watch.stop = next(count) == 4
        real(watch)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_step", after_step)
        with pytest.raises(Interrupted, match="step 1 of epoch 2; go on with: the command --resume"):
            retrain.start(config, command="the command --resume")
    assert not (config.out / "retrain.json").exists()
    with pytest.raises(
        FileExistsError, match="holds a retraining already; choose another --out, or go on with: the command"
    ):
        retrain.start(config, command="the command")
    with pytest.raises(ValueError, match=r"other settings \(lr 0.1, now 0.2\)"):
        retrain.start(ImageRetrainConfig(**{**config.to_dict(), "lr": 0.2}), go_on=True)
    assert without_time(result_of(retrain.start(config, go_on=True))) == without_time(expected)
    resumed = torch.load(RunFolder(config.out).checkpoint("retrain"), weights_only=True)["state"]["parts"]["network"]
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_the_cell_of_a_run_is_trained_in_its_folder_on_its_data(tmp_path):
    folder = run.start(
        ImageSearchConfig(
            channels=4, cells=1, epochs=1, steps_per_epoch=1, valid_batches=1, threads=1, out=tmp_path / "run"
        )
    )
    config = retrain.settings_of(folder)
    found = json.loads((folder / "result.json").read_text())["arch"]
    assert (config.arch, config.data, config.out, config.threads) == (found, "digits", folder, 1)
    assert (config.channels, config.cells, config.epochs) == (16, 5, 200)  # the protocol's, not the search's


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no result\.json; give the folder of a finished search"):
        retrain.settings_of(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="not the result of a search"):
        retrain.settings_of(tmp_path)


@pytest.mark.parametrize(
    "arch, message",
    [
        (None, "no cell to train"),
        ("|conv~0|", "must have the form"),
        (ARCH.replace("none", "nothing"), "unknown operation 'nothing'"),
    ],
)
def test_a_cell_that_is_none_is_refused_before_anything_is_made(config, tmp_path, arch, message):
    with pytest.raises(ValueError, match=message):
        retrain.start(ImageRetrainConfig(**{**config.to_dict(), "arch": arch}))
    assert os.listdir(tmp_path) == []


def test_without_a_folder_it_makes_one(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = retrain.start(ImageRetrainConfig(**{**config.to_dict(), "out": None, "epochs": 1}))
    assert str(folder) == "runs/digits-retrain-seed0"
    assert (folder / "retrain.json").exists()


def test_a_loss_that_is_no_number_stops_it(config):
    with pytest.raises(
        FloatingPointError, match=r"the loss must be finite, got (nan|inf)\. The last good checkpoint is"
    ):
        retrain.start(ImageRetrainConfig(**{**config.to_dict(), "lr": 1e30}))
    assert not (config.out / "retrain.json").exists()
    good = torch.load(RunFolder(config.out).checkpoint("retrain"), weights_only=True)["state"]["parts"]["network"]
    assert all(math.isfinite(value.sum().item()) for value in good.values())


def test_the_folder_that_it_made_is_in_the_command_that_goes_on(config, tmp_path, monkeypatch, interrupt):
    monkeypatch.chdir(tmp_path)
    unnamed = ImageRetrainConfig(**{**config.to_dict(), "out": None, "epochs": 1})
    interrupt(RetrainState, 0, 1)
    with pytest.raises(Interrupted, match=r"go on with: the command --out runs/digits-retrain-seed0$"):
        retrain.start(unnamed, command="the command")
    with pytest.raises(ValueError, match=r"resume: needs the folder .* add --out FOLDER"):
        retrain.start(unnamed, go_on=True)
    assert os.listdir(tmp_path / "runs") == ["digits-retrain-seed0"]
