import csv
from typing import get_args

import pytest
import torch
from rich.console import Console
from torch.nn.functional import conv2d

from advnas_ext import ESTIMATORS, Path


@pytest.fixture(scope="module")
def paper_toy():
    from benchmarks.paper import toy as paper_toy

    return paper_toy


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
    assert toy.path_seed != paper_toy.Toy(seed=2, held_out=2).path_seed
    first, again = (next(toy.batches(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_quartiles(paper_toy):
    assert paper_toy.quartiles([3.0, 0.0, 2.0, 1.0]) == (0.75, 1.5, 2.25)


def test_the_methods_of_the_command_line(paper_toy):
    assert tuple(paper_toy.METHODS) == get_args(paper_toy.Name)
    assert {method.estimator for method in paper_toy.METHODS.values()} < set(ESTIMATORS)


def test_the_search_finds_the_teacher(paper_toy):
    toy = paper_toy.Toy(seed=0, held_out=100)
    settings = paper_toy.Settings(steps=100, every=50)
    losses = dict(paper_toy.search(toy, paper_toy.METHODS["NASP"], settings))
    assert losses[0] > 1
    assert losses[100] < 0.05 * losses[0]


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_short_run(paper_toy, tmp_path, capsys):
    paper_toy.main(paper_toy.Settings(trials=2, steps=20, every=10, batch_size=8, held_out=16, out=tmp_path / "toy"))
    rows = read(tmp_path / "toy" / "paper-toy.csv")
    assert [(row["method"], row["step"]) for row in rows] == [
        (name, step) for name in paper_toy.METHODS for step in ("0", "10", "20")
    ]
    for row in rows:
        assert 0 <= float(row["low_quartile"]) <= float(row["median"]) <= float(row["high_quartile"])
    at_start = {(row["low_quartile"], row["median"], row["high_quartile"]) for row in rows if row["step"] == "0"}
    assert len(at_start) == 1, "the same teachers for all methods"
    assert "<svg" in (tmp_path / "toy" / "paper-toy.svg").read_text()
    printed = capsys.readouterr().out
    assert all(name in printed for name in paper_toy.METHODS)


def test_some_methods_and_the_same_results_again(paper_toy, tmp_path):
    for folder in ("one", "two"):
        settings = paper_toy.Settings(("SNAS", "NASP"), trials=1, steps=10, every=5, held_out=16, out=tmp_path / folder)
        paper_toy.main(settings)
    assert {row["method"] for row in read(tmp_path / "one" / "paper-toy.csv")} == {"SNAS", "NASP"}
    for name in ("paper-toy.csv", "paper-toy.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal(paper_toy, width):
    quartiles = (0.0, 3.5, 4.0)
    curves = {name: dict.fromkeys((*paper_toy.SHOWN, 2000), quartiles) for name in paper_toy.METHODS}
    console = Console(width=width, record=True)
    console.print(paper_toy.table_of(curves, trials=6))
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert "PARSEC         3.50 (3.50)   3.50 (4.20)   3.50 (3.70)   3.50 (4.00)   3.50" in lines
    assert len([line for line in lines if line]) == 4 + len(paper_toy.METHODS)  # with two lines of title
