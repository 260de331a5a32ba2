import csv
import json
import statistics
import subprocess

import pytest
from benchmarks.paper.jobs import Job
from scipy import stats


@pytest.fixture(scope="module")
def paper_nb201():
    from benchmarks.paper import nb201 as paper_nb201

    return paper_nb201


def test_a_small_experiment_from_end_to_end(paper_nb201, made_up_table, tmp_path, monkeypatch, capsys, jobs_here):
    settings = paper_nb201.Settings(
        table=made_up_table,
        data="digits",
        seeds=(1, 2),
        tuning_seeds=(7,),
        arch_lrs=(0.01, 0.1),
        estimators=("advantage", "rloo", "random"),
        workers=1,
        out=tmp_path / "runs",
        results=tmp_path / "results",
        set={"epochs": "3", "warmup_epochs": "1", "channels": "2", "steps_per_epoch": "3", "valid_batches": "1"},
    )
    paper_nb201.main(settings)
    rows = list(csv.DictReader((tmp_path / "results" / "paper-nb201.csv").open()))
    epochs = json.loads((tmp_path / "runs" / "epochs.json").read_text())["epochs"]
    assert epochs["rloo"] == 3, "the recipe's own estimator sets the time"
    assert len(rows) == 2 * sum(epochs[name] for name in settings.estimators)
    for seed in ("1", "2"):
        warm_ups = {
            row["valid_loss"]
            for row in rows
            if (row["seed"], row["epoch"]) == (seed, "1") and row["estimator"] != "random"
        }
        assert len(warm_ups) == 1, "estimators of a seed share its warm-up"
    for name in ("advantage", "rloo"):
        (chosen,) = {float(row["arch_lr"]) for row in rows if row["estimator"] == name}
        losses = {}
        for lr in settings.arch_lrs:
            tuned = tmp_path / "runs" / "seed-7" / f"{name}-{lr:g}" / "history.csv"
            losses[lr] = float(list(csv.DictReader(tuned.open()))[-1]["valid_loss"])
        assert chosen == min(losses, key=losses.get)
    written = capsys.readouterr().out
    assert all(f"| {name} |" in written for name in settings.estimators)
    assert "<svg" in (tmp_path / "results" / "paper-nb201.svg").read_text()

    monkeypatch.setattr(Job, "start", lambda job: pytest.fail("a run that is done must not be run again"))
    paper_nb201.main(settings)
    assert list(csv.DictReader((tmp_path / "results" / "paper-nb201.csv").open())) == rows


def test_intervals_and_paired_tests(paper_nb201):
    values, others = [93.1, 93.9, 93.4], [92.8, 93.0, 93.5]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / 3**0.5
    assert paper_nb201.mean_interval(values) == f"93.47 +- {half:.2f}"
    assert paper_nb201.paired(values, others) == f"+0.37, p = {stats.ttest_rel(values, others).pvalue:.3f}"
    assert paper_nb201.paired(values, values) == "+0.00"
    assert paper_nb201.mean_interval([93.1]) == "93.10"


def test_a_failed_run_says_where_its_log_is(paper_nb201, made_up_table, tmp_path):
    settings = paper_nb201.Settings(
        table=made_up_table,
        data="digits",
        seeds=(1,),
        tuning_seeds=(),
        out=tmp_path / "runs",
        set={"lr": "1e30", "epochs": "2"},
    )
    with pytest.raises(subprocess.CalledProcessError):
        paper_nb201.main(settings)
    assert "must be finite" in (tmp_path / "runs" / "seed-1" / "warm-up.log").read_text()
