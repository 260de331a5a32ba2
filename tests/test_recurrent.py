"""The recurrent cells against their specification: outputs, and the gradient of inputs, weights, gates, offsets and masks."""

import copy
import itertools
import math

import pytest
import torch
from comparison import natively

import advnas_ext
from advnas_ext import DartsRecurrentCell, OnePathRecurrentCell, Path, recurrent, reference
from advnas_ext.recurrent import ACTIVATIONS

FLOATS = [torch.float32, torch.float64]
OPS = ("identity", "tanh", "sigmoid", "relu", "none")
IDENTITY, TANH, SIGMOID, RELU, NONE = range(5)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


SPECIFICATIONS = {
    OnePathRecurrentCell: reference.recurrent_cell,
    DartsRecurrentCell: reference.darts_recurrent_cell,
}
each_cell = pytest.mark.parametrize("kind", SPECIFICATIONS)


def fused(cell, x, path, h, x_mask=None, h_mask=None):
    return cell(x, path, h, x_mask, h_mask)


def plain(cell, x, path, h, x_mask=None, h_mask=None):
    functions = [ACTIVATIONS[op].function for op in cell.ops]
    return SPECIFICATIONS[type(cell)](x, path, h, list(cell.weights), functions, x_mask, h_mask)


CALLS = (fused, plain)


def random_cell(kind, units, num_nodes=3, dtype=torch.float64, std=0.5):
    cell = kind(units, num_nodes).to(dtype)
    for weight in cell.weights:
        torch.nn.init.normal_(weight, std=std)
    return cell


def run(cell, call, x, h, path, dy, dh, masks=()):
    cell.zero_grad()
    x, h, *masks = (tensor.clone().requires_grad_() for tensor in (x, h, *masks))
    gates = path.gates.detach().clone().requires_grad_()
    offsets = torch.zeros(path.num_edges, dtype=gates.dtype, requires_grad=True)
    outputs, last = call(cell, x, Path(path.ops, gates, offsets), h, *masks)
    ((outputs * dy).sum() + (last * dh).sum()).backward()
    found = {"outputs": outputs.detach(), "last": last.detach()}
    leaves = {"x": x, "h": h, "gates": gates, "offsets": offsets, **dict(cell.named_parameters())}
    leaves |= dict(zip(("x_mask", "h_mask"), masks, strict=False))
    return found | {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def compare(close, kind, ops, dtype=torch.float32, size=(4, 3, 5), num_nodes=3, masked=False):
    torch.manual_seed(0)
    cell = random_cell(kind, size[2], num_nodes, dtype)
    x, dy = torch.randn(2, *size, dtype=dtype).unbind()
    h, dh = torch.randn(2, *size[1:], dtype=dtype).unbind()
    masks = 1.5 * torch.rand(2, *size[1:], dtype=dtype).gt(1 / 3).to(dtype) if masked else ()
    ops = ops if ops.dim() == 2 else ops[:, None]
    # Divided by the number of terms of their node, so that the states of a deep cell do not explode.
    terms = torch.tensor([target * ops.shape[1] for target in range(1, num_nodes + 1) for _ in range(target)])
    path = Path(ops, torch.empty(ops.shape, dtype=dtype).uniform_(0.5, 1.5) / terms[:, None])
    with natively(recurrent):
        found = run(cell, fused, x, h, path, dy, dh, masks)
    truth = Path(ops, path.gates.double())
    wide = [tensor.double() for tensor in masks]
    expected = run(copy.deepcopy(cell).double(), plain, x.double(), h.double(), truth, dy.double(), dh.double(), wide)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, name)


@each_cell
@each_dtype
@pytest.mark.parametrize("edge", range(6))
@pytest.mark.parametrize("op", range(len(OPS)), ids=OPS)
def test_every_op_on_every_edge(close, kind, op, edge, dtype):
    ops = torch.tensor([TANH, RELU, SIGMOID, IDENTITY, TANH, RELU])
    ops[edge] = op
    compare(close, kind, ops, dtype)


@each_cell
@each_dtype
@pytest.mark.parametrize("op", range(len(OPS)), ids=OPS)
def test_one_op_by_itself(close, kind, op, dtype):
    compare(close, kind, torch.tensor([op]), dtype, num_nodes=1)


@each_cell
@each_dtype
@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8])
@pytest.mark.parametrize("picks", [1, 2, 5])
def test_sparse_two_picks_and_dense(close, kind, picks, num_nodes, dtype):
    noise = torch.Generator().manual_seed(picks)
    num_edges = num_nodes * (num_nodes + 1) // 2
    ops = torch.stack([torch.randperm(5, generator=noise)[:picks] for _ in range(num_edges)])
    compare(close, kind, ops, dtype, num_nodes=num_nodes)


@each_cell
@each_dtype
@pytest.mark.parametrize(
    "size",
    [(1, 1, 1), (2, 3, 2), (3, 1, 7), (2, 5, 8), (2, 2, 19), (1, 70, 130), (0, 3, 4), (2, 0, 4), (0, 0, 4)],
    ids=str,
)
def test_sizes(close, kind, size, dtype):
    compare(close, kind, torch.tensor([TANH, RELU, SIGMOID, IDENTITY, NONE, TANH]), dtype, size)


@each_cell
# Edges 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.
@pytest.mark.parametrize("ops", [[4] * 6, [4, 4, 1, 4, 4, 4], [1, 4, 4, 4, 4, 3], [4, 1, 4, 1, 4, 2]], ids=str)
def test_empty_nodes_and_gaps_between_the_sources(close, kind, ops):
    compare(close, kind, torch.tensor(ops))


@each_cell
@each_dtype
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_small_and_saturated_activations(close, kind, scale, dtype):
    torch.manual_seed(0)
    cell = random_cell(kind, 6, 1, dtype)
    x, h = torch.randn(3, 4, 6, dtype=dtype), torch.randn(4, 6, dtype=dtype)
    with torch.no_grad():
        cell.weights[1].mul_(scale)
    for op in range(4):
        found, expected = (
            run(cell if call is not plain else copy.deepcopy(cell).double(), call, x.to(kind), h.to(kind), path, 1, 1)
            for call, kind, path in (
                (fused, dtype, Path.from_ops([op], dtype=dtype)),
                (plain, torch.float64, Path.from_ops([op], dtype=torch.float64)),
            )
        )
        for name, value in expected.items():
            assert found[name].isfinite().all(), name
            # A gradient of weights that are 1e4 amplifies what the pre-activations are off by.
            if scale < 100 or name in ("outputs", "last"):
                close(found[name], value, f"{OPS[op]}, {name}")


@each_cell
def test_activations_equal_those_of_pytorch_to_the_last_places(kind):
    """One step of one unit with W_0 = 0, so that s_0 = h / 2, and W_1 = [0, 2]: s_1 = h / 4 + f(h) / 2."""
    for dtype in FLOATS:
        grid = torch.cat([torch.linspace(-120, 120, 4001), torch.linspace(-1, 1, 4001), torch.logspace(-30, 0, 500)])
        h = grid.to(dtype)[:, None]
        cell = kind(1, 1).to(dtype)
        with torch.no_grad():
            cell.weights[0].zero_()
            cell.weights[1].copy_(torch.tensor([[0, 2.0]]))
            for index, function in ((TANH, torch.tanh), (SIGMOID, torch.sigmoid)):
                y, _ = cell(torch.zeros_like(h)[None], Path.from_ops([index], requires_grad=False), h)
                expected = h.double() / 4 + function(h.double()) / 2
                error = ((y[0].double() - expected).abs() / (h.double().abs() / 4 + function(h.double()).abs())).max()
                assert error < 4 * torch.finfo(dtype).eps, (dtype, function, error)


def test_darts_by_hand():
    # W_0 = 0: s_0 = h + 1/2 (tanh(0) - h) = h / 2 = 2. W_1: c = 0, u = 3 s_0 = 6, so y = 2 + 1/2 (6 - 2) = 4, s_1 = 5 y = 20.
    # Second step: s_0 = 10, u = 30, y = 10 + 1/2 (30 - 10) = 20, s_1 = 100.
    cell = DartsRecurrentCell(1, num_nodes=1)
    with torch.no_grad():
        cell.weights[0].zero_()
        cell.weights[1].copy_(torch.tensor([[0.0, 3.0]]))
    gates = torch.tensor([[5.0]], requires_grad=True)
    x, h = torch.zeros(2, 1, 1), torch.tensor([[4.0]], requires_grad=True)
    outputs, last = cell(x, Path(torch.tensor([[IDENTITY]]), gates), h)
    assert outputs.flatten().tolist() == [20, 100]
    assert last.item() == 100
    last.backward()
    # s_1 = 5 * 2 s_0 = 5 h in each step, so last = g^2 h: 2 g h = 40, and g^2 = 25.
    assert gates.grad.item() == 40
    assert h.grad.item() == 25


def test_advantagenas_by_hand():
    # c = 0 everywhere, so every highway is half and half. W_0 = 0: h_0 = s / 2 = 4. The edges have u = 2 h_j.
    # 1<-0, identity with gate 3: h_1 = (3 * 8 + 4) / 2 = 14.  2<-0, none: 4 / 2 = 2.
    # 2<-1, relu: (28 + 14) / 2 = 21, h_2 = (2 + 21) / 2 = 11.5.  s = (14 + 11.5) / 2 = 12.75.
    cell = OnePathRecurrentCell(1, num_nodes=2)
    with torch.no_grad():
        cell.weights[0].zero_()
        for weight in cell.weights[1:]:
            weight.copy_(torch.tensor([[0.0, 2.0]]))
    gates = torch.tensor([[3.0], [1.0], [1.0]], requires_grad=True)
    path = Path(torch.tensor([[IDENTITY], [NONE], [RELU]]), gates, torch.zeros(3, requires_grad=True))
    h = torch.tensor([[8.0]], requires_grad=True)
    outputs, last = cell(torch.zeros(1, 1, 1), path, h)
    assert outputs.item() == last.item() == 12.75
    last.backward()
    # ds/dh_2 = 1/2. Of h_2, h_1 has (1/2) (1/2 + 1/2 * 2) = 3/4: ds/dh_1 = 1/2 + 3/8 = 7/8. The gate of 1<-0: 7/8 * 8 / 2.
    # That of 2<-1: 1/2 * 1/2 * 28 / 2.  An offset stands beside the gated operation: 7/8 / 2, and 1/2 * 1/2 / 2 twice.
    assert gates.grad.flatten().tolist() == [3.5, 0, 3.5]
    assert path.offsets.grad.tolist() == [7 / 16, 1 / 8, 1 / 8]
    # ds/dh_0 = 7/8 (3 * 2 + 1) / 2 + 1/2 * 1/2 * 1/2, half of it reaches s.
    assert h.grad.item() == (7 / 8 * 7 / 2 + 1 / 8) / 2


@each_dtype
def test_none_carries_on_what_its_highway_lets_through_in_advantagenas(close, dtype):
    torch.manual_seed(0)
    cell = random_cell(OnePathRecurrentCell, 3, num_nodes=1, dtype=dtype)
    with torch.no_grad():
        cell.weights[1][:, 3:] = math.nan  # only what makes c is read
    path = Path.from_ops([NONE], dtype=dtype).with_offsets()
    h, x = torch.randn(2, 3, dtype=dtype), torch.randn(1, 2, 3, dtype=dtype)
    outputs, _ = cell(x, path, h)
    c, u = (torch.cat([x[0], h], 1) @ cell.weights[0]).chunk(2, 1)
    first = h + c.sigmoid() * (u.tanh() - h)
    c = (first @ cell.weights[1][:, :3]).sigmoid()
    close(outputs[0], (1 - c) * first)
    outputs.sum().backward()
    assert path.gates.grad.tolist() == [[0]]
    close(path.offsets.grad, c.sum().reshape(1))
    assert torch.equal(cell.weights[1].grad[:, 3:], torch.zeros(3, 3, dtype=dtype))
    assert (cell.weights[1].grad[:, :3] != 0).any()


def test_a_gate_of_zero_without_a_gradient_is_as_good_as_none():
    cell = random_cell(OnePathRecurrentCell, 4)
    with torch.no_grad():
        cell.weights[2][:, 4:] = math.nan
    x, ops = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([TANH] * 6)[:, None]
    gates = torch.tensor([1.0, 0, 1, 1, 1, 1], dtype=torch.float64)[:, None]
    none = torch.tensor([TANH, NONE, TANH, TANH, TANH, TANH])[:, None]
    found, expected = (cell(x, Path(picked, gates))[0] for picked in (ops, none))
    assert found.isfinite().all()
    assert torch.equal(found, expected)


@each_cell
@each_dtype
@pytest.mark.parametrize("size", [(4, 3, 5), (1, 1, 1), (3, 70, 19), (0, 3, 4), (2, 0, 4)], ids=str)
def test_masks(close, kind, dtype, size):
    compare(close, kind, torch.tensor([TANH, RELU, SIGMOID, IDENTITY, NONE, TANH]), dtype, size, masked=True)


@each_cell
@pytest.mark.parametrize("which", ["x_mask", "h_mask"])
def test_a_mask_by_itself(close, kind, which):
    """And it matters: without it another output comes."""
    torch.manual_seed(0)
    cell, path = random_cell(kind, 4), Path.from_ops([TANH] * 6, dtype=torch.float64)
    x, h = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    mask = {which: 2 * torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.float64)}
    found, expected = (call(cell, x, path, h, **mask)[0] for call in CALLS)
    close(found, expected)
    assert not torch.allclose(found, cell(x, path, h)[0])


@each_cell
def test_no_mask_is_a_mask_of_ones(kind):
    torch.manual_seed(0)
    cell, path = random_cell(kind, 4), Path.from_ops([TANH] * 6, dtype=torch.float64)
    x, h = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(cell(x, path, h, torch.ones_like(h), torch.ones_like(h))[0], cell(x, path, h)[0])


@each_cell
@pytest.mark.parametrize("picks", [1, 3])
def test_gradcheck(kind, picks):
    torch.manual_seed(1)
    cell = random_cell(kind, 3)
    ops = torch.stack([torch.randperm(5)[:picks] for _ in range(6)])
    x, h = torch.randn(2, 2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    gates = torch.rand(6, picks, dtype=torch.float64)
    masks = torch.rand(2, 2, 3, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (x, h, gates, *masks)]

    def call(x, h, gates, x_mask, h_mask, *_):
        return cell(x, Path(ops, gates), h, x_mask, h_mask)

    assert torch.autograd.gradcheck(call, (*leaves, *cell.weights))


@each_cell
@each_dtype
def test_gates_are_shared_over_time(close, kind, dtype):
    """The advantage over a sequence is the sum of those of single steps that have gates of their own."""
    torch.manual_seed(0)
    cell = random_cell(kind, 4, dtype=dtype)
    ops = [TANH, RELU, SIGMOID, IDENTITY, NONE, TANH]
    x, h = torch.randn(5, 3, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    whole = Path.from_ops(ops, dtype=dtype)
    cell(x, whole, h)[0].square().sum().backward()
    singles = [Path.from_ops(ops, dtype=dtype) for _ in x]
    loss = 0
    for step, path in zip(x, singles, strict=True):
        output, h = cell(step[None], path, h)
        loss = loss + output.square().sum()
    loss.backward()
    close(whole.gates.grad, sum(path.gates.grad for path in singles))


def test_none_contributes_exactly_nothing_in_darts():
    cell = random_cell(DartsRecurrentCell, 3, num_nodes=2)
    for bad in (math.inf, -math.inf, math.nan):
        path = Path.from_ops([NONE, NONE, NONE], dtype=torch.float64).with_offsets()
        x = torch.full((2, 2, 3), bad, dtype=torch.float64, requires_grad=True)
        outputs, _ = cell(x, path, torch.full((2, 3), bad, dtype=torch.float64))
        assert (outputs == 0).all()
        outputs.sum().backward()
        assert (path.gates.grad == 0).all()
        assert (x.grad == 0).all()
        # Both nodes are half of the mean, over 2 steps of 6 elements.
        assert path.offsets.grad.tolist() == [6, 6, 6]
    path = Path.from_ops([NONE, IDENTITY, NONE], dtype=torch.float64)
    assert not cell(x, path)[0].isfinite().any()


@each_cell
def test_infinite_and_nan_states_go_through(kind):
    cell = random_cell(kind, 3, num_nodes=1)
    for bad in (math.inf, math.nan):
        path = Path.from_ops([RELU], dtype=torch.float64)
        h = torch.tensor([[1.0, bad, 2.0]], dtype=torch.float64)
        found, expected = (call(cell, torch.ones(1, 1, 3, dtype=torch.float64), path, h)[0] for call in CALLS)
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_dead_edge_is_not_run_in_darts():
    cell = DartsRecurrentCell(3, 3)
    with torch.no_grad():
        cell.weights[2].fill_(math.nan)
    path = Path.from_ops([TANH, NONE, NONE, TANH, TANH, NONE])
    cell(torch.randn(2, 2, 3), path)[0].sum().backward()
    assert cell.weights[2].grad is None
    assert all(cell.weights[node].grad.isfinite().all() for node in (0, 1, 3))
    assert path.gates.grad.isfinite().all()
    gates = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [1.0]])  # 0 and without a gradient: as good as none
    outputs, _ = cell(torch.randn(2, 2, 3), Path(torch.ones(6, 1, dtype=torch.int64), gates))
    assert outputs.isfinite().all()


@each_cell
def test_only_what_is_wanted_is_computed(kind):
    cell = random_cell(kind, 4)
    x, h = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    path = Path.from_ops([TANH] * 6, dtype=torch.float64)
    cell(x, path, h)[0].sum().backward(inputs=[path.gates])
    assert all(weight.grad is None for weight in cell.weights)
    advantages = path.gates.grad.clone()
    path.gates.grad = None
    cell(x, path.detach(), h)[0].sum().backward()
    assert path.gates.grad is None
    weights = [weight.grad.clone() for weight in cell.weights]
    cell.zero_grad()
    cell(x, path, h)[0].sum().backward()
    torch.testing.assert_close(path.gates.grad, advantages)
    torch.testing.assert_close([weight.grad for weight in cell.weights], weights)
    with torch.no_grad():
        assert not cell(x, path, h)[0].requires_grad


@each_cell
def test_backward_again_gives_the_same(kind):
    cell = random_cell(kind, 4)
    path = Path.from_ops([TANH] * 6, dtype=torch.float64)
    loss = cell(torch.randn(3, 2, 4, dtype=torch.float64), path)[0].sum()
    first, second, last = (
        torch.autograd.grad(loss, [path.gates, *cell.weights], retain_graph=more) for more in (1, 1, 0)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))  # which may use memory up


@each_cell
def test_any_layout(close, kind):
    cell = random_cell(kind, 4)
    path = Path.from_ops([TANH] * 6, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    h = torch.randn(4, 2, dtype=torch.float64).t()
    dy = torch.randn(1, 2, 1, dtype=torch.float64).expand(3, 2, 4)
    found = []
    for layout in (lambda tensor: tensor, torch.Tensor.contiguous):
        leaf = layout(x.transpose(0, 1)).detach().requires_grad_()
        outputs, _ = cell(leaf, path, layout(h))
        found.append((outputs, *torch.autograd.grad(outputs, [leaf, path.gates], layout(dy))))
    for actual, expected in zip(*found, strict=True):
        close(actual, expected)


@each_cell
@each_dtype
def test_bits_do_not_depend_on_threads(kind, dtype):
    """The weights have one entry a row and at most one a column, powers of 2: the products are exact, no sums of several terms."""
    torch.manual_seed(0)
    units = 150
    cell = kind(units, 3).to(dtype)
    with torch.no_grad():
        cell.weights[0].copy_(torch.eye(2 * units) / 2)
        for weight in cell.weights[1:]:
            row = torch.arange(units)
            weight.zero_()[row, row + units * (row % 2)] = torch.tensor([0.5, -2.0], dtype=dtype)[row % 2]
    x = torch.randn(4, 200, units, dtype=dtype)
    found = []
    for threads in (1, 1, 2, 5, 16):
        torch.set_num_threads(threads)
        path = Path.from_ops([TANH, RELU, SIGMOID, IDENTITY, TANH, RELU], dtype=dtype).with_offsets()
        leaf = x.clone().requires_grad_()
        outputs, _ = cell(leaf, path)
        outputs.square().sum().backward(inputs=[leaf, path.gates, path.offsets])
        found.append((outputs, leaf.grad, path.gates.grad, path.offsets.grad))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@each_cell
def test_other_dtypes_and_autocast_run_the_specification(close, kind):
    torch.manual_seed(0)
    cell = random_cell(kind, 4, dtype=torch.float32, std=0.3)
    x, path = torch.randn(3, 2, 4), Path.from_ops([TANH, RELU, SIGMOID, IDENTITY, TANH, RELU])
    expected = cell(x, path)[0]
    half = copy.deepcopy(cell).bfloat16()(x.bfloat16(), path)[0]
    assert half.dtype == torch.bfloat16
    close(half, expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = cell(x, path)[0]
    close(found, expected, dtype=torch.bfloat16)
    assert not torch.equal(found.float(), expected)
    assert cell.to("meta")(x.to("meta"), path)[0].shape == x.shape


@each_cell
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(3, 2, 5), (4, 3, 64), (2, 70, 130), (2, 0, 8)], ids=str)
def test_on_a_gpu(close, kind, size, dtype):
    torch.manual_seed(0)
    cell = random_cell(kind, size[2], dtype=torch.float32, std=size[2] ** -0.5).to("cuda", dtype)
    x, dy = torch.randn(2, *size, device="cuda", dtype=dtype).unbind()
    h, dh = torch.randn(2, *size[1:], device="cuda", dtype=dtype).unbind()
    path = Path.from_ops([[TANH, SIGMOID], [RELU, NONE], [NONE, TANH], [IDENTITY, RELU], [SIGMOID, TANH], [TANH, RELU]])
    found = run(cell, fused, x, h, path, dy, dh)
    truth = copy.deepcopy(cell).double().cpu()
    expected = run(truth, plain, *(t.double().cpu() for t in (x, h)), path, *(t.double().cpu() for t in (dy, dh)))
    for name, value in expected.items():
        close(found[name].cpu(), value, name, dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16)


@each_cell
def test_an_initial_state_of_zeros_is_the_default(kind):
    cell = random_cell(kind, 4)
    x, path = torch.randn(3, 2, 4, dtype=torch.float64), Path.from_ops([TANH] * 6)
    assert torch.equal(cell(x, path)[0], cell(x, path, torch.zeros(2, 4, dtype=torch.float64))[0])


@each_cell
@pytest.mark.parametrize("name", advnas_ext.ESTIMATORS)
def test_every_estimator_gets_the_same_gradient_as_from_the_specification(close, kind, name):
    cell = random_cell(kind, 5)
    est = advnas_ext.ESTIMATORS[name](cell.num_edges, len(cell.ops), total_steps=10, dtype=torch.float64)
    # Some give a gradient once in so many samples, and the first loss of others is their baseline.
    batches = torch.randn(getattr(est, "num_samples", 2), 3, 4, 5, dtype=torch.float64)
    found = []
    for call in CALLS:
        twin, noise, steps = copy.deepcopy(est), torch.Generator().manual_seed(0), []
        for x in batches:
            path = twin.sample(noise)
            loss = call(cell, x, path, torch.zeros(4, 5, dtype=torch.float64))[0].square().mean()
            loss.backward(inputs=path.leaves)
            twin.assign_grad(path, loss)
            twin.after_step(path)
            gradient = twin.logits.grad
            steps.append((None if gradient is None else gradient.clone(), twin.logits.detach().clone()))
        found.append(steps)
        learnt = (gradient, twin.logits.detach() - est.logits.detach())
        assert any(change is not None and change.any() for change in learnt) == twin.learns
    for actual, expected in zip(*map(itertools.chain.from_iterable, found), strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            close(actual, expected)


@each_cell
def test_a_search_prefers_the_planted_operation(kind):
    """The teacher has tanh on every edge and the student its weights: the logits alone are left to learn."""
    torch.manual_seed(0)
    cell = random_cell(kind, 8, num_nodes=2, dtype=torch.float32)
    est = advnas_ext.AdvantageEstimator(cell.num_edges, len(cell.ops), zero_op=NONE)
    opt = torch.optim.Adam([est.logits], lr=0.05)
    noise = torch.Generator().manual_seed(0)
    for _ in range(300):
        x = torch.randn(6, 16, 8)
        with torch.no_grad():
            target = cell(x, Path.from_ops([TANH] * cell.num_edges, requires_grad=False))[0]
        path = est.sample(noise)
        loss = (cell(x, path)[0] - target).square().mean()
        loss.backward(inputs=[path.gates])
        est.assign_grad(path, loss)
        opt.step()
        est.after_step(path)
    assert est.argmax().tolist() == [TANH] * cell.num_edges
