"""Measurements at the weights of a search: their formulas on made-up gradients, and whole on a tiny supernet."""

import copy
import csv
import io
import itertools
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from advnas import analysis, cli
from advnas.analysis import rank, signal
from advnas.report import console
from advnas.run import search as run
from advnas.run.folder import RunFolder
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tables import Table
from advnas.tasks.image import ImageSearchConfig
from advnas_ext import ESTIMATORS

TINY = {
    "channels": 4,
    "cells": 1,
    "epochs": 1,
    "steps_per_epoch": 2,
    "batch_size": 16,
    "valid_batches": 1,
    "threads": 1,
    "without": ("none",),
}
OPS = NASBENCH201.ops
EDGES = ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run folder of a search without ``none``."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "curves", lambda *args: b"")
        return run.start(ImageSearchConfig(**TINY, out=tmp_path_factory.mktemp("lab") / "run"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Every cell of the space; the accuracy counts the 3x3 convolutions first."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    cells = torch.cartesian_prod(*[torch.arange(len(OPS))] * 6)
    accuracies = 10 * (cells == OPS.index("nor_conv_3x3")).sum(1) + torch.arange(len(cells)) / len(cells)
    rows = [f"{i},{NASBENCH201.format(ops)},{accuracies[i]:.6f},{i}" for i, ops in enumerate(cells)]
    path.write_text("\n".join(["index,arch_str,cifar10_test_200,params_m", *rows]) + "\n")
    return path


@pytest.fixture
def lab(advnas, monkeypatch):
    """As ``advnas``, of its measurements, by the command's older name."""
    monkeypatch.setenv("COLUMNS", "80")
    return partial(advnas, "lab")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Formulas


def samples_of(mean, noise, count, seed):
    """``count`` gradients of a known mean, and normal noise of a known size in every entry."""
    generator = torch.Generator().manual_seed(seed)
    return mean + noise * torch.randn(count, *mean.shape, generator=generator, dtype=torch.float64)


def two_gradients(cosine):
    """[2, 3] each, of lengths 2 and 3, with that cosine."""
    one, other = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    one[0, 0] = 2
    other[0, 0], other[1, 2] = 3 * cosine, 3 * math.sqrt(1 - cosine**2)
    return one, other


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.8])
def test_correlation_and_snr_of_known_means_and_noise(cosine):
    mean, exact = two_gradients(cosine)
    found = signal.compare("made-up", samples_of(mean, 2, 4000, 0), samples_of(exact, 3, 4000, 1), 0.25)
    # Noise of 2 in 4000 samples leaves 0.03 of a length of 2, and 3 as much of a length of 3.
    assert found.correlation == pytest.approx(cosine, abs=3 * math.hypot(0.016, 0.016))
    assert found.snr == pytest.approx(2 / math.sqrt(6 * 4), rel=0.05)
    assert found.low < found.correlation < found.high
    assert 0.02 < found.high - found.low < 0.12
    assert found.cost == 0.25


def correlation_of(samples, exact):
    return signal._correlation(signal._halves(samples).flatten(1), signal._halves(exact).flatten(1)).item()


def test_noise_does_not_lower_the_correlation():
    """A cosine of the means as they are would be 0.8 / (1 + 6 * 16 / 400 / 4) here, or 0.755."""
    mean, exact = two_gradients(0.8)
    found = [correlation_of(samples_of(mean, 4, 400, s), samples_of(exact, 6, 400, s + 1000)) for s in range(400)]
    assert sum(found) / 400 == pytest.approx(0.8, abs=0.02)


def test_the_interval_covers_as_often_as_it_says():
    mean, exact = two_gradients(0.6)
    covered = 0
    for seed in range(200):
        found = signal.compare("", samples_of(mean, 2, 200, seed), samples_of(exact, 3, 200, seed + 1000), 1.0)
        covered += found.low <= 0.6 <= found.high
    assert 180 <= covered <= 199  # of 200 with a chance of 0.95 each; others have a chance of 0.2%


def test_the_correlation_after_a_second_is_that_of_what_a_second_allows():
    mean, exact = two_gradients(0.9)
    covered = 0
    for seed in range(200):
        found = signal.compare("", samples_of(mean, 4, 200, seed), samples_of(exact, 3, 200, seed + 1000), 0.05)
        if found.correlation < 1:  # noise can make it more, and then it is cut off
            assert found.after == pytest.approx(found.reached_after(signal.AFTER))
        # 20 samples: |mean|^2 is 4, their noise 16 * 6 / 20.
        covered += found.after_low <= 0.9 / math.sqrt(1 + 16 * 6 / 20 / 4) <= found.after_high
    assert 180 <= covered <= 199  # of 200 with a chance of 0.95 each


def on_common_batches(cosine, seed, batches=100, paths=4):
    """Samples of which each batch has several, and exact ones whose noise is that of the same batches."""
    mean, exact = two_gradients(cosine)
    common = samples_of(torch.zeros_like(mean), 3, batches * paths, seed).unflatten(0, (batches, paths))
    own = samples_of(torch.zeros_like(mean), 1, batches, seed + 1000)  # of the batch
    return mean + common + own[:, None], exact + common.mean(1) + own


def test_noise_in_common_is_no_correlation():
    """The means as they are would correlate by 0.5 + noise: (3 + 6 (9 / 400 + 1 / 100)) / 6 or so."""
    found, covered = [], 0
    for seed in range(200):
        result = signal.compare_on_batches("", *on_common_batches(0.5, seed), 0.05)
        found.append(result.correlation)
        covered += result.low <= 0.5 <= result.high
    assert sum(found) / 200 == pytest.approx(0.5, abs=0.01)
    assert 180 <= covered <= 199  # of 200 with a chance of 0.95 each
    samples, exact = on_common_batches(0.5, 0)
    shuffled = signal.compare_on_batches("", samples[:, torch.tensor([2, 0, 3, 1])], exact, 0.05)
    assert shuffled.snr == pytest.approx(signal.compare_on_batches("", samples, exact, 0.05).snr)
    assert shuffled.snr == pytest.approx(2 / math.sqrt(6 * 10), rel=0.25)


def test_correlation_by_edge():
    mean = torch.tensor([[1.0, -1.0], [2.0, -2.0]], dtype=torch.float64)
    exact = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    found = signal.compare("", samples_of(mean, 0.1, 100, 0), samples_of(exact, 0.1, 100, 1), 1.0)
    assert found.by_edge == pytest.approx((1, -1), abs=0.01)
    assert found.correlation == pytest.approx(-2 / math.sqrt(10 * 4), abs=0.01)


def made(correlation=0.9, snr=0.5, cost=2.0, name="made-up"):
    return signal.Signal(name, correlation, 0.8, 1.0, (0.9, math.nan), snr, (0.4, 0.0), cost, 0.7, 0.6, 0.75)


def test_the_time_to_a_correlation_is_that_of_averaged_samples():
    """The means of so many samples do correlate that much, up to a sample more or less."""
    mean, exact = two_gradients(0.9)
    snr = 2 / math.sqrt(6 * 16)
    count = round(made(0.9, snr, cost=1.0).time_to(0.7))
    assert count == math.ceil(1 / (snr**2 * ((0.9 / 0.7) ** 2 - 1)))
    averages = torch.stack([samples_of(mean, 4, count, seed).mean(0) for seed in range(2000)])
    norm = averages.square().sum((1, 2)).mean().sqrt()
    assert ((averages * exact).sum((1, 2)).mean() / (norm * 3)).item() == pytest.approx(0.7, abs=0.02)
    assert made(0.9, snr, cost=1.0).reached_after(count) == pytest.approx(0.7, abs=0.01)


def test_times_by_hand():
    # 1 / (0.25 (3.24 - 1)) = 1.8 samples
    assert made().time_to(0.5) == 4.0
    assert made(snr=100.0).time_to(0.5) == 2.0  # a sample at least
    assert made(snr=math.inf).time_to(0.5) == 2.0
    assert made(correlation=0.5).time_to(0.5) == math.inf
    assert made(correlation=-0.9).time_to(0.5) == math.inf
    assert made(correlation=math.nan).time_to(0.5) == math.inf
    assert made(snr=0.0).time_to(0.5) == math.inf
    assert made(snr=0.0).reached_after(1.0) == 0
    assert made(snr=math.inf).reached_after(1.0) == 0.9


def test_where_noise_hides_the_signal():
    """Opposite halves: their product is negative, and no length is known."""
    flips = torch.tensor([1.0, -1.0]).repeat(10)[:, None, None] * torch.ones(20, 2, 3)
    exact = samples_of(torch.ones(2, 3), 0.1, 20, 0)
    for one, other in ((flips, exact), (exact, flips), (flips, flips)):
        found = signal.compare("", one.double(), other, 1.0)
        assert math.isnan(found.correlation)
        assert (found.low, found.high) == (-1, 1)
        assert all(math.isnan(value) for value in found.by_edge)
        assert found.time_to(0.5) == math.inf
    assert signal.compare("", flips.double(), exact, 1.0).snr == 0
    (row,) = signal.rows([signal.compare("", flips.double(), exact, 1.0)])
    assert row[1:5] == ["noise (-1.00 to 1.00)", "noise noise", "0.000", "0.00 0.00"]
    assert row[7:] == ["never", "never"]


def test_samples_without_noise():
    mean = torch.ones(8, 2, 3, dtype=torch.float64)
    found = signal.compare("", mean, mean, 1.0)
    assert (found.correlation, found.low, found.high, found.snr) == pytest.approx((1, 1, 1, math.inf))
    assert signal.compare("", 0 * mean, mean, 1.0).snr == 0


@pytest.mark.parametrize("count", [4, 5])
def test_few_samples(count):
    found = signal.compare(
        "", samples_of(torch.ones(2, 3), 0.1, count, 0), samples_of(torch.ones(2, 3), 0.1, count, 1), 1.0
    )
    assert found.low <= found.correlation <= found.high
    assert math.isfinite(found.snr)


def test_resampled_means_vary_as_means_do():
    """And the halves stay apart: one sample in both would put its noise into their product."""
    samples = samples_of(torch.ones(2, 3), 2, 101, 0)
    resampled = signal._resampled(samples, torch.Generator().manual_seed(0))
    assert resampled.shape == (2, signal.RESAMPLES, 2, 3)
    torch.testing.assert_close(resampled.mean(1), signal._halves(samples), rtol=0, atol=0.05)
    expected = torch.stack([samples[0::2].std(0, correction=0) / 51**0.5, samples[1::2].std(0, correction=0) / 50**0.5])
    torch.testing.assert_close(resampled.std(1), expected, rtol=0.1, atol=0)
    apart = samples_of(torch.zeros(2, 3), 0, 10, 0)
    apart[1::2] = 1
    assert signal._resampled(apart, torch.Generator())[0].eq(0).all()


def test_rows_of_signals():
    named = [made(name="one"), made(0.55, name="two")]
    assert signal.rows(named)[0] == [
        "one",
        "0.90 (0.80 to 1.00)",
        " 0.90 noise",
        "0.500",
        "0.40 0.00",
        "2000.0",
        "0.70 (0.60 to 0.75)",
        "4 s",
        "14 s",
    ]
    assert signal.rows(named)[1][-2:] == ["40 s", "never"]
    (record,) = signal.records(named[:1], ["1<-0", "2<-0"])
    assert record["seconds_to_0.7"] == 14.0
    assert record["correlation_1<-0"] == 0.9
    assert record["snr_1<-0"] == 0.4


def test_spearman_by_hand():
    ranked = rank.Ranked("all", list("abcde"), torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([90.0, 80, 85, 70, 60]))
    rho, low, high = ranked.spearman  # differences of the ranks 0, 1, 1, 0, 0: 1 - 6 * 2 / (5 * 24)
    assert rho == pytest.approx(0.9)
    assert -1 <= low < rho < high <= 1
    assert ranked.chosen == ranked.mean == 77


def test_the_chosen_cells_are_those_of_the_smallest_losses():
    losses = torch.arange(30.0)
    ranked = rank.Ranked("all", [""] * 30, losses.flip(0), losses)
    assert ranked.chosen == sum(range(20, 30)) / 10
    assert ranked.spearman[0] == pytest.approx(1)


def test_cells_that_are_all_equal_have_no_rank():
    ranked = rank.Ranked("all", [""] * 5, torch.ones(5), torch.arange(5.0))
    assert all(math.isnan(value) for value in ranked.spearman)


# On a supernet


def test_the_search_of_a_folder_or_of_its_checkpoint(folder, tmp_path, monkeypatch):
    for path in (folder, RunFolder(folder).checkpoint("search")):
        found, searched = analysis.searched(path)
        assert found.path == folder
        assert searched.state.epoch == 1
    monkeypatch.chdir(folder / "checkpoint")
    assert analysis.searched(Path("search.pt"))[0].path == folder
    analysis.searched(folder, threads=2)
    assert torch.get_num_threads() == 2


def everything(state):
    return copy.deepcopy([*state.network.parameters(), state.estimator.logits])


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("names", [(), ("critic", "advantage")])
def test_measuring_gradients(folder, uniform, names):
    _, searched = analysis.searched(folder)
    state = searched.state
    state.estimator.logits.data[:, 2] += 4  # mostly conv 3x3
    before, rounds = everything(state), []
    seen = []
    state.network.register_forward_pre_hook(lambda module, args: seen.append(args[1].ops[:, 0]))
    logits = torch.zeros(6, 4) if uniform else state.estimator.logits.detach()
    exact, signals = signal.measure(signal.Problem.of(searched), logits, 4, 5, names, lambda: rounds.append(1))
    assert len(rounds) == signal.rounds(4, 5) == 10
    assert {found.name for found in signals} == set(names or set(ESTIMATORS) - {"random"})
    assert exact.samples.shape == (5, 6, 4)
    assert abs(exact.reliability) <= 1 + 1e-9
    assert all(found.cost > 0 for found in signals)
    assert all(len(found.by_edge) == len(found.snr_by_edge) == 6 for found in signals)
    assert all(torch.equal(old, new) for old, new in zip(before, everything(state), strict=True))
    assert all(p.grad is None for p in state.network.parameters())
    assert state.estimator.logits.grad is None
    share = torch.cat(seen[: 5 * signal.PATHS]).eq(2).float().mean()
    assert (share < 0.4) if uniform else (share > 0.8)


def test_measured_gradients_are_those_of_the_estimator(folder):
    """What is measured of the exact gradient has the exact gradient for its mean: here, of a network with a loss that is known."""
    _, searched = analysis.searched(folder)
    state = searched.state
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def known(x, path):
        """Class scores that make a cross entropy of the sum of the values of the picked operations."""
        total = (values * torch.zeros(6, 4).scatter(1, path.ops, path.gates)).sum()
        scores = torch.zeros(len(x), 10)
        scores[:, 0] = -total.clamp(-30, 30)
        return scores

    logits = torch.zeros(6, 4)
    truth = signal._at(logits, signal.RlooEstimator(6, 4, num_samples=signal.PATHS, stratified=False))
    state.network = known
    state.path_generator = torch.Generator().manual_seed(1)
    state.arch_batches = itertools.repeat((torch.zeros(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64)))
    drawn = [signal._sample(signal.Problem.of(searched), truth) for _ in range(600)]
    ops = torch.cartesian_prod(*[torch.arange(4)] * 6)
    totals = values[torch.arange(6), ops].sum(1)
    losses = -torch.cat([-totals[:, None], torch.zeros(len(ops), 9)], 1).log_softmax(1)[:, 0]
    expected = torch.stack(
        [torch.stack([losses[ops[:, e] == k].mean() - losses.mean() for k in range(4)]) / 4 for e in range(6)]
    )
    mean, error = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / math.sqrt(600)
    assert ((mean - expected).abs() < 4 * error).all()
    assert error.max() < 0.2 * expected.abs().max()


def test_gradients_have_rows_of_mean_0(folder):
    """Those of NASP have a constant in each row, which changes no probability."""
    _, searched = analysis.searched(folder)
    for name in ("nasp", "advantage"):
        gradient = signal._sample(signal.Problem.of(searched), signal._halfway(signal.Problem.of(searched), name))
        assert gradient.abs().max() > 1e-6
        assert gradient.sum(1).abs().max() < 1e-6 * gradient.abs().max()


def test_estimators_are_measured_halfway_and_that_of_the_search_with_its_settings(folder):
    _, searched = analysis.searched(folder)
    assert signal._halfway(signal.Problem.of(searched), "gdas").temperature == pytest.approx(5.05, rel=0.01)
    assert signal._halfway(signal.Problem.of(searched), "advantage").coefficient == 0.05
    object.__setattr__(searched.config, "estimator_settings", {"coefficient": 0.5})
    assert signal._halfway(signal.Problem.of(searched), "advantage").coefficient == 0.5
    signal._halfway(signal.Problem.of(searched), "reinforce")


def test_lab_signal(lab, folder):
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = lab("signal", folder, "--samples=4", "--exact-samples=4")
    assert (code, err) == (0, "")
    rows = read(folder / "signal.csv")
    assert list(rows[0]) == [
        "estimator",
        "correlation",
        "correlation_low",
        "correlation_high",
        *(f"correlation_{edge}" for edge in EDGES),
        "snr",
        *(f"snr_{edge}" for edge in EDGES),
        "milliseconds",
        "correlation_after_1_s",
        "correlation_after_1_s_low",
        "correlation_after_1_s_high",
        "seconds_to_0.5",
        "seconds_to_0.7",
    ]
    assert {row["estimator"] for row in rows} == set(ESTIMATORS) - {"random"}
    times = [float(row["seconds_to_0.5"]) for row in rows]
    assert times == sorted(times)
    assert (folder / "signal.svg").read_text().count("<svg") == 1
    lines = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert lines == [row["estimator"] for row in rows]
    assert re.search(r"^reliability +-?\d\.\d{3}, ", out, re.M)
    assert re.search(r"^threads +1$", out, re.M)
    assert all(path.read_bytes() == content for path, content in files.items())  # the search can go on


def test_lab_signal_of_some_estimators_after_an_epoch(lab, folder):
    flags = "--samples=4", "--exact-samples=4", "--estimators", "critic", "rloo"
    code, out, _ = lab("signal", folder, "--epoch=1", *flags)
    assert code == 0
    assert "gradients at the logits after epoch 1" in out
    assert {row["estimator"] for row in read(folder / "signal.csv")} == {"critic", "rloo"}
    code, _, err = lab("signal", folder, "--epoch=7", *flags)
    assert (code, err) == (2, "advnas lab: epoch: must be 0 to 1, epochs of the search, got 7\n")
    code, _, err = lab("signal", folder, "--estimators", "random")
    assert code == 2
    assert "estimators: must be among advantage, reinforce," in err


def test_signal_to_noise_of_each_edge():
    mean = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    samples = samples_of(mean, 2.0, 40000, 0)
    found = signal.compare("", samples, samples_of(mean, 2.0, 40000, 1), 1.0)
    assert found.snr_by_edge == pytest.approx((0.5, 0.0), abs=0.03)
    assert found.snr == pytest.approx(0.5 / math.sqrt(2), abs=0.03)


def test_lab_rank(lab, folder, table, monkeypatch):
    """With a loss that is known: the accuracy itself, upside down."""
    accuracies = {arch: row["cifar10_test_200"] for arch, row in Table.load(table, NASBENCH201).rows.items()}
    measured = []

    def evaluate(task, state, ops, batches):
        measured.append((state.arch(ops), batches))
        return {"loss": -accuracies[state.arch(ops)]}

    monkeypatch.setattr(rank, "evaluate", evaluate)
    code, out, err = lab("rank", RunFolder(folder).checkpoint("search"), "--table", table, "--cells=40", "--batches=3")
    assert (code, err) == (0, "")
    rows = read(folder / "rank.csv")
    assert list(rows[0]) == ["population", "arch", "loss", "cifar10_test_200"]
    assert [row["population"] for row in rows] == ["all"] * 40 + ["best 5%"] * 40
    assert [(row["arch"], 3) for row in rows] == measured
    assert all(float(row["cifar10_test_200"]) == accuracies[row["arch"]] for row in rows)
    assert not any("none" in row["arch"] for row in rows)  # the search could not find those
    assert len({row["arch"] for row in rows[:40]}) == len({row["arch"] for row in rows[40:]}) == 40
    best = sorted((a for arch, a in accuracies.items() if "none" not in arch), reverse=True)[: math.ceil(0.05 * 4**6)]
    assert all(float(row["cifar10_test_200"]) >= best[-1] for row in rows[40:])
    assert any(float(row["cifar10_test_200"]) < best[-1] for row in rows[:40])
    for part, name in ((rows[:40], "all"), (rows[40:], "best 5%")):
        values = sorted((float(row["cifar10_test_200"]) for row in part), reverse=True)
        cells = [cell.strip() for line in out.splitlines() if name in line for cell in line.split("│")[1:-1]]
        means = [f"{sum(values[:10]) / 10:.2f}", f"{sum(values) / 40:.2f}"]
        assert cells == [name, "40", "1.00 (1.00 to 1.00)", *means]
    assert (folder / "rank.svg").read_text().count("<svg") == 1


def test_ranking_measures_the_cells_that_it_names(folder, table):
    _, searched = analysis.searched(folder)
    state = searched.state
    before, rounds = everything(state), []
    results = rank.measure(searched, Table.load(table, NASBENCH201), "params_m", 5, 1, lambda: rounds.append(1))
    assert len(rounds) == 10
    for ranked in results:
        for arch, loss in zip(ranked.archs, ranked.losses.tolist(), strict=True):
            ops = torch.tensor([state.ops.index(OPS[op]) for op in state.space.parse(arch)])
            assert rank.evaluate(searched.task, state, ops, 1)["loss"] == loss
    assert all(torch.equal(old, new) for old, new in zip(before, everything(state), strict=True))


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "choose a measurement: advnas analysis signal or advnas analysis rank\n"),
        (["fly"], "choose a measurement: advnas analysis signal or advnas analysis rank, got 'fly'\n"),
        (["signal"], "CHECKPOINT"),
        (["signal", "nothing"], "nothing: not the folder of a search"),
        (
            ["signal", "FOLDER/config.yaml"],
            "config.yaml: must be the run folder of a search or the checkpoint/search.pt",
        ),
        (["signal", "FOLDER", "--samples=3"], "lab: samples: Input should be greater than or equal to 4, got 3"),
        (["signal", "FOLDER", "--exact-samples=3"], "exact_samples: Input should be greater than or equal to 4, got 3"),
        (["signal", "FOLDER", "--threads=0"], "threads: Input should be greater than or equal to 1, got 0"),
        (["signal", "FOLDER", "--sample=9"], "perhaps you meant --samples"),
        (["rank", "FOLDER"], "--table"),
        (["rank", "FOLDER", "--table=none.csv"], "none.csv: no such table"),
        (["rank", "FOLDER", "--table=SHORT"], "short.csv: must hold at least 80 cells of the search, got 3"),
        (["rank", "FOLDER", "--table=TABLE", "--column=speed"], "has no column 'speed'; choose among cifar10_test_200"),
        (["rank", "FOLDER", "--table=TABLE", "--cells=1"], "cells: Input should be greater than or equal to 4, got 1"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(lab, folder, table, tmp_path, args, message):
    short = tmp_path / "short.csv"
    short.write_text("".join(line for line in table.read_text().splitlines(keepends=True)[:1]))
    with short.open("a") as file:
        file.writelines(f"{op},{NASBENCH201.format(torch.full((6,), op))},90,1\n" for op in (1, 2, 3))
    files = set(folder.rglob("*"))
    names = {"FOLDER": folder, "TABLE": table, "SHORT": short}
    for name, path in names.items():
        args = [arg.replace(name, str(path)) for arg in args]
    code, out, err = lab(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("advnas lab: ")
    assert err.count("\n") == 1
    assert set(folder.rglob("*")) == files


@pytest.mark.parametrize("name", cli.MEASUREMENTS)
def test_help(lab, name):
    code, out, err = lab(name, "--help")
    assert (code, err) == (0, "")
    assert f"usage: advnas analysis {name}" in out
    code, out, err = lab("--help")
    assert (code, err) == (0, "")
    assert f"advnas analysis {name} " in out


@pytest.mark.parametrize("name, function", [("signal", signal), ("rank", rank)])
def test_ctrl_c_just_stops(lab, folder, table, monkeypatch, name, function):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, "estimate" if name == "signal" else "evaluate", interrupted)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    more = [] if name == "signal" else ["--table", table]
    assert lab(name, folder, *more) == (130, "", "advnas lab: stopped\n")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("terminal", [False, True])
def test_rounds_are_shown_on_a_terminal(terminal):
    out = io.StringIO()
    with console.Rounds("measuring", 4, Console(file=out, width=100, force_terminal=terminal)) as rounds:
        for _ in range(3):
            rounds.advance()
    out = out.getvalue()
    assert ("measuring" in out) == ("75%" in out) == ("left" in out) == terminal
    assert terminal or out == ""
