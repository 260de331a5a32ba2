import csv
import importlib.util
import sys
from pathlib import Path as FilePath

import pytest
import torch
from torch.nn.functional import conv2d

from advnas_ext import Path

FILE = FilePath(__file__).parents[1] / "benchmarks" / "paper_toy.py"


@pytest.fixture(scope="module")
def paper_toy():
    spec = importlib.util.spec_from_file_location("paper_toy", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_network_is_the_papers(paper_toy):
    """Against plain convolutions of the images, for a path of one pick and a dense one."""
    toy = paper_toy.Toy(seed=1, held_out=2)
    x = torch.rand(5, 13, 13, generator=torch.Generator().manual_seed(3)) * 2 - 1
    patches = toy.patches(torch.Generator().manual_seed(3), 5)
    for ops in (torch.arange(10)[:, None], torch.arange(10).repeat(10, 1)):
        path = Path(ops, torch.rand(ops.shape))
        y = 0
        for p in range(10):
            h = conv2d(x[:, None], toy.first[p].view(10, 1, 7, 7), stride=2)[:, ops[p]]
            h = (h * path.gates[p, :, None, None]).sum(1, keepdim=True).tanh()
            y = y + conv2d(h, toy.second[:, p].view(1, 1, 4, 4))
        torch.testing.assert_close(toy.output(patches, path), y.flatten())


def test_weights_and_teacher(paper_toy):
    toy = paper_toy.Toy(seed=1, held_out=2)
    assert toy.first.std().item() == pytest.approx(1 / 7, rel=0.05)
    assert toy.second.std().item() == pytest.approx(1 / 4 / 10, rel=0.2)
    assert toy.held_out_loss(toy.teacher) == 0
    assert toy.held_out_loss((toy.teacher + 1) % 10) > 0
    first, again = (next(toy.batches(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_a_short_run(paper_toy, tmp_path, capsys):
    paper_toy.main(paper_toy.Settings(trials=2, steps=20, every=10, batch_size=8, held_out=16, out=tmp_path / "toy"))
    with (tmp_path / "toy" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(paper_toy.METHODS) * 3
    at_start = {row["trial"]: row["loss_times_100"] for row in rows if row["step"] == "0"}
    assert all(float(row["loss_times_100"]) >= 0 for row in rows)
    assert all(row["loss_times_100"] == at_start[row["trial"]] for row in rows if row["step"] == "0"), "same teacher"
    assert "<svg" in (tmp_path / "toy" / "losses.svg").read_text()
    printed = capsys.readouterr().out
    assert all(method in printed for method in paper_toy.METHODS)
