"""What cells cost, and which of them are within a limit."""

import itertools
import math

import pytest
import torch

from advnas.limits import SHARES, AdditiveCosts, Limit, MeasuredCosts, additive_fit, every_cell, limits_of, sums
from advnas.report.numbers import quantity, written
from advnas.run import search as run
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.spaces.recurrent import RECURRENT
from advnas.tables import Table
from advnas.tasks.image import ImageSearchConfig, ImageTask
from advnas.tasks.language import LanguageSearchConfig, LanguageTask
from advnas_ext import PathCost

FEW = ("none", "nor_conv_1x1", "avg_pool_3x3")  # left out, so that 64 cells remain


def task_of(**settings):
    config = ImageSearchConfig(data="digits", threads=1, **settings)
    return config, ImageTask(config)


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("60M", "flops", 60e6),
        ("1.5k", "params", 1500),
        ("2K", "flops", 2000),
        ("1e6", "flops", 1e6),
        ("3G", "flops", 3e9),
        ("15ms", "latency", 0.015),
        ("20us", "latency", 2e-5),
        ("0.5s", "latency", 0.5),
        ("0.5", "latency", 0.5),
    ],
)
def test_quantities(text, kind, value):
    assert quantity(text, kind) == pytest.approx(value)
    assert quantity(written(value, kind), kind) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "nan", "inf", "60MM", "60 apples", "15ms"])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="must be a number above 0, with k, K, M, G or nothing behind it"):
        quantity(text, "flops")


def test_path_costs_are_the_tables(shared):
    """Images of 32x32 pixels: the costs that the benchmark has, dead edges included."""
    rows = Table.load(shared / "data" / "nasbench201.csv", NASBENCH201).rows
    task = task_of()[1]
    task.full_size = 32
    task.images = type("Cifar", (), {"in_channels": 3, "classes": range(10)})()
    costs = task.path_costs()
    cells = torch.stack([NASBENCH201.parse(arch) for arch in rows])
    for kind, column in (("flops", "flops_m"), ("params", "params_m")):
        table = torch.tensor([row[column] for row in rows.values()], dtype=torch.float64)
        differs = (costs[kind].of(cells) / 1e6 - table).abs() > 1.5e-5
        assert differs.sum() <= 150, kind  # the table has those of another cell there: see test_cost.py


def test_path_costs_of_less_operations():
    _, task = task_of(without=FEW)
    _, whole = task_of()
    few, every = task.path_costs()["flops"], whole.path_costs()["flops"]
    kept = torch.tensor([whole.ops.index(op) for op in task.ops])
    cell = torch.tensor([0, 1, 1, 0, 1, 1])
    assert few.of(cell) == every.of(kept[cell])
    assert few.of(cell) > few.least


def test_the_fit_of_an_additive_function_is_that_function():
    g = torch.Generator().manual_seed(0)
    cells, true = every_cell(NASBENCH201, FEW), torch.randn(6, 3, generator=g, dtype=torch.float64)
    fitted = additive_fit(cells, sums(true, cells) + 5, 3)
    torch.testing.assert_close(fitted.of(cells), sums(true, cells) + 5)
    some = cells[torch.randperm(len(cells), generator=g)[:60]]
    torch.testing.assert_close(additive_fit(some, sums(true, some), 3).of(cells), sums(true, cells))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_measured_and_additive_costs_agree_on_the_best(share, count):
    g = torch.Generator().manual_seed(0)
    cells = every_cell(NASBENCH201, FEW)
    path = PathCost(torch.rand(6, 3, generator=g, dtype=torch.float64), 1.0)
    scores = torch.randn(6, 3, generator=g, dtype=torch.float64)
    value = (path.of(cells).min() + share * (path.of(cells).max() - path.of(cells).min())).item()
    found = [
        Limit(costs, "flops", value * (1 + 1e-12))
        for costs in (AdditiveCosts(path), MeasuredCosts(cells, path.of(cells), 3))
    ]
    additive, measured = (limit.best(scores, count) for limit in found)
    assert torch.equal(sums(scores, additive), sums(scores, measured))
    assert all(limit.allows(additive).all() for limit in found)
    assert found[0].allows(cells).tolist() == found[1].allows(cells).tolist()


def write(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_latencies_of_operations(tmp_path):
    rows = [("", "", 0.01), ("", "skip_connect", 0), ("", "nor_conv_3x3", 0.002), ("3<-0", "nor_conv_3x3", 0.004)]
    file = write(tmp_path / "ops.csv", "edge,op,latency_s", rows)
    config, task = task_of(without=FEW, latencies=file, max_latency=("15ms",))
    (limit,) = limits_of(config, task)
    assert (limit.kind, str(limit), limit.least) == ("latency", "15ms", 0.01)
    assert limit.costs.of(torch.tensor([1, 1, 0, 1, 0, 0])).item() == pytest.approx(0.01 + 0.002 * 2 + 0.004)


def test_latencies_of_whole_cells(tmp_path):
    config, task = task_of(without=FEW)
    cells = every_cell(NASBENCH201, task.ops)
    seconds = torch.rand(len(cells), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    rows = [(task.arch(ops), value) for ops, value in zip(cells, seconds.tolist(), strict=True)]
    file = write(tmp_path / "cells.csv", "arch_str,latency_s", rows)
    config, task = task_of(without=FEW, latencies=file, max_latency=("1500ms", "2s"))
    first, last = limits_of(config, task)
    assert (first.value, last.value) == (1.5, 2)
    torch.testing.assert_close(first.costs.of(cells), seconds)
    assert first.allows(cells).tolist() == (seconds <= 1.5).tolist()
    assert last.allows(cells).all()
    assert first.allows(first.best(torch.randn(6, 2), 64)).all()
    missing = write(tmp_path / "missing.csv", "arch_str,latency_s", rows[1:])
    config, task = task_of(without=FEW, latencies=missing, max_latency=("1500ms",))
    with pytest.raises(ValueError, match="must have a latency of every cell, got none of"):
        limits_of(config, task)


def test_the_tables_latencies(shared):
    config, task = task_of(latencies=shared / "data" / "nasbench201.csv", max_latency=("15ms",))
    (limit,) = limits_of(config, task)
    rows = Table.load(config.latencies, NASBENCH201).rows
    arch = next(iter(rows))
    assert limit.costs.of(task.places(arch)).item() == rows[arch]["latency_s"]
    assert limit.allows(limit.costs.cells).sum() == sum(row["latency_s"] <= 0.015 for row in rows.values())


def test_a_front_without_limits_spreads_them_over_the_cells():
    config, task = task_of(front=True)
    limits = limits_of(config, task)
    cells = every_cell(NASBENCH201, task.ops)
    shares = [limit.allows(cells).double().mean().item() for limit in limits]
    assert [limit.kind for limit in limits] == ["flops"] * len(limits)
    assert shares == sorted(shares)
    # Many cells cost the same, and all of them are within a limit or none.
    assert all(share > wanted - 0.03 for share, wanted in zip(shares, SHARES, strict=True))
    assert shares[0] < 0.5
    config, task = task_of(front=True, max_params=("150k",))
    limits = limits_of(config, task)
    assert limits[-1].value == 150e3
    assert all(a.value < b.value for a, b in itertools.pairwise(limits))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_flops": ("1M",), "max_params": ("1M",)}, "max_params: there is max_flops already"),
        ({"max_flops": ("1k",)}, r"max_flops: must be at least that of the cheapest cell, 468\.7k, got 1k"),
        ({"max_latency": ("1ms",)}, "max_latency: needs latencies"),
        ({"latencies": "none.csv"}, "latencies"),
    ],
)
def test_what_makes_no_limit(settings, message):
    with pytest.raises(ValueError, match=message):
        limits_of(*task_of(**settings))


@pytest.mark.parametrize(
    "header, row, message",
    [
        (
            "edge,op,seconds",
            ("", "skip_connect", 1),
            "must have the columns edge, op, latency_s or arch_str, latency_s",
        ),
        ("edge,op", ("", "skip_connect", "longer than its header"), "got edge, op, None"),
        ("edge,op,latency_s", ("", "skip_connect", "slow"), "latency_s must be seconds >= 0, got 'slow'"),
        ("edge,op,latency_s", ("", "skip_connect", -1), "latency_s must be seconds >= 0, got '-1'"),
        ("edge,op,latency_s", ("", "skip_connect", math.nan), "latency_s must be seconds >= 0, got 'nan'"),
        ("edge,op,latency_s", ("", "skip_connect", 1), "must have a latency of nor_conv_3x3 for the edge 1<-0"),
    ],
)
def test_files_that_are_no_latencies(tmp_path, header, row, message):
    file = write(tmp_path / "latencies.csv", header, [row])
    with pytest.raises(ValueError, match=message):
        limits_of(*task_of(without=FEW, latencies=file, max_latency=("2s",)))


def test_unknown_names_in_a_file_of_latencies(tmp_path):
    rows = [("", "skip_connect", 1), ("", "nor_conv_3x3", 1), ("4<-0", "skip_connect", 1)]
    file = write(tmp_path / "latencies.csv", "edge,op,latency_s", rows)
    with pytest.raises(ValueError, match="must name edges and operations of the space nasbench201, got"):
        limits_of(*task_of(without=FEW, latencies=file, max_latency=("20s",)))


def test_a_task_without_costs_says_so():
    config = LanguageSearchConfig(data="tiny", max_flops=("1M",), threads=1)
    with pytest.raises(ValueError, match="the task language has no such costs"):
        limits_of(config, LanguageTask(config))


def test_a_task_without_measures_of_untrained_networks_has_one_limit(tmp_path):
    rows = [("", "", 0.001), *(("", op, 0.001 * place) for place, op in enumerate(RECURRENT.ops))]
    given = {"data": "tiny", "latencies": write(tmp_path / "l.csv", "edge,op,latency_s", rows), "threads": 1}
    one, two = (LanguageSearchConfig(**given, max_latency=limits) for limits in (("15ms",), ("8ms", "15ms")))
    assert len(limits_of(one, LanguageTask(one))) == 1
    with pytest.raises(ValueError, match="the task language has no measures of untrained networks; give one limit"):
        limits_of(two, LanguageTask(two))


def test_the_least_limit_that_is_shown_is_enough():
    config, task = task_of(max_flops=("1k",))
    with pytest.raises(ValueError, match="cheapest cell") as error:
        limits_of(config, task)
    shown = str(error.value).split("cheapest cell, ")[1].split(",")[0]
    assert len(limits_of(*task_of(max_flops=(shown,)))) == 1


def test_files_of_latencies_that_spreadsheets_write(tmp_path):
    rows = [("", "skip_connect", 1), ("", "nor_conv_3x3", 2)]
    file = write(tmp_path / "ops.csv", "edge,op,latency_s", rows)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    (limit,) = limits_of(*task_of(without=FEW, latencies=file, max_latency=("20s",)))
    assert limit.least == 6


@pytest.mark.parametrize("header", ["edge,op,latency_s", "arch_str,latency_s"])
def test_two_latencies_of_one_thing_are_refused(tmp_path, header):
    row = ("", "skip_connect", 1) if "edge" in header else ("|skip_connect~0|", 1)
    file = write(tmp_path / "twice.csv", header, [row, row])
    with pytest.raises(ValueError, match=r"twice\.csv: has two latencies of .*skip_connect"):
        limits_of(*task_of(without=FEW, latencies=file, max_latency=("20s",)))


def test_a_latency_of_each_of_too_many_cells_is_refused(tmp_path):
    file = write(tmp_path / "cells.csv", "arch_str,latency_s", [("|tanh~0|", 1)])
    config = LanguageSearchConfig(space="darts_recurrent", data="tiny", threads=1, latencies=file, max_latency=("1s",))
    with pytest.raises(ValueError, match=r"the search can find 1\.46e\+25 cells, too many for a latency of each"):
        limits_of(config, LanguageTask(config))


def test_a_search_does_not_go_on_with_other_latencies(tmp_path):
    rows = [("", "skip_connect", 1), ("", "nor_conv_3x3", 2)]
    file = write(tmp_path / "ops.csv", "edge,op,latency_s", rows)
    tiny = {"channels": 2, "cells": 1, "epochs": 1, "steps_per_epoch": 1, "valid_batches": 1, "image_size": 4}
    config, _ = task_of(without=FEW, latencies=file, max_latency=("8s",), out=tmp_path / "run", **tiny)
    folder = run.start(config)
    run.resume(folder)
    write(file, "edge,op,latency_s", [*rows[:1], ("", "nor_conv_3x3", 3)])
    with pytest.raises(ValueError, match=r"other settings .*latencies"):
        run.resume(folder)
