"""The command line: what a newcomer types, and what they read when it is wrong."""

import os
import subprocess
import sys

import pytest
import yaml

from advnas import cli

TINY = ["--channels", "4", "--cells", "1", "--epochs", "1", "--steps-per-epoch", "2", "--threads", "1"]
ARCH = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(
        f"arch_str,cifar10_test_200,flops_m\n{ARCH},93.5,100\n{ARCH.replace('none~1', 'skip_connect~1')},91.5,50\n"
    )
    return file


@pytest.mark.parametrize("command", ["search", "retrain", "query", "info"])
def test_help_explains(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"advnas {command}" in out
    assert len(out.splitlines()) > 3


def test_search_has_the_fixed_flags(capsys):
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    out = capsys.readouterr().out
    flags = "config preset task data data-dir estimator epochs warmup-epochs channels cells batch-size"
    flags += " table seed threads out resume"
    assert all(f"--{flag}" in out for flag in flags.split())


def test_usage_without_a_command(capsys):
    assert cli.main([]) == 2
    assert "advnas search" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0


def test_search_retrain_and_resume(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert cli.main(["search", *TINY, "--out", out, "--estimator", "reinforce", "--seed", "3"]) == 0
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (settings["estimator"], settings["seed"], settings["lr"]) == ("reinforce", 3, 0.025)
    assert "advnas retrain" in capsys.readouterr().out
    assert cli.main(["retrain", out, "--epochs", "1", "--channels", "4", "--cells", "1"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert cli.main(["search", "--resume", out]) == 0  # finished: nothing to do


def test_flags_count_more_than_the_file_and_the_file_more_than_the_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 7\nseed: 5\nlr: 0.5\n")
    arguments = ["search", "--preset", "fast", "--config", str(file), *TINY, "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (settings["epochs"], settings["seed"], settings["lr"]) == (1, 5, 0.5)
    assert settings["arch_lr"] != 3e-4  # the preset's


def test_query(table, capsys):
    assert cli.main(["query", str(table), "--arch", ARCH]) == 0
    assert "93.5" in capsys.readouterr().out
    assert cli.main(["query", str(table), "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert "93.5" in out
    assert "91.5" not in out


def test_info(capsys):
    assert cli.main(["info"]) == 0
    assert "instruction set" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["serach"], "no such command; choose among search"),
        (["search", "--epoch", "3"], "--epochs"),
        (["search", "--epochs", "0"], "epochs"),
        (["search", "--estimator", "darst"], "must be one of advantage"),
        (["search", "--task", "language"], "language is not available yet: use image"),
        (["search", "--data", "/nowhere"], "there is no folder /nowhere"),
        (["search", "--data", "cifar10"], "data_dir"),
        (["search", "--table", "/nowhere.csv"], "/nowhere.csv: no such"),
        (["search", "--config", "/nowhere.yaml"], "no such configuration file"),
        (["search", "--resume", "/nowhere"], "/nowhere"),
        (["search", "--preset", "slow"], "preset"),
        (["retrain"], "there is no cell to train"),
        (["retrain", "--arch", "|conv~0|"], "architecture"),
        (["query", "/nowhere.csv", "--top", "3"], "no such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing half-made


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_process_of_its_own_exits_with_the_code(encoding):
    command = [sys.executable, "-m", "advnas", "search", "--epoch", "3"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "perhaps you meant --epochs" in done.stderr
    assert "Traceback" not in done.stderr
