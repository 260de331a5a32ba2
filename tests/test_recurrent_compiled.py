"""The recurrent cells under torch.compile: OnePathRecurrentCell is an operator, that of DARTS leaves the graph."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch._dynamo.testing
from comparison import counted, in_plain_pytorch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from advnas_ext import DartsRecurrentCell, OnePathRecurrentCell, Path, recurrent

UNITS = 5
TANH, SIGMOID, RELU, NONE = 1, 2, 3, 4
OPS = [TANH, SIGMOID, RELU]


@pytest.fixture(autouse=True)
def forgetful():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch):
    """One entry for each native call outside of a graph."""
    return counted(monkeypatch, recurrent, "_run")


def make_cell(kind: type = OnePathRecurrentCell) -> nn.Module:
    torch.manual_seed(0)
    cell = kind(UNITS, 2).double()
    for weight in cell.weights:
        nn.init.normal_(weight, std=0.5)
    return cell


def make_x(length: int = 4, batch: int = 3) -> Tensor:
    return torch.randn(length, batch, UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(cell, call, ops, x=None, *, offsets=False, masks=()) -> dict[str, Tensor]:
    """Outputs and all gradients."""
    cell.zero_grad()
    path = Path.from_ops(ops, dtype=torch.float64)
    path = path.with_offsets() if offsets else path
    x, masks = (
        (make_x() if x is None else x).clone().requires_grad_(),
        [mask.clone().requires_grad_() for mask in masks],
    )
    outputs, last = call(x, path, None, *masks)
    (outputs * torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).view_as(outputs)).sum().add(last.sum()).backward()
    leaves = {"x": x, "gates": path.gates, "offsets": path.offsets, **dict(cell.named_parameters())}
    leaves |= {f"mask {i}": mask for i, mask in enumerate(masks)}
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.grad is not None}
    return {"outputs": outputs.detach(), "last": last.detach(), **found}


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-9, msg=name)


def check_as_plain(cell, call, *arguments, **options) -> None:
    found, twin = run(cell, call, *arguments, **options), copy.deepcopy(cell)
    with in_plain_pytorch():
        expected = run(twin, twin, *arguments, **options)
    expected.setdefault("gates", torch.zeros_like(found["gates"]))  # where all edges pick "none"
    check(found, expected)


def in_one_graph(cell: nn.Module):
    return torch.compile(cell, backend="aot_eager", fullgraph=True)


def make_masks() -> list[Tensor]:
    return [torch.rand(3, UNITS, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("ops", [OPS, [NONE, 0, TANH], [NONE] * 3, [[TANH, NONE]] * 3], ids=str)
@pytest.mark.parametrize("more", [False, True], ids=["alone", "masks and offsets"])
def test_opcheck(calls, ops, more):
    run(make_cell(), make_cell(), ops, offsets=more, masks=make_masks() if more else ())
    torch.library.opcheck(torch.ops.advnas_ext.recurrent.default, calls[0])


def test_all_paths_in_one_graph_and_all_lengths_in_another():
    cell, counter = make_cell(), torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, backend=counter, fullgraph=True)
    for ops in itertools.product((TANH, RELU, NONE), repeat=3):
        check_as_plain(cell, compiled, ops)
    assert counter.frame_count == 1
    for length in (2, 7, 3):
        check_as_plain(cell, compiled, OPS, make_x(length))
    assert counter.frame_count == 2


def test_masks_offsets_and_several_picks():
    cell = make_cell()
    compiled, masks = in_one_graph(cell), make_masks()
    for ops in ([[TANH, SIGMOID], [NONE, RELU], [0, NONE]], [[NONE, TANH]] * 3):
        check_as_plain(cell, compiled, ops, offsets=True, masks=masks)


def test_by_inductor():
    """Which makes code of what is around it, and plans the memory."""
    cell = make_cell()
    model = nn.Sequential(nn.Linear(UNITS, UNITS).double(), cell)
    compiled = torch.compile(lambda x, path, *rest: cell(model[0](x).tanh(), path, *rest), fullgraph=True)
    for ops in (OPS, [NONE, 0, TANH]):
        check(run(model, compiled, ops), run(model, lambda x, *rest: cell(model[0](x).tanh(), *rest), ops))


def test_only_what_is_wanted():
    cell, path = make_cell(), Path.from_ops(OPS, dtype=torch.float64)
    compiled = in_one_graph(cell)
    compiled(make_x(), path.detach())[0].sum().backward()
    assert path.gates.grad is None
    expected = [weight.grad for weight in cell.weights]
    cell.zero_grad()
    cell(make_x(), path.detach())[0].sum().backward()
    torch.testing.assert_close(expected, [weight.grad for weight in cell.weights])
    cell.requires_grad_(False)
    compiled(make_x(), path)[0].sum().backward()
    advantages, path.gates.grad = path.gates.grad, None
    cell(make_x(), path)[0].sum().backward()
    torch.testing.assert_close(advantages, path.gates.grad)
    with torch.no_grad():
        assert torch.equal(compiled(make_x(), path)[0], cell(make_x(), path)[0])


def test_a_second_backward_pass():
    """Without one the first writes over what waits for it, in a graph it does not."""
    cell = make_cell()
    loss = in_one_graph(cell)(make_x(), Path.from_ops(OPS, dtype=torch.float64))[0].square().sum()
    inputs = list(cell.parameters())
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, inputs), strict=True):
        assert torch.equal(one, other)


def test_flops(calls):
    """Those of the plain cell, of which all products and both gradients of each are counted."""
    cell, path, found = make_cell(), Path.from_ops([TANH, NONE, RELU], dtype=torch.float64), []
    x, h = make_x().requires_grad_(), make_x()[0].requires_grad_()
    cell(x, path, h)
    in_one_graph(cell)(x, path, h)
    arguments = calls[0]
    for call in (lambda: torch.ops.advnas_ext.recurrent(*arguments), lambda: cell(x, path, h)[0]):
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 1000


def test_an_operation_that_it_does_not_have():
    cell = make_cell()
    with pytest.raises(ValueError, match=r"OnePathRecurrentCell: path\.ops must be below 5, the number of ops, got 5"):
        in_one_graph(cell)(make_x(), Path.from_ops([1, 2, 5]))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


CHANGES = {
    "another weight": lambda cell: cell.weights.__setitem__(1, nn.Parameter(2 * cell.weights[1].detach())),
    "in place": lambda cell: nn.init.normal_(cell.weights[1], std=0.5),
    "parametrized": lambda cell: parametrize.register_parametrization(cell.weights, "1", Doubled()),
    "frozen": lambda cell: cell.weights[1].requires_grad_(False),
    "all frozen": lambda cell: cell.requires_grad_(False),
    "float32": lambda cell: cell.float(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_the_compilation(name):
    cell = make_cell()
    compiled = torch.compile(cell, backend="aot_eager")
    check_as_plain(cell, compiled, OPS)
    with torch.no_grad():
        CHANGES[name](cell)
    x = make_x().to(cell.weights[0].dtype)
    found, expected = run(cell, compiled, OPS, x), run(cell, cell, OPS, x)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch.compile before 2.7 cannot read a path as a list"
)
def test_what_does_not_run_natively_runs_in_plain_pytorch_in_a_graph_too(calls):
    cell, path = make_cell().float(), Path.from_ops(OPS)
    compiled, x = torch.compile(cell, backend="aot_eager"), make_x().float()
    expected = cell(x, path)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, path)[0].float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(compiled(x, path)[0], expected)
    batched = torch.compile(
        lambda x: torch.vmap(lambda row: cell(row[:, None], path)[0][:, 0], in_dims=1, out_dims=1)(x), backend="eager"
    )
    torch.testing.assert_close(batched(x), expected)
    assert len(calls) == 2  # the first and the third one


def test_a_weight_of_darts_that_no_edge_runs_has_no_gradient_in_a_graph_either(calls):
    """So that an optimizer leaves it alone: the reason why it is no operator."""
    cell = make_cell(DartsRecurrentCell)
    compiled = torch.compile(cell, backend="aot_eager")
    for ops in ([NONE, TANH, RELU], OPS):
        check_as_plain(cell, compiled, ops)
    assert len(calls) == 2
