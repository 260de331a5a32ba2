import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import docstring_parser
import pytest
import yaml

from advnas import cli, front, lookup
from advnas.data.images import DATA
from advnas.report.numbers import written
from advnas.run import search as run
from advnas.tasks import TASKS
from advnas.tasks.image import ImageSearchConfig
from advnas_ext import ESTIMATORS

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|nor_conv_1x1~1|avg_pool_3x3~2|"
TINY = [
    "--channels=4",
    "--cells=1",
    "--epochs=1",
    "--steps-per-epoch=2",
    "--batch-size=16",
    "--valid-batches=1",
    "--threads=1",
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "curves", lambda *args: b"")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    other = CELL.replace("none", "skip_connect")
    path.write_text(f"index,arch_str,cifar10_test_200,params_m\n0,{CELL},91.5,0.5\n1,{other},93.25,0.4\n")
    return path


def settings_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_search_then_retrain(advnas, tmp_path):
    code, out, err = advnas("search", *TINY, "--out", "my run")
    assert (code, err) == (0, "")
    arch = json.loads((tmp_path / "my run" / "result.json").read_text())["arch"]
    assert re.search(rf"^cell +{re.escape(arch)}$", out, re.M)
    assert re.search(r"^go on with +advnas retrain 'my run'$", out, re.M)
    code, out, err = advnas("retrain", "my run", "--channels=4", "--cells=1", "--epochs=1")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "my run" / "retrain.json").read_text())
    assert (result["arch"], result["channels"]) == (arch, 4)
    accuracy, low, high = (100 * value for value in (result["test_accuracy"], *result["test_accuracy_95"]))
    assert f"test accuracy  {accuracy:.2f}% (95%: {low:.2f} - {high:.2f})" in out
    assert f"parameters     {result['params']:,}" in out


def test_retrain_of_a_given_cell(advnas, tmp_path):
    code, _, _ = advnas("retrain", "--arch", CELL, "--channels=4", "--cells=1", "--epochs=1", "--seed=7", "--threads=1")
    assert code == 0
    assert json.loads((tmp_path / "runs" / "digits-retrain-seed7" / "retrain.json").read_text())["arch"] == CELL


def test_flags_count_more_than_the_file_and_the_file_more_than_the_preset(advnas, tmp_path):
    (tmp_path / "my.yaml").write_text("channels: 6\narch_lr: 0.5\nwarmup_epochs: 1\n")
    code, _, _ = advnas(
        "search",
        "--preset=fast",
        "--config=my.yaml",
        "--halving-steps=1",
        *TINY,
        "--arch-betas",
        "0.1",
        "0.2",
        "--no-nesterov",
        "--out=run",
    )
    assert code == 0
    settings = settings_of(tmp_path / "run")
    assert settings["channels"] == 4  # flag, over the file's 6 and the preset's 8
    assert settings["arch_lr"] == 0.5  # file, over the preset's
    assert settings["arch_weight_decay"] == 0  # preset
    assert settings["momentum"] == 0.9  # default
    assert (settings["arch_betas"], settings["nesterov"]) == ([0.1, 0.2], False)
    code, _, _ = advnas("search", "--preset=fast", "--halving-steps=1", *TINY[1:], "--out=preset")
    assert settings_of(tmp_path / "preset")["channels"] == 8


def test_a_file_of_settings_for_retraining(advnas, tmp_path):
    (tmp_path / "my.yaml").write_text(f"arch: '{CELL}'\nchannels: 4\ncells: 1\nepochs: 5\nout: here\nthreads: 1\n")
    assert advnas("retrain", "--config", "my.yaml", "--epochs", "1")[0] == 0
    result = json.loads((tmp_path / "here" / "retrain.json").read_text())
    assert (result["channels"], result["epochs"]) == (4, 1)


def test_settings_of_the_estimator(advnas, tmp_path):
    code, _, _ = advnas(
        "search",
        *TINY,
        "--estimator=parsec",
        "--estimator-settings",
        "num_samples",
        "2",
        "weighting",
        "likelihood",
        "--out=run",
    )
    assert code == 0
    assert settings_of(tmp_path / "run")["estimator_settings"] == {"num_samples": 2, "weighting": "likelihood"}


def test_a_smaller_space_and_a_smaller_supernet(advnas, tmp_path):
    flags = [
        "--without",
        "none",
        "avg_pool_3x3",
        "--image-size=4",
        "--reduction=light",
        "--halving-cells=1",
        "--halving-steps=1",
    ]
    code, out, err = advnas("search", *TINY, *flags, "--out=run")
    assert (code, err) == (0, "")
    settings = settings_of(tmp_path / "run")
    assert (settings["without"], settings["image_size"]) == (["none", "avg_pool_3x3"], 4)
    assert (settings["reduction"], settings["halving_cells"]) == ("light", 1)
    arch = json.loads((tmp_path / "run" / "result.json").read_text())["arch"]
    assert arch in out
    assert "none" not in arch
    assert "avg" not in arch
    assert {row["op"] for row in read(tmp_path / "run" / "logits.csv")} == {
        "skip_connect",
        "nor_conv_1x1",
        "nor_conv_3x3",
    }


def test_a_search_within_a_limit(advnas, tmp_path):
    flags = ["--halving-cells=1", "--halving-steps=1"]
    code, out, err = advnas("search", *TINY, *flags, "--max-flops=2M", "--out=run")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["flops"] <= 2e6
    assert re.search(rf"^flops +{written(result['flops'], 'flops')}$", out, re.M)
    assert settings_of(tmp_path / "run")["max_flops"] == ["2M"]


def test_a_front(advnas, tmp_path, monkeypatch):
    monkeypatch.setattr(front, "DRAWN", 6)
    monkeypatch.setattr(front, "FINALISTS", 2)
    (tmp_path / "my.yaml").write_text("max_params: 150k\n")
    flags = ["--config=my.yaml", "--front", "--halving-cells=1", "--halving-steps=1"]
    code, out, err = advnas("search", *TINY, *flags, "--out=run")
    assert (code, err) == (0, "")
    rows = read(tmp_path / "run" / "front.csv")
    assert len(rows) > 2
    assert all(float(row["params"]) <= float(row["limit"]) <= 150e3 for row in rows)
    assert all(row["arch"] in out for row in rows)
    assert re.search(r"│ +150k │", out)


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["search", "--epochs", "0"],
            "epochs: Input should be greater than or equal to 1, got 0; see advnas search --help",
        ),
        (["search", "--epochs", "many"], "--epochs: invalid literal for int"),
        (["search", "--epochs"], "Missing value for argument '--epochs'"),
        (["search", "--epoch", "3"], "Unrecognized options: --epoch, 3; perhaps you meant --epochs or "),
        (["search", "--preset", "quick"], "'quick'"),
        (
            ["search", "--task", "audio"],
            "invalid choice 'audio' for argument '--task'. Expected one of ('image', 'language')",
        ),
        (["search", "--estimator", "adventage"], f"estimator: must be one of {', '.join(ESTIMATORS)}, got 'adventage'"),
        (
            ["search", "--data", "mnist"],
            f"data: must be one of {', '.join(DATA)}, or a folder of images",
        ),
        (["search", "--data", "cifar10"], "data_dir"),
        (["search", "--table", "none.csv"], "none.csv: no such table"),
        (["search", "--config", "none.yaml"], "none.yaml: no such configuration file"),
        (["search", "--config", "~nobody-here/none.yaml"], "~nobody-here/none.yaml: no such configuration file"),
        (["search", "--config", "odd.yaml"], "odd.yaml: unknown setting 'epoch'; did you mean epochs?"),
        (["search", "--resume", "nothing"], "nothing: not the folder of a search"),
        (["search", "--resume", "~nobody-here/run"], "~nobody-here/run: not the folder of a search"),
        (["search", "--data", "~nobody-here/images"], "there is no folder ~nobody-here/images"),
        (["search", "--task", "language", "--data", "~nobody-here/text"], "there is no folder ~nobody-here/text"),
        (["search", "--resume", "nothing", "--seed", "3"], "--resume takes every setting from the run folder"),
        (["search", "--out", "odd.yaml"], "odd.yaml: exists and is not an empty folder"),
        (["search", "more"], "Unrecognized options: more"),
        (["retrain"], "no cell to train"),
        (["retrain", "nothing"], "nothing: there is no result.json"),
        (["retrain", "--arch", "|x|"], "must have the form"),
        (["retrain", "--lr", "0", "--arch", CELL], "lr: Input should be greater than 0, got 0.0"),
        (["search", "--reduction", "heavy"], "reduction: must be one of residual, light, got 'heavy'"),
        (["search", "--without", "noise"], "without: must be operations among none, skip_connect"),
        (["search", "--image-size", "0"], "image_size: Input should be greater than or equal to 1, got 0"),
        (
            ["search", "--max-flops", "60 apples"],
            "max_flops: must be a number above 0, with k, K, M, G or nothing behind it",
        ),
        (["search", "--max-flops", "1k"], "max_flops: must be at least that of the cheapest cell, 468.7k, got 1k"),
        (["search", "--max-latency", "15ms"], "max_latency: needs latencies, a file with measured ones"),
        (["search", "--max-latency", "1s", "--latencies", "none.csv"], "none.csv: no such file of latencies"),
        (
            ["search", "--max-latency", "1s", "--latencies", "table.csv"],
            "table.csv: must have the columns edge, op, latency_s",
        ),
        (
            ["search", "--max-latency", "1s", "--latencies", "quoted.csv"],
            "quoted.csv: not a CSV file: field larger than",
        ),
        (
            ["search", "--channels", "3000000", "--cells", "1"],
            "too large for the memory; take smaller batches or networks: ",
        ),
        (["lab"], "choose a measurement: advnas analysis signal or advnas analysis rank"),
        (["query"], "FILE"),
        (["query", "table.csv"], "give one of --arch and --top"),
        (["query", "table.csv", "--top", "1", "--arch", CELL], "give one of --arch and --top"),
        (["query", "table.csv", "--top", "0"], "top: must be at least 1, got 0"),
        (["query", "table.csv", "--top", "1", "--by", "speed"], "has no column 'speed'"),
        (["query", "table.csv", "--arch", CELL.replace("none", "nothing")], "unknown operation 'nothing'"),
        (["query", "none.csv", "--top", "1"], "none.csv: no such table"),
        (["query", "~nobody-here/none.csv", "--top", "1"], "~nobody-here/none.csv: no such table"),
        (["fly"], "no such command; choose among search, retrain, query, table, analysis, info"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(advnas, table, tmp_path, args, message):
    (tmp_path / "odd.yaml").write_text("epoch: 3\n")
    (tmp_path / "quoted.csv").write_text('edge,op,latency_s\n"' + "0<-1,none,1\n" * 20_000)
    code, out, err = advnas(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith(f"advnas {args[0]}: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert sorted(os.listdir(tmp_path)) == ["odd.yaml", "quoted.csv", "table.csv"]  # nothing is left behind


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_width_of_the_terminal_does_not_matter_to_a_message(advnas, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, _, err = advnas("search", "--epochs", "0")
    assert err == "advnas search: epochs: Input should be greater than or equal to 1, got 0; see advnas search --help\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(advnas, command):
    code, out, err = advnas(command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: advnas {command}" in out


def test_every_flag_is_explained(advnas, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    out = re.sub(r" *[│ ]\n[│ ] {4,}", " ", advnas("search", "--help")[1])  # an option a line
    flags = {name.replace("_", "-") for name in ImageSearchConfig.names()} | {"config", "preset", "resume"}
    for flag in flags:
        assert re.search(rf"^[│ ] --{flag}[ ,].*? +[A-Za-z][^│\n]{{15,}}\(default: ", out, re.M), flag
    assert f"--estimator {'|'.join(ESTIMATORS)} " in out


def test_an_explanation_is_one_line():
    """tyro keeps the line breaks of longer ones."""
    kinds = [cli.SearchArguments, cli.RetrainArguments, lookup.QueryArguments, cli.SignalArguments, cli.RankArguments]
    for kind in [
        *kinds,
        *(task.search_config for task in TASKS.values()),
        *(task.retrain_config for task in TASKS.values()),
    ]:
        for base in kind.__mro__[:-1]:
            params = docstring_parser.parse_from_object(base).params
            assert [param.arg_name for param in params if "\n" in (param.description or "")] == [], base


def test_a_process_of_its_own_exits_with_the_code():
    """Where the output is not UTF-8, tyro draws its box with other characters."""
    command = [sys.executable, "-m", "advnas", "search", "--epoch", "3"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("advnas search: Unrecognized options: --epoch, 3; perhaps you meant --epochs or ")
    assert done.stderr.count("\n") == 1


def test_usage(advnas):
    code, out, _ = advnas("--help")
    assert code == 0
    assert all(f"advnas {command} " in out for command in cli.COMMANDS)
    code, out, err = advnas()
    assert (code, out) == (2, "")
    assert err.startswith("usage: advnas COMMAND")


def test_query_prints_a_row_or_the_best(advnas, table):
    code, out, _ = advnas("query", str(table), "--arch", CELL)
    assert code == 0
    assert re.search(r"^cifar10_test_200 +91.5$", out, re.M)
    code, out, _ = advnas("query", str(table), "--top", "2")
    cells = [line for line in out.splitlines() if "~0|" in line]
    assert code == 0
    assert len(cells) == 2
    assert "93.25" in cells[0]
    assert CELL in cells[1]  # whole, however long
    out = advnas("query", str(table), "--top", "1", "--by", "params_m")[1]
    assert CELL in out
    assert "93.25" not in out


def test_query_shows_some_of_many_others_that_are_the_same_network(advnas, made_up_table):
    arguments = [
        "query",
        str(made_up_table),
        "--arch",
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|none~1|+|avg_pool_3x3~0|none~1|none~2|",
    ]
    out = advnas(*arguments)[1]
    assert "... and 264 more; --same lists all" in out
    assert sum(line.startswith("|") for line in out.splitlines()) == 2 * lookup.SHOWN
    out = advnas(*arguments, "--same")[1]
    assert "more" not in out
    assert sum(line.startswith("|") for line in out.splitlines()) == 274 + 185


def test_query_says_which_others_are_the_same_network(advnas, table):
    out = advnas("query", str(table), "--arch", CELL)[1]
    others = [line for line in out.splitlines() if line.startswith("|")]
    assert out.count("the same") == 2
    assert CELL not in others
    assert len(others) <= 20
    every = advnas("query", str(table), "--arch", CELL, "--same")[1]
    assert set(others) <= set(every.splitlines())
    assert "more" not in every


def test_query_of_the_real_table(advnas, shared):
    code, out, _ = advnas("query", str(shared / "data" / "nasbench201.csv"), "--top", "10")
    assert code == 0
    rows = [line for line in out.splitlines() if "~0|" in line]
    accuracy = [float(row.split("│")[2]) for row in rows]
    assert len(rows) == 10
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 94.3


def test_info(advnas):
    code, out, _ = advnas("info")
    assert code == 0
    assert re.search(r"^torch +\d", out, re.M)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(advnas, tmp_path, number):
    """A real process gets a real signal in the middle of an epoch."""
    args = [*TINY[:2], "--epochs=2", "--steps-per-epoch=80", *TINY[4:]]
    command = [sys.executable, "-m", "advnas", "search", *args, "--out=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("epoch 1/2")  # the second epoch runs
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.fullmatch(
        r"advnas search: stopped after step \d+ of epoch 2; go on with: advnas search --resume run\n", err
    )
    assert len(history_of(tmp_path / "run")) == 1
    code, out, err = advnas("search", "--resume", "run")
    assert (code, err) == (0, "")
    assert "epoch 2/2" in out
    assert "epoch 1/2" not in out
    if number == signal.SIGINT:
        advnas("search", *args, "--out=whole")
        assert history_of(tmp_path / "run") == history_of(tmp_path / "whole")


def test_a_retraining_goes_on_by_the_command_that_it_prints(advnas, tmp_path):
    args = [
        "retrain",
        "--arch",
        CELL,
        "--channels=4",
        "--cells=1",
        "--epochs=2",
        "--batch-size=8",
        "--threads=1",
        "--out=run",
    ]
    command = [sys.executable, "-m", "advnas", *args]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("epoch 1/2")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    printed = re.fullmatch(r"advnas retrain: stopped after step \d+ of epoch 2; go on with: (.*)\n", err)[1]
    code, out, err = advnas(*shlex.split(printed)[1:])
    assert (code, err) == (0, "")
    assert "epoch 2/2" in out
    assert "epoch 1/2" not in out
    advnas(*args[:-1], "--out=whole")
    run, whole = (json.loads((tmp_path / folder / "retrain.json").read_text()) for folder in ("run", "whole"))
    assert run["test_accuracy"] == whole["test_accuracy"]


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def history_of(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read(folder / "history.csv")]


def test_ctrl_c_before_the_search_runs(advnas, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "start", interrupted)
    assert advnas("search", "--epochs=1") == (130, "", "advnas search: stopped\n")
