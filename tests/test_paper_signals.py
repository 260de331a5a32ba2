"""The experiment on the estimators' signals on several problems, small."""

import csv
from dataclasses import replace

import pytest
import torch
from benchmarks.paper import signals

from advnas.run import search as run
from advnas.tasks.language import LanguageSearchConfig
from advnas_ext import ESTIMATORS


def test_the_toy_and_a_search(tmp_path):
    settings = {
        "data": "tiny",
        "epochs": 2,
        "warmup_epochs": 1,
        "steps_per_epoch": 2,
        "units": 4,
        "batch_size": 4,
        "threads": 1,
    }
    folder = run.start(LanguageSearchConfig(**settings, arch_lr=0.5, out=tmp_path / "run"))
    names = ("advantage", "critic", "rloo")
    few = {"samples": 4, "exact_samples": 4, "estimators": names, "results": tmp_path}
    signals.go(signals.Settings(runs=(folder,), way=(0, 1), toy_steps=3, **few))
    rows = list(csv.DictReader((tmp_path / "signals.csv").open()))
    places = list(dict.fromkeys((row["problem"], row["at"]) for row in rows))
    assert places == [("toy", "step 0"), ("toy", "step 3"), ("recurrent", "epoch 1"), ("recurrent", "epoch 2")]
    for place in places:
        own = [row for row in rows if (row["problem"], row["at"]) == place]
        assert {row["estimator"] for row in own} == {"reinforce", *names}
        (reference,) = [row for row in own if row["estimator"] == "reinforce"]
        assert float(reference["seconds"]) == pytest.approx(100 * float(reference["ms"]) / 1000)
        assert len({row["seconds"] for row in own}) == 1
    uniform = [row for row in rows if row["at"] in ("step 0", "epoch 1")]
    assert float(uniform[0]["entropy"]) == pytest.approx(torch.tensor(10.0).log().item(), abs=1e-3)
    assert float(rows[-1]["entropy"]) < float(uniform[-1]["entropy"])


def test_on_the_toy_the_advantage_tells_more_than_reinforce():
    settings = signals.Settings(samples=60, exact_samples=100, estimators=("advantage", "rloo"), toy_steps=1, way=(0,))
    (place,) = signals.places(replace(settings, critic_paths=1))
    assert place[0].settings["critic"] == {"num_samples": 1}
    (place,) = signals.places(settings)
    assert place[0].settings["critic"] == {"num_samples": 4}
    rows = {row["estimator"]: row for row in signals.measured(place, settings, lambda: None)}
    assert rows["advantage"]["snr"] > 1.5 * rows["reinforce"]["snr"]
    assert set(rows) <= set(ESTIMATORS)
