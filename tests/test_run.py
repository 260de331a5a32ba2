import csv
import errno
import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from advnas import cli, quickstart, search
from advnas.analysis import searched
from advnas.run import search as run
from advnas.run.folder import RunFolder
from advnas.run.watch import Interrupted, Watch
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tasks.image import ImageSearchConfig, ImageTask

TINY = {
    "channels": 4,
    "cells": 1,
    "epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 16,
    "valid_batches": 1,
    "threads": 1,
}
FIXED = ["epoch", "seconds", "train_loss", "valid_loss", "valid_accuracy", "entropy", "arch"]


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """The figure takes a second: one test draws it."""
    if request.node.name != "test_a_run_folder_holds_everything":
        monkeypatch.setattr(run, "curves", lambda *args: b"")


@pytest.fixture
def config(tmp_path):
    return ImageSearchConfig(**TINY, out=tmp_path / "run")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Every cell of the space, with two made-up columns."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    cells = torch.cartesian_prod(*[torch.arange(len(NASBENCH201.ops))] * 6)
    rows = [f"{i},{NASBENCH201.format(ops)},{i / 200},{i}" for i, ops in enumerate(cells)]
    path.write_text("\n".join(["index,arch_str,cifar10_test_200,params_m", *rows]) + "\n")
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def interrupted_after(steps, monkeypatch):
    """The next search stops after that many steps, as if Ctrl-C came while the last one was running."""
    real = Watch.after_step
    count = iter(range(1, 1000))

    def after_step(watch):
        watch.stop = next(count) == steps
        real(watch)

    monkeypatch.setattr(Watch, "after_step", after_step)


def test_a_run_folder_holds_everything(config, table):
    folder = run.start(ImageSearchConfig(**{**config.to_dict(), "table": table, "tensorboard": True}))
    assert folder == config.out
    names = [
        "cell.svg",
        "checkpoint",
        "config.yaml",
        "curves.png",
        "history.csv",
        "logits.csv",
        "result.json",
        "split.npz",
    ]
    assert sorted(os.listdir(folder)) == [*names, "tensorboard"]
    assert yaml.safe_load((folder / "config.yaml").read_text()).keys() == set(ImageSearchConfig.names())

    history = read(folder / "history.csv")
    assert list(history[0]) == [*FIXED, "cifar10_test_200", "params_m"]
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert 0 < float(history[0]["seconds"]) < float(history[1]["seconds"])

    result = json.loads((folder / "result.json").read_text())
    assert list(result) == ["arch", "estimator", "seed", "seconds", "steps", "table"]
    assert (result["arch"], result["estimator"], result["seed"], result["steps"]) == (
        history[1]["arch"],
        "advantage",
        0,
        4,
    )
    expected = next(row for row in read(table) if row["arch_str"] == result["arch"])
    assert result["table"] == {
        "cifar10_test_200": float(expected["cifar10_test_200"]),
        "params_m": float(expected["params_m"]),
    }
    assert float(history[1]["params_m"]) == result["table"]["params_m"]

    logits = read(folder / "logits.csv")
    assert len(logits) == 3 * 6 * 5  # the start and two epochs
    assert list(logits[0]) == ["epoch", "edge", "op", "logit"]
    last = [row for row in logits if row["epoch"] == "2" and row["edge"] == "3<-2"]
    assert f"{max(last, key=lambda row: float(row['logit']))['op']}~2|" in result["arch"]

    split = np.load(folder / "split.npz")
    assert not set(split["weights"]) & set(split["architecture"])
    assert Image.open(folder / "curves.png").format == "PNG"
    assert (folder / "cell.svg").read_text().startswith("<svg")
    (events,) = os.listdir(folder / "tensorboard")
    assert events.startswith("events.out.tfevents")


def test_the_table_never_steers(config, table, tmp_path):
    alone = read(run.start(config) / "history.csv")
    with_table = read(
        run.start(ImageSearchConfig(**{**config.to_dict(), "table": table, "out": tmp_path / "other"})) / "history.csv"
    )
    assert without_time(alone) == [{name: row[name] for name in FIXED if name != "seconds"} for row in with_table]


def test_a_configuration_of_a_run_repeats_it(config, tmp_path):
    first = run.start(config)
    again = ImageSearchConfig().with_file(first / "config.yaml").with_settings({"out": tmp_path / "again"}, "test")
    second = run.start(again)
    assert without_time(read(first / "history.csv")) == without_time(read(second / "history.csv"))
    assert (first / "logits.csv").read_bytes() == (second / "logits.csv").read_bytes()


def test_a_resumed_run_ends_as_if_it_had_not_stopped(config, tmp_path, monkeypatch):
    expected = run.start(ImageSearchConfig(**{**config.to_dict(), "out": tmp_path / "whole"}))
    with monkeypatch.context() as patched:
        interrupted_after(3, patched)
        with pytest.raises(Interrupted, match=r"step 1 of epoch 2; go on with: advnas search --resume .*/run"):
            run.start(config)
    assert not (config.out / "result.json").exists()
    assert len(read(config.out / "history.csv")) == 1
    moved = config.out.rename(tmp_path / "moved")  # a run folder can be moved
    assert run.resume(moved) == moved
    assert without_time(read(moved / "history.csv")) == without_time(read(expected / "history.csv"))
    assert (moved / "logits.csv").read_bytes() == (expected / "logits.csv").read_bytes()


def test_the_pause_does_not_count(config, monkeypatch):
    with monkeypatch.context() as patched:
        interrupted_after(3, patched)
        with pytest.raises(Interrupted):
            run.start(config)
    worked = torch.load(RunFolder(config.out).checkpoint("search"), weights_only=True)["state"]["seconds"]
    clock = run.SearchState.seconds.fget.__globals__["time"].perf_counter
    monkeypatch.setattr("time.perf_counter", lambda: clock() + 10_000)
    run.resume(config.out)
    assert worked < json.loads((config.out / "result.json").read_text())["seconds"] < 1_000


def test_resuming_a_finished_run_changes_nothing(config):
    folder = run.start(config)
    before = {name: (folder / name).read_bytes() for name in ("history.csv", "result.json")}
    run.resume(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_folder_that_is_not_empty_is_left_alone(config, tmp_path):
    config.out.mkdir()
    (config.out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"run: exists and is not an empty folder; choose another --out$"):
        run.start(config)
    assert os.listdir(config.out) == ["mine.txt"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="choose another --out"):
        run.start(ImageSearchConfig(**{**config.to_dict(), "out": file}))


def test_the_folder_of_a_run_can_be_resumed_but_not_begun_again(config):
    run.start(config)
    with pytest.raises(FileExistsError, match=r"choose another --out, or go on with: advnas search --resume .*run$"):
        run.start(config)


def test_an_empty_folder_will_do(config):
    config.out.mkdir()
    assert (run.start(config) / "result.json").exists()


def test_without_a_name_a_run_gets_the_next_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(run.start(ImageSearchConfig(**{**TINY, "epochs": 1}, seed=3))) for _ in range(3)]
    assert names == ["runs/digits-advantage-seed3", "runs/digits-advantage-seed3-2", "runs/digits-advantage-seed3-3"]


def test_nothing_is_made_for_a_run_that_cannot_start(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such table"):
        run.start(ImageSearchConfig(**{**config.to_dict(), "table": tmp_path / "none.csv"}))
    with pytest.raises(FileNotFoundError, match="there is no folder nothing"):
        run.start(ImageSearchConfig(**{**config.to_dict(), "data": "nothing"}))
    with pytest.raises(ValueError, match="estimator_settings"):
        run.start(ImageSearchConfig(**{**config.to_dict(), "estimator_settings": {"no": 1}}))
    assert os.listdir(tmp_path) == []


def test_a_quick_start_without_its_data_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        quickstart.main(out=tmp_path / "run", data_dir=tmp_path / "none")
    assert os.listdir(tmp_path) == []


def test_a_quick_start_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "SEARCH", replace(quickstart.SEARCH, epochs=2, warmup_epochs=1, channels=2))
    monkeypatch.setattr(quickstart, "RETRAIN", replace(quickstart.RETRAIN, epochs=1, channels=2))
    monkeypatch.setattr(quickstart, "RANDOM_CELLS", 2)
    monkeypatch.setattr(run, "curves", lambda *args: b"")
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "name[" / "of]").mkdir(parents=True)
    quickstart.main(out=tmp_path / "name[" / "of]", threads=1)
    folder = tmp_path / "name[" / "of]-2"
    found, trained = RunFolder(folder).result(), RunFolder(folder).retrained()
    assert trained["arch"] == found["arch"]
    assert "<svg" in (folder / "comparison.svg").read_text()
    lines = capsys.readouterr().out.splitlines()
    (own,) = [line for line in lines if "found cell " in line and "%" in line]
    assert f"{100 * trained['test_accuracy']:.2f}" in own
    others = [RunFolder(folder / f"random-{number}").retrained()["test_accuracy"] for number in (1, 2)]
    (best,) = [line for line in lines if "best of 2 random cells" in line]
    assert f"{100 * max(others):.2f}" in best
    assert f"{100 * (trained['test_accuracy'] - max(others)):+.2f} (" in best
    assert lines[-1].startswith(f"run folder   {folder} (")


def test_a_quick_start_does_not_judge_digits_by_a_table(table, tmp_path):
    with pytest.raises(ValueError, match="table: judges a search on CIFAR-10; give its folder with --data-dir"):
        quickstart.main(out=tmp_path / "run", table=table)
    assert os.listdir(tmp_path) == []


def test_a_run_of_another_machine_goes_on_without_its_gpu(config, monkeypatch):
    with monkeypatch.context() as patched:
        interrupted_after(3, patched)
        with pytest.raises(Interrupted):
            run.start(config)
    file = config.out / "config.yaml"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda:99"))
    with pytest.raises(ValueError, match=r"device: cuda:99 is not there, torch sees .* use --device cpu"):
        cli.search(["--resume", str(config.out)])
    cli.search(["--resume", str(config.out), "--device", "cpu"])
    assert yaml.safe_load(file.read_text())["device"] == "cpu"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda"))
    if not torch.cuda.is_available():
        assert searched(config.out)[1].config.device == "cpu"


def test_what_was_saved_on_a_gpu_goes_on_without_it(config, monkeypatch):
    whole = run.start(ImageSearchConfig(**{**config.to_dict(), "out": config.out.with_name("whole")}))
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
        interrupted_after(3, patched)
        with pytest.raises(Interrupted):
            run.start(config)
    run.resume(config.out)
    assert (config.out / "logits.csv").read_text() == (whole / "logits.csv").read_text()


def test_a_table_that_lacks_cells_is_refused_before_the_search(config, table, tmp_path):
    cut = tmp_path / "cut.csv"
    cut.write_text("".join(table.read_text().splitlines(keepends=True)[:1000]))
    with pytest.raises(ValueError, match=r"cut\.csv: must hold every cell of the space, got 999; it may be truncated"):
        run.start(ImageSearchConfig(**{**config.to_dict(), "table": cut}))


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not the folder of a search, there is no config\.yaml in it"):
        run.resume(tmp_path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: RunFolder(folder).checkpoint("search").unlink(), "there is no checkpoint here"),
        (lambda folder: RunFolder(folder).checkpoint("search").write_bytes(b"x" * 100), "damaged"),
        (
            lambda folder: edit(folder / "config.yaml", "channels: 4", "channels: 8"),
            r"other settings \(channels 4, now 8\)",
        ),
        (lambda folder: edit(folder / "config.yaml", "channels: 4", "channels: 0"), "channels: .*got 0"),
    ],
)
def test_a_damaged_run_is_refused_and_left_as_it_is(config, damage, message):
    folder = run.start(config)
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        run.resume(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_full_disk_ends_the_search_with_the_last_checkpoint_whole(config, tmp_path, monkeypatch):
    expected = run.start(ImageSearchConfig(**{**config.to_dict(), "out": tmp_path / "whole"}))
    real, saves = os.fsync, iter(range(1, 1000))

    def full(descriptor):
        if next(saves) > 6:  # config, split, first checkpoint, then of epoch 1: checkpoint, history, logits
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"search\.pt: .*No space left on device; make room, then go on with: advnas search"
        ):
            run.start(config)
    assert not [path for path in config.out.rglob("*") if "partial" in path.name]
    assert len(read(config.out / "history.csv")) == 1
    run.resume(config.out)
    assert without_time(read(config.out / "history.csv")) == without_time(read(expected / "history.csv"))


def test_a_search_of_warm_up_alone_says_that_it_finds_nothing(config, capsys):
    run.start(ImageSearchConfig(**{**config.to_dict(), "warmup_epochs": 2}))
    assert "every epoch is a warm-up epoch" in capsys.readouterr().out


def test_files_that_an_ended_search_lacks_are_written_when_it_is_resumed(config):
    """As where the disk was full, or someone killed it, between the last checkpoint and they."""
    folder = run.start(config)
    before = {name: (folder / name).read_bytes() for name in ("history.csv", "logits.csv")}
    for name in before:
        (folder / name).unlink()
    run.resume(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_ctrl_c_in_the_last_evaluation_is_not_lost(config, monkeypatch):
    real = Watch.after_epoch

    def after_epoch(watch):
        watch.stop = watch.state.epoch == config.epochs
        real(watch)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_epoch", after_epoch)
        with pytest.raises(Interrupted, match="stopped after epoch 2; go on with: advnas search --resume"):
            run.start(config)
    assert not (config.out / "result.json").exists()
    run.resume(config.out)
    assert (config.out / "result.json").exists()


def test_a_table_does_not_replace_a_runs_own_columns(config, table, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("params_m", "valid_loss", 1))
    folder = run.start(ImageSearchConfig(**{**config.to_dict(), "table": other}))
    rows = read(folder / "history.csv")
    assert list(rows[0]) == [*FIXED, "cifar10_test_200"]
    assert all(float(row["valid_loss"]) < 15 for row in rows)


def test_a_cell_whose_loss_is_no_number_is_not_the_best(config, monkeypatch):
    losses = iter([math.nan, 2.0, 1.0, math.inf])
    monkeypatch.setattr(search, "evaluate", lambda task, state, ops, batches: {"loss": next(losses), "accuracy": 0.0})

    class State:
        config = ImageSearchConfig()

        def candidates(self):
            return [torch.tensor([op]) for op in range(4)]

    ops, metrics = search.best_cell(None, State())
    assert ops.item() == 2
    assert metrics["loss"] == 1.0


def test_a_limit_that_one_cell_alone_is_within(config, capsys):
    """There is nothing to compare it with."""
    config = ImageSearchConfig(
        **{
            **config.to_dict(),
            "epochs": 1,
            "halving_cells": 1,
            "halving_steps": 1,
            "max_flops": ("8M",),
            "without": ("none", "avg_pool_3x3"),
            "data": "digits",
        }
    )
    task = ImageTask(config)
    least = task.path_costs()["flops"].least
    folder = run.start(replace(config, max_flops=(f"{least + 1:.0f}",)))
    assert RunFolder(folder).result()["arch"].count("skip_connect") == 6
    assert "no neighbour of the best cell is within the limit" in capsys.readouterr().out
    run.resume(folder)
