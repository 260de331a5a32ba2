"""NAS-Bench-201 and NATS-Bench from one Parquet file, call by call beside their own packages."""

import math
import random
import warnings
from types import SimpleNamespace

import numpy as np
import official
import pytest
from rich.console import Console

from advnas.tables import NasBench201, NatsSize, NatsTopology, Table, open_benchmark
from advnas.tables.convert import convert
from advnas.tables.trials import DATASETS

nas_201_api = pytest.importorskip("nas_201_api")
nats_bench = pytest.importorskip("nats_bench")

KINDS = {
    "nas-bench-201": (nas_201_api, official.topologies, {"less": 12, "full": 200}, NasBench201),
    "nats-topology": (nats_bench, official.topologies, {"12": 12, "200": 200}, NatsTopology),
    "nats-size": (nats_bench, official.sizes, {"01": 1, "12": 12, "90": 90}, NatsSize),
}
CELLS = 9
LAYOUTS = ("torch-zip", "torch-legacy", "file", "folder")
CASES = [
    ("nas-bench-201", "torch-zip", False),
    ("nas-bench-201", "torch-legacy", True),
    ("nats-topology", "file", True),
    ("nats-topology", "folder", False),
    ("nats-size", "file", False),
    ("nats-size", "folder", True),
]


def write(content, path, layout):
    if layout.startswith("torch"):
        return official.save_torch(content, path / "theirs.pth", legacy=layout == "torch-legacy")
    if layout == "file":
        return official.save_bz2(content, path / "theirs.pickle.pbz2")
    return official.save_folder(content, path / "theirs-simple")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{'odd' if case[2] else 'plain'}")
def pair(request, tmp_path_factory):
    """One benchmark by theirs and by ours; in an odd one the first cells lack this and that, and the last has no results."""
    name, layout, odd = request.param
    module, archs, hps, kind = KINDS[name]
    # The size space's own program fails on trainings without times.
    untimed = ("no_train_times", "no_eval_times", "last_only") if name == "nats-size" else ()
    oddities = [oddity for oddity in official.ODDITIES if oddity not in untimed] if odd else ()
    absent = (CELLS - 1,) if odd and layout != "folder" else ()
    content = official.benchmark(module, archs(CELLS), hps, oddities=oddities, absent=absent)
    if not odd:  # a tie, of which the first counts
        for hp in content["arch2infos"][3]:
            own = {"arch_index": 5, "arch_str": content["meta_archs"][5]}
            content["arch2infos"][5][hp] = content["arch2infos"][3][hp] | own
    folder = tmp_path_factory.mktemp("benchmark")
    source = write(content, folder, layout)
    convert(source, folder / "ours.parquet", None, Console())
    if name == "nas-bench-201":
        theirs = module.NASBench201API(content, verbose=False)
    else:
        space = "sss" if name == "nats-size" else "tss"
        theirs = module.create(str(source), space, fast_mode=layout == "folder", verbose=False)
    ours = open_benchmark(folder / "ours.parquet")
    assert type(ours) is kind
    return SimpleNamespace(
        theirs=theirs, ours=ours, hps=list(ours.hps), path=folder / "ours.parquet", odd=odd, name=name
    )


def answer(function, *args, **options):
    """What a call gives, or None where it fails."""
    random.seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **options), None
        except Exception as error:
            return None, error


def agree(pair, name, *args, **options):
    """Both give the same, or both fail; ours with a ValueError."""
    theirs, failed = answer(getattr(pair.theirs, name), *args, **options)
    ours, error = answer(getattr(pair.ours, name), *args, **options)
    assert (error is None) == (failed is None), (name, args, options, theirs, ours, error, failed)
    assert error is None or type(error) is ValueError, error
    if isinstance(theirs, dict):
        assert ("comment" in ours) == (pair.name != "nas-bench-201" and args[1] in ("cifar10-valid", "cifar10"))
        theirs, ours = (
            sorted((key, value) for key, value in found.items() if key != "comment") for found in (theirs, ours)
        )
    assert equal(ours, theirs), (name, args, options, ours, theirs)


def equal(ours, theirs):
    if isinstance(ours, (tuple, list)):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return math.isclose(ours, theirs, rel_tol=1e-12) if isinstance(ours, float) else ours == theirs


def test_more_info(pair):
    draw = random.Random(0)
    for index in range(CELLS):
        for dataset in (*DATASETS, "svhn"):
            for hp in (*pair.hps, "7"):
                last = int(hp) - 1
                for iepoch in (None, 0, last, *draw.sample(range(-1, last + 2), 2)):
                    for is_random in (True, False, *draw.sample([777, 888, 999, 5, None, 777.0, "777"], 2)):
                        agree(pair, "get_more_info", index, dataset, iepoch=iepoch, hp=hp, is_random=is_random)


def test_more_info_of_a_cell_given_otherwise(pair):
    arch = pair.theirs.arch(2)
    for cell in (arch, SimpleNamespace(tostr=lambda: arch), "|none~0|", -1, CELLS, None, 2.0):
        agree(pair, "get_more_info", cell, "cifar10", is_random=False)
    agree(pair, "get_more_info", 2, "cifar10", None, int(pair.hps[-1]) if pair.name != "nats-size" else 90, False)
    expected = pair.ours.get_more_info(2, "cifar10", is_random=False)
    assert pair.ours.get_more_info(np.int64(2), "cifar10", is_random=False) == expected


def test_a_drawn_training_is_theirs(pair):
    """The same draws of the same generator, so that a seeded experiment goes on as it did."""
    drawn = []
    for function in (pair.theirs.get_more_info, pair.ours.get_more_info):
        random.seed(3)
        drawn.append([function(index % (CELLS - 1), "cifar100", hp=pair.hps[-1])["train-loss"] for index in range(40)])
    assert drawn[0] == drawn[1]


def test_text(pair):
    for hp in pair.hps:
        for index in range(-1, CELLS + 1):
            agree(pair, "query_by_arch", index, hp)
        for index in range(CELLS):
            agree(pair, "query_by_arch", pair.theirs.arch(index), hp)
    agree(pair, "query_by_arch", 0, "7")


def test_text_of_what_is_unknown(pair):
    with pytest.warns(UserWarning, match=r"query_by_arch: nothing is known of '\|none~0\|' at 12 epochs"):
        assert pair.ours.query_by_arch("|none~0|", "12") is None


@pytest.mark.parametrize("part", ["train", "valid", "test", "x-valid", "x-test", "ori-test"])
def test_best(pair, part):
    flops = sorted(pair.theirs.get_cost_info(index, "cifar10", pair.hps[-1])["flops"] for index in range(CELLS - 1))
    names = ("FLOP_max", "Param_max") if pair.name == "nas-bench-201" else ("flop_max", "param_max")
    for dataset in (*DATASETS, "svhn"):
        if (dataset, part) == ("cifar10-valid", "test"):
            continue  # no part at all, which they notice only where a cell is within the limits
        for hp in (*pair.hps, "7"):
            for limits in (
                (None, None),
                (flops[3], None),
                (None, 0.64),
                (0, None),
                (flops[5], 0.7),
                (flops[3] - 1e-3, 9),
            ):
                options = dict(zip(names, limits, strict=True))
                agree(pair, "find_best", dataset, part, **options, hp=hp)
            agree(pair, "find_best", dataset, part, flops[5], 0.7, hp)


def test_costs(pair):
    for index in range(CELLS):
        for dataset in (*DATASETS, "svhn"):
            for hp in (*pair.hps, "7"):
                theirs, failed = answer(pair.theirs.get_cost_info, index, dataset, hp)
                ours, error = answer(pair.ours.get_cost_info, index, dataset, hp)
                assert (error is None) == (failed is None)
                if failed is None:  # they have a None for times of a part without any
                    known = {key: value for key, value in theirs.items() if value is not None}
                    assert {key: value for key, value in ours.items() if value is not None} == pytest.approx(known)


def test_cells(pair):
    assert len(pair.ours) == len(pair.theirs)
    assert [pair.ours[index] for index in range(CELLS)] == list(pair.theirs.meta_archs)
    arch = pair.theirs.arch(4)
    for cell in (arch, 4, SimpleNamespace(tostr=lambda: arch), "other", True, None, 1.5, -1, CELLS):
        agree(pair, "query_index_by_arch", cell)
    agree(pair, "arch", 3)
    with pytest.raises(ValueError, match=f"arch: must be from 0 to {CELLS - 1}, got {CELLS}"):
        pair.ours.arch(CELLS)


def test_means_are_the_tables(pair):
    """The same file as a table of numbers, for advnas query and --table."""
    table, hp = Table.load(pair.path), pair.hps[-1]
    for index, arch in table.index.items():
        for dataset, column in (("cifar10", "cifar10"), ("cifar100", "cifar100"), ("ImageNet16-120", "imagenet16_120")):
            info = pair.theirs.get_more_info(index, dataset, hp=hp, is_random=False)
            if f"{column}_test_{hp}" in table.columns:
                assert table.lookup(arch)[f"{column}_test_{hp}"] == pytest.approx(info["test-accuracy"], rel=1e-12)
        costs = pair.theirs.get_cost_info(index, "cifar10", hp)
        assert table.lookup(arch)["flops_m"] == pytest.approx(costs["flops"], rel=1e-12)
        assert table.lookup(str(index)) == table.lookup(arch)
    assert len(table.rows) == CELLS if not pair.odd else len(table.rows) < CELLS


def test_rows_may_come_in_any_order(tmp_path):
    content = official.benchmark(nas_201_api, official.topologies(6), {"less": 2, "full": 3}, absent=(2,))
    content["arch2infos"] = {index: content["arch2infos"][index] for index in (5, 0, 4, 1, 3)}
    del content["meta_archs"]
    content["evaluated_indexes"] = [0, 1, 3]  # 4 and 5 have results all the same
    content["meta_archs"] = official.topologies(6)  # behind them
    source = official.save_torch(content, tmp_path / "theirs.pth", legacy=True)
    convert(source, tmp_path / "ours.parquet", None, Console())
    theirs = nas_201_api.NASBench201API(content, verbose=False)
    ours = open_benchmark(tmp_path / "ours.parquet")
    for index in (0, 1, 3, 4, 5):
        expected = theirs.get_more_info(index, "cifar10", hp="200", is_random=False)
        assert ours.get_more_info(index, "cifar10", hp="200", is_random=False) == pytest.approx(expected)
    assert ours.find_best("cifar10", "test", hp="200") == pytest.approx(theirs.find_best("cifar10", "test", hp="200"))


def test_flops_that_cannot_be_settled(tmp_path):
    """Without the training whose FLOPs count a file is converted all the same, and the question fails, as theirs does."""
    content = official.benchmark(
        nats_bench, official.topologies(2), {"12": 2, "200": 2}, seeds=(777, 999), oddities=("settled",)
    )
    convert(official.save_folder(content, tmp_path / "theirs"), tmp_path / "ours.parquet", None, Console())
    theirs = nats_bench.create(str(tmp_path / "theirs"), "tss", fast_mode=True, verbose=False)
    ours = open_benchmark(tmp_path / "ours.parquet")
    pair = SimpleNamespace(theirs=theirs, ours=ours, name="nats-topology")
    for index in (0, 1):
        agree(pair, "get_more_info", index, "cifar10", is_random=False)
        agree(pair, "query_by_arch", index, "12")
    with pytest.raises(ValueError, match=r"must agree or be there for seed 888, got \[.*\] for seeds \[777, 999\]"):
        ours.get_cost_info(0, "cifar10")
    assert len(Table.load(tmp_path / "ours.parquet").rows) == 2


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: b.get_more_info(0, "svhn"), "dataset: must be among cifar10-valid, cifar10, .*, got 'svhn'"),
        (lambda b: b.get_more_info(0, "cifar10", hp=5), "hp: must be among 12, 200 in .*, got 5"),
        (lambda b: b.get_more_info(0, "cifar10", 12), "iepoch: must be None or from 0 to 11, got 12"),
        (lambda b: b.get_more_info(9, "cifar10"), "must be from 0 to 1, got 9"),
        (lambda b: b.get_more_info("x", "cifar10"), "nothing is known of 'x' on cifar10 at 12 epochs"),
        (
            lambda b: b.get_more_info(0, "cifar10", is_random=3),
            "is_random must be True, False or a seed among .*, got 3",
        ),
        (lambda b: b.find_best("cifar10", "best"), "metric_on_set must be train, valid, test, or among .*, got 'best'"),
        (lambda b: b.find_best("svhn", "test"), "find_best: dataset must be among .*, got 'svhn'"),
    ],
)
def test_wrong_questions(call, message, tmp_path):
    content = official.benchmark(nas_201_api, official.topologies(2), {"less": 12, "full": 12})
    source = official.save_torch(content, tmp_path / "theirs.pth", legacy=True)
    convert(source, tmp_path / "ours.parquet", None, Console())
    with pytest.raises(ValueError, match=message):
        call(open_benchmark(tmp_path / "ours.parquet"))
