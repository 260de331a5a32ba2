"""xautodl's supernets, converted: the same outputs, gradients, statistics and draws as before, by its own forward."""

import copy
import random

import pytest
import torch
from comparison import counted
from torch import nn

pytest.importorskip("xautodl", reason="pip install --no-deps -r benchmarks/requirements.txt")
from xautodl.models.cell_operations import SearchSpaceNames
from xautodl.models.cell_searchs.genotypes import Structure
from xautodl.models.cell_searchs.search_cells import NAS201SearchCell
from xautodl.models.cell_searchs.search_model_darts import TinyNetworkDarts
from xautodl.models.cell_searchs.search_model_enas import TinyNetworkENAS
from xautodl.models.cell_searchs.search_model_gdas import TinyNetworkGDAS
from xautodl.models.cell_searchs.search_model_random import TinyNetworkRANDOM
from xautodl.models.cell_searchs.search_model_setn import TinyNetworkSETN

from advnas.adapters import convert
from advnas_ext import NAS_BENCH_201, native

STRUCTURE = Structure(
    [
        (("nor_conv_3x3", 0),),
        (("skip_connect", 0), ("nor_conv_1x1", 1)),
        (("none", 0), ("avg_pool_3x3", 1), ("nor_conv_3x3", 2)),
    ]
)


def network(kind, affine=False, track=True, ops=NAS_BENCH_201):
    torch.manual_seed(0)
    model = kind(8, 1, 4, 10, list(ops), affine, track).double()
    for name, parameter in model.named_parameters():
        if "edges" in name:  # a ReLU's input of exactly 0 is nobody's
            nn.init.normal_(parameter, std=0.5)
    return model


def step(model):
    """Logits, gradients and statistics of one call, from one state of both generators."""
    torch.manual_seed(1)
    random.seed(1)
    x = torch.randn(4, 3, 16, 16, dtype=torch.double)
    logits = model(x)[1]
    logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits, gradients, dict(model.named_buffers())


def assert_same(model):
    theirs, ours = copy.deepcopy(model), convert(model)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, state[name]), name
    expected, found = step(theirs), step(ours)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-8, atol=1e-10)
    largest = max(gradient.abs().max() for gradient in expected[1].values() if gradient is not None)
    for name, gradient in found[1].items():
        wanted = expected[1][name]
        if (
            gradient is None or wanted is None
        ):  # an operation that did not run, or ran where the output does not depend on it
            assert all(one is None or one.abs().max() < 1e-12 for one in (gradient, wanted)), name
        else:
            torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9 * largest.item(), msg=name)
    return expected, found


KINDS = {"gdas": TinyNetworkGDAS, "setn": TinyNetworkSETN, "darts": TinyNetworkDarts, "random": TinyNetworkRANDOM}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_a_step_is_the_same(kind, affine):
    model = network(KINDS[kind], affine)
    if kind == "setn":
        model.set_cal_mode("joint")
    if kind == "random":
        model.random_genotype(True)
    assert_same(model)


@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_the_operations_of_darts(affine, monkeypatch):
    calls = counted(monkeypatch, native, "_run")
    assert_same(network(TinyNetworkDarts, affine, ops=SearchSpaceNames["darts"]))
    assert len(calls) == 3


@pytest.mark.parametrize("mode", ["urs", "select", "dynamic"])
def test_the_modes_of_setn(mode):
    model = network(TinyNetworkSETN)
    model.set_cal_mode(mode, STRUCTURE if mode == "dynamic" else None)
    assert_same(model)


def test_enas():
    model = network(TinyNetworkENAS)
    model.update_arch(STRUCTURE)
    assert_same(model)


def test_runs_natively_and_is_a_cell_of_theirs(monkeypatch):
    model = convert(network(TinyNetworkGDAS).float())
    assert sum(isinstance(cell, NAS201SearchCell) for cell in model.cells) == 3
    calls = counted(monkeypatch, native, "_run")
    model(torch.randn(2, 3, 16, 16))
    assert len(calls) == 3
    assert torch.equal(
        copy.deepcopy(model).eval()(torch.zeros(1, 3, 8, 8))[1].isfinite(), torch.ones(1, 10, dtype=torch.bool)
    )


def test_a_structure_with_fewer_edges_runs_by_their_method():
    model = network(TinyNetworkSETN)
    cell = next(cell for cell in model.cells if isinstance(cell, NAS201SearchCell))
    structure = Structure([(("nor_conv_3x3", 0),), (("nor_conv_1x1", 1),), (("nor_conv_3x3", 2), ("skip_connect", 0))])
    x = torch.randn(2, 8, 6, 6, dtype=torch.double)
    expected = cell.forward_dynamic(x, structure)
    convert(model)
    torch.testing.assert_close(cell.forward_dynamic(x, structure), expected)


def test_says_what_was_expected():
    with pytest.raises(ValueError, match=r"Linear holds no module that is known; known are xautodl\.models"):
        convert(nn.Linear(2, 2))
    odd = NAS201SearchCell(4, 8, 1, 3, ["nor_conv_3x3"])
    with pytest.raises(ValueError, match="as many output channels as input channels, got 4 and 8"):
        convert(nn.Sequential(odd))
