"""The fused cell against its specification: forward, and the gradient of the input, of every gate and of every parameter."""

import copy

import pytest
import torch
from comparison import compare, plain

from advnas_ext import NAS_BENCH_201, OnePathCell, Path
from advnas_ext.operations import OPERATIONS

FLOATS = [torch.float32, torch.float64]
CONV = NAS_BENCH_201.index("nor_conv_3x3")
NONE = NAS_BENCH_201.index("none")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("edge", range(6))
@pytest.mark.parametrize("op", range(len(NAS_BENCH_201)), ids=NAS_BENCH_201)
def test_every_op_on_every_edge(close, op, edge, dtype):
    ops = torch.full((6,), CONV)
    ops[edge] = op
    compare(close, ops, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", range(len(NAS_BENCH_201)), ids=NAS_BENCH_201)
def test_one_op_by_itself(close, op, dtype):
    compare(close, torch.tensor([op]), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", range(len(OPERATIONS)), ids=OPERATIONS)
def test_every_registered_operation(close, op, dtype):
    """Among others DARTS's separable and dilated convolutions, whose steps pass through nodes of their own."""
    names = tuple(OPERATIONS)
    ops = torch.tensor([op, names.index("skip_connect"), op, names.index("nor_conv_3x3"), op, op])
    compare(close, ops, dtype, (2, 9, 6, 5), names=names, affine=op % 2 == 0, track=op % 2 == 1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("picks", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_sparse_two_picks_and_dense(close, picks, seed, dtype):
    noise = torch.Generator().manual_seed(seed)
    ops = torch.stack([torch.randperm(5, generator=noise)[:picks] for _ in range(6)])
    compare(close, ops, dtype, affine=seed % 2 == 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "strided"], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 6, 5, 7), (2, 1, 4, 4), (5, 3, 1, 1), (1, 17, 9, 3), (3, 16, 8, 8), (2, 40, 2, 5), (2, 8, 1, 6)],
    ids=str,
)
def test_shapes_and_layouts(close, shape, layout):
    compare(close, torch.tensor([3, 1, 2, 4, 2, 3]), shape=shape, layout=layout)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("evaluate", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_running_statistics(close, affine, evaluate, dtype):
    compare(close, torch.tensor([3, 2, 3, 1, 4, 2]), dtype, affine=affine, track=True, evaluate=evaluate)


@pytest.mark.parametrize("num_edges", [1, 3, 10])
def test_other_numbers_of_nodes(close, num_edges):
    noise = torch.Generator().manual_seed(num_edges)
    compare(close, torch.randint(1, 5, (num_edges,), generator=noise))


# Edges 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.
@pytest.mark.parametrize(
    "ops", [[3, 3, 3, 1, 0, 0], [3, 1, 0, 4, 0, 3], [0, 0, 0, 0, 0, 3], [3, 3, 3, 0, 0, 0], [0] * 6], ids=str
)
def test_dead_edges_and_empty_nodes(close, ops):
    compare(close, torch.tensor(ops), affine=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("picks", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_a_baseline(close, picks, seed, dtype):
    noise = torch.Generator().manual_seed(seed)
    ops = torch.stack([torch.randperm(5, generator=noise)[:picks] for _ in range(6)])
    compare(close, ops, dtype, affine=seed % 2 == 0, track=seed % 3 == 0, baseline="input")


@pytest.mark.parametrize("op", range(len(OPERATIONS)), ids=OPERATIONS)
def test_a_baseline_of_every_registered_operation(close, op):
    names = tuple(OPERATIONS)
    ops = torch.tensor([op, names.index("skip_connect"), op, names.index("nor_conv_3x3"), op, op])
    compare(close, ops, shape=(2, 9, 6, 5), names=names, baseline="input")


# With a baseline, none on an edge reads a node that nothing else may read: node 1, node 2, both, all.
@pytest.mark.parametrize(
    "ops", [[3, 3, 0, 3, 0, 4], [3, 2, 3, 4, 0, 0], [3, 3, 3, 1, 0, 0], [0, 0, 3, 0, 0, 0], [0] * 6, [1] * 6], ids=str
)
def test_a_baseline_that_only_a_dropped_edge_reads(close, ops):
    compare(close, torch.tensor(ops), affine=True, baseline="input")
    cell = OnePathCell(6, affine=True, baseline="input").double()
    twin, x = copy.deepcopy(cell), torch.randn(3, 6, 5, 4, dtype=torch.double)
    paths = [Path.from_ops(ops, dtype=torch.double) for _ in range(2)]
    for call, path in zip((cell, twin.plain), paths, strict=True):
        call(x, path).square().sum().backward()
    close(paths[0].gates.grad, paths[1].gates.grad)
    for parameter, other in zip(cell.parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)


def test_a_baseline_changes_nothing_but_the_advantages():
    """Which differ by <dL/dnode, source>; a weight step has none."""
    torch.manual_seed(0)
    cell = OnePathCell(6).double()
    other = OnePathCell(6, baseline="input").double()
    other.load_state_dict(cell.state_dict())
    x = torch.randn(3, 6, 5, 4, dtype=torch.double)
    ops = [3, 1, 2, 4, 3, 3]
    paths = [Path.from_ops(ops, dtype=torch.double) for _ in range(2)]
    for module, path in zip((cell, other), paths, strict=True):
        y = module(x, path)
        y.square().sum().backward()
        assert torch.equal(y, cell(x, path.detach()))
        assert torch.equal(y, other(x, path.detach()))
    for one, two in zip(cell.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.allclose(one.grad, two.grad, rtol=1e-12, atol=1e-12)
    assert (paths[0].gates.grad - paths[1].gates.grad).abs().min() > 1e-6
    assert paths[1].gates.grad[1] == 0, "a skip connection beside a skip connection"


def test_an_edge_alone_before_batch_norm_has_an_advantage_with_a_baseline():
    torch.manual_seed(0)
    for baseline, expected in ((None, False), ("input", True)):
        cell = OnePathCell(6, baseline=baseline).double()
        path = Path.from_ops([3, 0, 3, 0, 0, 3], dtype=torch.double)
        cell(torch.randn(4, 6, 8, 8, dtype=torch.double), path).tanh().square().sum().backward()
        share = path.gates.grad[0].abs() / path.gates.grad[5].abs()
        assert (share > 1e-3) == expected


# Nodes where only a skip arrives: node 1, then node 2 too, then node 2 through node 1.
@pytest.mark.parametrize(
    "ops", [[1, 3, 2, 4, 3, 1], [1, 1, 0, 0, 3, 2], [1, 0, 1, 4, 1, 3], [1, 0, 1, 0, 0, 1]], ids=str
)
def test_a_weight_step_where_a_node_is_another(close, ops):
    cell = OnePathCell(6, affine=True).double()
    twin, path = copy.deepcopy(cell), Path.from_ops(ops, requires_grad=False)
    x = torch.randn(3, 6, 5, 4, dtype=torch.double, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    y, expected = cell(x, path), twin.plain(x_twin, path)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    close(y, expected)
    close(x.grad, x_twin.grad)
    for parameter, other in zip(cell.parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None:
            close(parameter.grad, other.grad)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["weights", "gates"])
@pytest.mark.parametrize("ops", [[1, 0, 2], [2, 0, 2], [2, 1, 2]], ids=str)
def test_a_maximum_of_what_was_not_kept(close, ops, requires_grad):
    """Its gradient reads the node that it took, which a convolution made or which nothing else would read."""
    cell = OnePathCell(6, ("none", "nor_conv_3x3", "max_pool_3x3"), num_nodes=3).double()
    twin, x = copy.deepcopy(cell), torch.randn(3, 6, 5, 4, dtype=torch.double)
    paths = [Path.from_ops(ops, requires_grad=requires_grad, dtype=torch.double) for _ in range(2)]
    results = []
    for call, path in zip((cell, twin.plain), paths, strict=True):
        x = x.detach().requires_grad_()
        y = call(x, path)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.double).view_as(y))
        results.append([y, x.grad, *([path.gates.grad] if requires_grad else [])])
    weights = [[p.grad for p in module.parameters() if p.dim() == 4 and p.grad is not None] for module in (cell, twin)]
    for found, expected in zip(results[0] + weights[0], results[1] + weights[1], strict=True):
        close(found, expected)


def test_a_dead_edge_is_not_run():
    cell = OnePathCell(4)
    path = Path.from_ops([CONV, CONV, CONV, 1, NONE, NONE])
    cell(torch.randn(2, 4, 5, 5), path).sum().backward()
    assert all(parameter.grad is None for parameter in cell.parameters())
    assert path.gates.grad[:3].tolist() == [[0], [0], [0]]


def test_one_case_by_hand():
    # Node 1 = 2 x, node 2 = 3 x + 5 node 1 = 13 x, output = 7 x + 11 node 1 + node 2 = 42 x: all skips.
    x = torch.tensor([[[[1.0, -2.0]]]])
    gates = torch.tensor([[2.0], [3.0], [5.0], [7.0], [11.0], [1.0]], requires_grad=True)
    y = OnePathCell(1)(x, Path(torch.ones(6, 1, dtype=torch.int64), gates))
    assert y.flatten().tolist() == [42, -84]
    y.backward(torch.tensor([[[[1.0, 1.0]]]]))
    # d(sum y) / d(gate), with sum x = -1: 1<-0 (11 + 5), 2<-0 1, 2<-1 2, 3<-0 1, 3<-1 2, 3<-2 13.
    assert gates.grad.flatten().tolist() == [-16, -1, -2, -1, -2, -13]


def test_a_skip_has_the_advantage_of_its_formula():
    x, dy = torch.randn(2, 2, 3, 4, 4, dtype=torch.double).unbind()
    path = Path.from_ops([1], dtype=torch.double)
    OnePathCell(3, num_nodes=2).double()(x, path).backward(dy)
    torch.testing.assert_close(path.gates.grad.item(), (x * dy).sum().item())


@pytest.mark.parametrize(
    "ops", [[3, 1, 2, 4, 0, 3], [[3, 1], [2, 4], [0, 3], [1, 2], [4, 3], [2, 0]]], ids=["sparse", "two"]
)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_gradcheck(ops, affine):
    torch.manual_seed(1)
    cell = OnePathCell(2, affine=affine).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(torch.tensor(ops).reshape(6, -1).shape, dtype=torch.float64, requires_grad=True)
    path_ops = torch.tensor(ops).reshape(6, -1)
    weights = [parameter for parameter in cell.parameters() if parameter.dim() == 4]
    assert torch.autograd.gradcheck(lambda x, gates, *_: cell(x, Path(path_ops, gates)), (x, gates, *weights))


def test_bits_do_not_depend_on_threads_or_runs():
    torch.manual_seed(0)
    cell = OnePathCell(16)
    x = torch.randn(5, 16, 9, 9)
    found = []
    for threads in (1, 1, 2, 4, 16):
        torch.set_num_threads(threads)
        path = Path.from_ops([1, 4, 1, 4, 1, 4])  # own kernels only
        y = cell(x, path)
        y.square().sum().backward()
        found.append((y.sum().item(), path.gates.grad.flatten().tolist()))
    assert all(other == found[0] for other in found)


def test_scale_of_the_input_does_not_matter_to_batch_norm(close):
    # The mean is 300 times the spread: a variance as a difference of squares would be off by 1e-2 in float32.
    torch.manual_seed(0)
    cell = OnePathCell(4, num_nodes=2)
    x = 300 + torch.randn(3, 4, 6, 6)
    path = Path.from_ops([2], requires_grad=False)
    weight = cell.edges["1<-0"][2].op[1].weight
    with torch.no_grad():
        weight.copy_(torch.eye(4)[:, :, None, None])
        close(cell(x, path), plain(copy.deepcopy(cell).double(), x.double(), path))
