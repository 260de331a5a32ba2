"""advnas table convert: what it makes of every source, and what it says of anything else."""

import itertools
import os
import pickle
import re
import warnings

import numpy as np
import official
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from advnas import checkpoint
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tables import NasBench201, Table, open_benchmark, parquet, sources
from advnas.tables.convert import convert

NONE = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
SKIP = "|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|"
LINES = ["index,arch_str,cifar10_test_200,flops_m", f"7,{SKIP},83.25,7.5", f"2,{NONE},10.0,7.5"]


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def made(source, space=NASBENCH201):
    dest = source.with_name("made.parquet")
    convert(source, dest, space, Console())
    return dest


def test_csv(advnas, csv, tmp_path):
    dest = tmp_path / "made.parquet"
    code, out, err = advnas("table", "convert", csv, dest)
    assert (code, err) == (0, "")
    assert re.search(r"^cells +2$", out, re.M)
    assert str(dest) in out
    table, original = Table.load(dest), Table.load(csv)
    assert (table.rows, table.columns, table.index) == (original.rows, original.columns, original.index)
    assert table.space is NASBENCH201
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.parquet", "table.csv"]


def test_the_real_table(shared, tmp_path):
    source = shared / "data" / "nasbench201.csv"
    convert(source, tmp_path / "made.parquet", NASBENCH201, Console())
    table, original = Table.load_whole(tmp_path / "made.parquet", NASBENCH201), Table.load(source)
    assert (table.rows, table.columns, table.index) == (original.rows, original.columns, original.index)


def test_queries_are_those_of_the_csv(advnas, csv):
    dest = made(csv)
    for args in (("--arch", SKIP), ("--arch", "7"), ("--top", "1"), ("--top", "2", "--by", "flops_m")):
        assert advnas("query", dest, *args) == advnas("query", csv, *args)
    assert advnas("query", dest, "--arch", "1")[0] == 2  # numbers are the file's own
    assert advnas("query", dest, "--top", "1", "--space", "nasbench201")[0] == 0


def hardware(archs, draw):
    metrics = ("edgegpu_latency", "edgegpu_energy", "fpga_latency", "eyeriss_arithmetic_intensity")
    return {
        "nasbench201": {
            dataset: {
                "config": [
                    {"name": "infer.tiny", "C": 16, "N": 5, "arch_str": arch, "num_classes": 10} for arch in archs
                ],
                **{name: draw.random(len(archs)) for name in metrics},
            }
            for dataset in ("cifar10", "cifar100", "ImageNet16-120")
        },
        "fbnet": {"edgegpu_latency": {"FC_Cin1504_Cout100": 0.5}},
    }


@pytest.mark.parametrize("form", [list, np.asarray, lambda values: list(map(np.float64, values))])
def test_hardware(tmp_path, advnas, form):
    """HW-NAS-Bench: a number for each cell by data set and device; its operations of another space are left out."""
    archs = official.topologies(50)
    content = hardware(archs, np.random.default_rng(0))
    for found in content["nasbench201"].values():
        for name in set(found) - {"config"}:
            found[name] = form(found[name])
    source = tmp_path / "HW-NAS-Bench-v1_0.pickle"
    source.write_bytes(pickle.dumps(content))
    table = Table.load(made(source))
    assert len(table.rows) == 50
    assert len(table.columns) == 12
    for index, arch in enumerate(archs):
        expected = content["nasbench201"]["ImageNet16-120"]["fpga_latency"][index]
        assert (
            table.lookup(arch)["imagenet16_120_fpga_latency"] == table.lookup(str(index))["imagenet16_120_fpga_latency"]
        )
        assert table.lookup(arch)["imagenet16_120_fpga_latency"] == expected
    code, out, _ = advnas("query", table.path, "--top", "3", "--by", "cifar10_fpga_latency")
    assert code == 0
    assert "cifar10_fpga_latency" in out
    code, _, err = advnas("query", table.path, "--top", "3")
    assert code == 2
    assert "has no column 'cifar10_test_200'; choose among cifar10_edgegpu_latency" in err
    with pytest.raises(ValueError, match="must have a column cifar10_test_200, got cifar10_edgegpu_latency"):
        Table.load_whole(table.path, NASBENCH201)
    with pytest.raises(
        ValueError, match=r"has no trainings, as it was made from hw-nas-bench; use advnas\.tables\.Table"
    ):
        NasBench201(table.path)


def test_many_cells(tmp_path, monkeypatch):
    """More than a group of rows, each at its place; epochs in between are read group by group."""
    nas_201_api = pytest.importorskip("nas_201_api")
    monkeypatch.setattr(parquet, "ROWS", 4)
    archs = official.topologies(10)
    content = official.benchmark(nas_201_api, archs, {"less": 2, "full": 3}, seeds=(777, 888))
    dest = made(official.save_torch(content, tmp_path / "theirs.pth", legacy=True))
    assert pq.ParquetFile(dest).num_row_groups == 3
    theirs, ours = nas_201_api.NASBench201API(content, verbose=False), open_benchmark(dest)
    for index, iepoch in itertools.product(range(10), (None, 0, 1)):
        args = (index, "cifar100", iepoch, "200", False)
        assert ours.get_more_info(*args) == pytest.approx(theirs.get_more_info(*args), rel=1e-12)
    assert len(Table.load(dest).rows) == 10


def test_weights_are_left_out(tmp_path):
    """Of a file with trained weights, as torch keeps them."""
    nas_201_api = pytest.importorskip("nas_201_api")
    content = official.benchmark(nas_201_api, official.topologies(2), {"less": 2, "full": 2})
    for found in content["arch2infos"].values():
        for result in found["full"]["all_results"].values():
            result["net_state_dict"] = {"weight": torch.randn(4, 4), "steps": torch.tensor(3)}
    for legacy in (True, False):
        source = official.save_torch(content, tmp_path / f"{legacy}.pth", legacy)
        assert len(Table.load(made(source)).rows) == 2


def torch_file(content):
    return lambda path: official.save_torch(content, path, legacy=True)


def bytes_of(content):
    return lambda path: path.write_bytes(content)


CELL = {"less": {"dataset_seed": {}, "all_results": {}}, "full": {"dataset_seed": {}, "all_results": {}}}
GOOD = {"meta_archs": [NONE, SKIP], "arch2infos": {0: CELL}, "evaluated_indexes": [0]}


@pytest.mark.parametrize(
    "write, message",
    [
        (
            torch_file({"state_dict": {}}),
            r"must be a dict with meta_archs, .* \(HW-NAS-Bench\), got one with state_dict",
        ),
        (torch_file([1, 2]), "must be a dict with meta_archs, .*, got list"),
        (torch_file(GOOD | {"arch2infos": {}}), "has no results of any cell"),
        (torch_file(GOOD | {"meta_archs": "x"}), "meta_archs must be a list of the cells' strings"),
        (torch_file(GOOD | {"meta_archs": [NONE, NONE]}), "meta_archs must have every cell once"),
        (torch_file(GOOD | {"arch2infos": {5: CELL}}), "cell 5 must come once and be below 2"),
        (
            torch_file(GOOD | {"arch2infos": {0: CELL | {"90": {}}}}),
            "cell 0 must have results under less or full, got '90'",
        ),
        (torch_file(GOOD | {"arch2infos": {0: {"full": {}}}}), r"cell 0 has no results .*: KeyError\('dataset_seed'\)"),
        (torch_file(GOOD | {"evaluated_indexes": None}), "evaluated_indexes must be a list or set of cells' numbers"),
        (torch_file(GOOD | {"arch2infos": {0: "full"}}), "cell 0 must have results under .*, got 'str'"),
        (
            torch_file({"meta_archs": torch.nn.Linear(1, 1)}),
            "holds an object of torch.nn.modules.linear.Linear, which is not read",
        ),
        (
            bytes_of(pickle.dumps({"nasbench201": {"cifar10": {}}})),
            r"not the layout of HW-NAS-Bench: KeyError\('config'\)",
        ),
        (
            bytes_of(pickle.dumps({"nasbench201": {"cifar10": {"config": [], "x": [1.0]}}})),
            "must have 0 numbers, got 1",
        ),
        (bytes_of(pickle.dumps(print)), "holds .*print|must be a dict with meta_archs, .*, got Name"),
        (bytes_of(pickle.dumps(GOOD)[:-40]), "ends in the middle; the file may be truncated, get it again"),
        (bytes_of(b"BZh91AY&SY" + bytes(20)), "damaged .*; get it again"),
        (bytes_of(b"BZh9"), "ends in the middle"),
        (bytes_of(b"PK\x03\x04" + bytes(50)), "File is not a zip file"),
        (bytes_of(b""), "must be a CSV table with columns arch_str and cifar10_test_200"),
        (bytes_of(b"\xff\xfe\x00"), "not a CSV table"),
    ],
)
def test_what_is_no_benchmark(write, message, tmp_path, advnas):
    source, dest = tmp_path / "source", tmp_path / "made.parquet"
    write(source)
    dest.write_bytes(b"what was there")
    code, out, err = advnas("table", "convert", source, dest)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"advnas table: {re.escape(str(source))}: .*({message}).*\n", err), err
    assert dest.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.parquet", "source"]


@pytest.mark.parametrize(
    "args, message",
    [
        ((), r"give advnas table convert SOURCE DEST"),
        (("make",), r"give advnas table convert SOURCE DEST, got 'make'"),
        (("convert",), r".*SOURCE.*; see advnas table convert --help"),
        (("convert", "nothing", "made.parquet"), r"nothing: no such file or folder"),
        (("convert", "table.csv", "made.csv"), r"DEST: must end with \.parquet, got made\.csv"),
        (
            ("convert", "table.csv", "nowhere/made.parquet"),
            r"nowhere/made\.parquet: cannot be written: No such file or directory",
        ),
        (("convert", "table.csv", "folder.parquet"), r"folder\.parquet: cannot be written: Is a directory"),
        (
            ("convert", "table.csv", "made.parquet", "--space", "recurrent"),
            r"table\.csv: there are no tables of .* recurrent.*",
        ),
        (("convert", ".", "made.parquet"), r"\.: must be a folder of NATS-Bench, with meta\.pickle\.pbz2 in it; .*"),
        (
            ("convert", "good.parquet", "made.parquet"),
            r"good\.parquet: is a Parquet file already; give it to advnas query, .*",
        ),
    ],
)
def test_wrong_usage(args, message, advnas, csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(csv).rename("good.parquet")
    (tmp_path / "folder.parquet").mkdir()
    code, out, err = advnas("table", *args)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"advnas table: {message}\n", err), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.parquet", "good.parquet", "table.csv"]


def test_help(advnas):
    code, out, _ = advnas("table", "--help")
    assert (code, out.split()[:4]) == (0, ["usage:", "advnas", "table", "convert"])


def test_folder_with_damage(tmp_path, advnas):
    nats_bench = pytest.importorskip("nats_bench")
    content = official.benchmark(nats_bench, official.topologies(3), {"12": 2, "200": 2})
    folder = official.save_folder(content, tmp_path / "theirs-simple", width=1)  # 0.pickle.pbz2 in place of 000000
    assert len(Table.load(made(folder)).rows) == 3
    (folder / "1.pickle.pbz2").write_bytes((folder / "0.pickle.pbz2").read_bytes()[:50])
    code, _, err = advnas("table", "convert", folder, tmp_path / "again.parquet")
    assert code == 2
    assert "1.pickle.pbz2: the pickle ends in the middle" in err
    (folder / "1.pickle.pbz2").unlink()
    assert advnas("table", "convert", folder, tmp_path / "again.parquet")[0] == 0
    assert len(Table.load(tmp_path / "again.parquet").rows) == 2
    with pytest.raises(ValueError, match="nothing is known of 1 on cifar10 at 12 epochs"):
        open_benchmark(tmp_path / "again.parquet").get_more_info(1, "cifar10")


def test_a_full_disk_leaves_nothing(csv, tmp_path, advnas, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    dest = tmp_path / "made.parquet"
    code, _, err = advnas("table", "convert", csv, dest)
    assert (code, err) == (2, f"advnas table: {dest}: cannot be written: No space left on device\n")
    assert os.listdir(tmp_path) == ["table.csv"]


def test_ctrl_c_leaves_nothing(csv, tmp_path, advnas, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "read", interrupted)
    assert advnas("table", "convert", csv, tmp_path / "made.parquet") == (130, "", "advnas table: stopped\n")
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content[:-20], "damaged"),
        (lambda content: content[:4] + bytes(len(content) - 12) + content[-8:], "damaged"),
        (lambda content: content[:4] + bytes(200) + content[204:], "damaged"),
    ],
)
def test_damaged_tables(csv, change, message):
    dest = made(csv)
    dest.write_bytes(change(dest.read_bytes()))
    with pytest.raises(ValueError, match=rf"made\.parquet: {message}.*convert its source again"):
        Table.load(dest)


def test_foreign_tables(csv, tmp_path, advnas):
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(made(csv)).replace_schema_metadata({}), other)
    with pytest.raises(ValueError, match="must be a table of format 1, got None; make one with advnas table convert"):
        Table.load(other)
    nats_bench = pytest.importorskip("nats_bench")
    sizes = official.benchmark(nats_bench, official.sizes(3), {"01": 1, "12": 2, "90": 2}, seeds=(777,))
    dest = made(official.save_folder(sizes, tmp_path / "sizes"), None)
    with pytest.raises(ValueError, match="must be a table of the space nasbench201, got one of nats_size"):
        Table.load(dest, NASBENCH201)
    code, out, _ = advnas("query", dest, "--arch", "1")
    assert code == 0
    assert sizes["meta_archs"][1] in out
    assert "the same network" not in out
    code, _, err = advnas("query", dest, "--arch", "8:8:8:8:9")
    assert code == 2
    assert "must have the form c:c:c:c:c with each c among 8, 16, 24, 32, 40, 48, 56, 64, got '8:8:8:8:9'" in err


def test_nothing_is_warned_of(csv):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Table.load(made(csv))
