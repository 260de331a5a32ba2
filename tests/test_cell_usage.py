"""The cell as people use it: autocast, eval, copies, compiled, from threads, and with wrong arguments."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from comparison import natively
from torch import nn
from torch.nn.utils import prune

from advnas_ext import NAS_BENCH_201, OnePathCell, Path, native, reference
from advnas_ext.operations import OPERATIONS

OPS = [3, 1, 2, 4, 2, 3]


def plain(cell, x, path):
    return reference.cell(x, path, list(cell.edges.values()), cell.num_nodes)


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return OnePathCell(8)


@pytest.fixture
def x():
    return torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )


def test_bfloat16(cell, x, close):
    low = copy.deepcopy(cell).bfloat16()
    y = low(x.bfloat16(), Path.from_ops([1, 4, 1, 4, 1, 4]))
    assert y.dtype == torch.bfloat16
    close(y, cell(x, Path.from_ops([1, 4, 1, 4, 1, 4])))


def test_bfloat16_gates_get_their_gradient(cell, x, close):
    gradients = []
    for module, image in ((cell, x), (copy.deepcopy(cell).bfloat16(), x.bfloat16())):
        path = Path.from_ops([1, 4, 1, 4, 1, 4])
        module(image, path).float().square().sum().backward()
        gradients.append(path.gates.grad)
    close(gradients[1], gradients[0], dtype=torch.bfloat16)


def test_autocast_runs_convolutions_in_bfloat16(cell, x, close):
    path = Path.from_ops([3, 0, 0, 0, 1, 0])
    cell.edges["1<-0"][3].op[1].weight.data.mul_(10)
    with torch.autocast("cpu", torch.bfloat16):
        y = cell(x, path)
    y.float().sum().backward()
    assert path.gates.grad.isfinite().all()
    expected = cell(x, path)
    close(y.float(), expected, dtype=torch.bfloat16)
    assert not torch.equal(y.float(), expected)


def test_no_grad_and_inference_mode(cell, x):
    expected = cell(x, Path.from_ops(OPS))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y = cell(x, Path.from_ops(OPS))
        assert not y.requires_grad
        torch.testing.assert_close(y, expected.detach(), rtol=0, atol=0)


def test_eval_uses_running_statistics(x):
    cell = OnePathCell(8, track_running_stats=True, affine=True)
    path = Path.from_ops(OPS, requires_grad=False)
    cell(x, path)
    norm = cell.edges["1<-0"][3].op[2]
    assert int(norm.num_batches_tracked) == 1
    cell.eval()
    before = norm.running_mean.clone()
    one = cell(x[:1], path)
    torch.testing.assert_close(one, cell(x, path)[:1])  # does not depend on the rest of the batch
    assert torch.equal(before, norm.running_mean)


def test_only_what_is_asked_for_gets_a_gradient(cell, x):
    path = Path.from_ops(OPS)
    cell(x, path.detach()).square().sum().backward()
    assert path.gates.grad is None
    run = {"1<-0": 3, "2<-1": 2, "3<-1": 2, "3<-2": 3}
    for name, parameter in cell.named_parameters():
        _, edge, op, _, _, kind = name.split(".")
        assert (parameter.grad is not None) == (run.get(edge) == int(op)), name
        assert kind == "weight" or parameter.grad is None or not parameter.grad.any(), name  # batch norm cancels biases
    cell.zero_grad()
    cell(x, path).square().sum().backward(inputs=[path.gates])
    assert path.gates.grad is not None
    assert all(parameter.grad is None for parameter in cell.parameters())


def test_gates_of_several_cells_add_up(cell, x, close):
    other = OnePathCell(8)
    gradients = []
    for call in (OnePathCell.__call__, plain):
        path = Path.from_ops(OPS)
        call(other, call(cell, x, path), path).square().mean().backward()
        gradients.append(path.gates.grad)
    close(gradients[0], gradients[1])


def test_deepcopy_pickle_and_state_dict(cell, x):
    path = Path.from_ops(OPS)
    expected = cell(x, path)
    fresh = OnePathCell(8)
    fresh.load_state_dict(cell.state_dict(), strict=True)
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), fresh):
        assert torch.equal(twin(x, path), expected)
    again = pickle.loads(pickle.dumps(path))
    assert torch.equal(again.ops, path.ops)
    assert again.gates.requires_grad
    assert torch.equal(copy.deepcopy(path).gates, path.gates)


def test_state_dict_has_the_names_of_xautodl():
    edges = ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]
    convolutions = [f"edges.{edge}.{op}.op.1.{kind}" for edge in edges for op in (2, 3) for kind in ("weight", "bias")]
    assert list(OnePathCell(4).state_dict()) == convolutions
    affine = OnePathCell(4, affine=True, track_running_stats=True).state_dict()
    kinds = [
        "op.1.weight",
        *(f"op.2.{kind}" for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    assert list(affine) == [f"edges.{edge}.{op}.{kind}" for edge in edges for op in (2, 3) for kind in kinds]


def test_tensors_that_are_no_parameters_and_buffers(x, close):
    """Parametrized and pruned weights, and statistics that are plain attributes."""
    cell = OnePathCell(8, affine=True, track_running_stats=True)
    _, parametrized, norm = cell.edges["1<-0"][3].op
    pruned = cell.edges["2<-1"][2].op[1]
    nn.utils.parametrizations.weight_norm(parametrized)
    prune.random_unstructured(pruned, "weight", 0.5)
    for name, buffer in list(norm.named_buffers()):
        delattr(norm, name)
        setattr(norm, name, buffer)
    path = Path.from_ops(OPS)
    for training in (True, False):
        cell.train(training)
        y = cell(x, path)
        close(y, plain(cell, x, path))
    assert norm.num_batches_tracked == 2
    y.sum().backward()
    assert parametrized.parametrizations.weight.original0.grad is not None
    assert pruned.weight_orig.grad is not None


def test_functional_call(cell, x):
    given = {name: torch.randn_like(parameter) for name, parameter in cell.named_parameters()}
    path, twin = Path.from_ops(OPS), OnePathCell(8)
    twin.load_state_dict(given)
    assert torch.equal(torch.func.functional_call(cell, given, (x, path)), twin(x, path))


def test_what_replaces_a_weight_or_an_operation_is_seen(cell, x, close):
    path = Path.from_ops(OPS)
    cell(x, path)
    conv = cell.edges["1<-0"][3].op[1]
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))
    close(cell(x, path), plain(cell, x, path))
    cell.edges["3<-2"][3] = OPERATIONS["nor_conv_3x3"](8, False, False)
    close(cell(x, path), plain(cell, x, path))
    close(cell.double()(x.double(), path), plain(cell, x.double(), path))


def test_keep_only(cell, x):
    path = Path.from_ops(OPS)
    expected = cell(x, path)
    cell.keep_only(torch.tensor(OPS))
    assert torch.equal(cell(x, path), expected)
    assert len(list(cell.parameters())) == 2 * 4
    with pytest.raises(ValueError, match=r"keep_only\(\) has discarded"):
        cell(x, Path.from_ops([2, 1, 2, 4, 2, 3]))


def test_an_import_brings_no_compiler():
    """A second and 70 MiB."""
    code = "import sys, advnas_ext; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # as the package does; pytest resets it
def test_compile(cell, x):
    """Natively, with the same outputs and gradients."""
    found = []

    def call(x, path):
        return cell(x.relu(), path) * 2

    for run in (torch.compile(call, backend="aot_eager"), call):
        path, leaf = Path.from_ops(OPS), x.clone().requires_grad_()
        with natively():
            y = run(leaf, path)
        y.square().sum().backward()
        weights = [parameter.grad for parameter in cell.parameters() if parameter.grad is not None]
        assert len(weights) == 8  # of four convolutions, with their biases
        cell.zero_grad()
        found.append((y, leaf.grad, path.gates.grad, *weights))
    for compiled, eager in zip(*found, strict=True):
        assert torch.equal(compiled, eager)
    assert path.gates.grad.any()


def test_two_python_threads(cell, x):
    expected = {}
    for ops in ([3] * 6, [2, 3, 1, 4, 3, 2]):
        path = Path.from_ops(ops)
        cell(x, path).square().sum().backward(inputs=[path.gates])
        expected[tuple(ops)] = path.gates.grad
    failures = []

    def work(ops):
        for _ in range(20):
            path = Path.from_ops(list(ops))
            cell(x, path).square().sum().backward(inputs=[path.gates])
            if not torch.equal(path.gates.grad, expected[ops]):
                failures.append(ops)

    threads = [threading.Thread(target=work, args=(ops,)) for ops in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_double_backward_says_no(cell, x):
    path = Path.from_ops(OPS)
    y = cell(x.requires_grad_(), path)
    with pytest.raises(RuntimeError, match="OnePathCell: double backward is not implemented"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_backward_twice_with_retained_graph(cell, x):
    path = Path.from_ops(OPS)
    loss = cell(x, path).square().sum()
    loss.backward(retain_graph=True)
    once = path.gates.grad.clone()
    loss.backward()
    torch.testing.assert_close(path.gates.grad, 2 * once)


def test_backward_twice_is_refused(cell, x):
    """What the first pass has freed cannot be asked for again."""
    loss = cell(x, Path.from_ops(OPS)).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_weight_changed_in_between_is_noticed(cell, x):
    loss = cell(x, Path.from_ops(OPS)).sum()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_user_operation_runs_through_the_plain_executor(x, close, monkeypatch):
    class Scale(nn.Module):
        piece = None

        def forward(self, x):
            return 3 * x

    monkeypatch.setitem(OPERATIONS, "scale", lambda channels, affine, track: Scale())
    cell = OnePathCell(8, ops=("skip_connect", "scale"), num_nodes=2)
    path = Path.from_ops([1])
    y = cell(x, path)
    y.sum().backward()
    close(y, 3 * x)
    close(path.gates.grad, 3 * x.sum().reshape(1, 1))


def test_nan_goes_through_and_does_not_crash(cell, x):
    x[0, 0, 0, 0] = float("nan")
    path = Path.from_ops(OPS)
    y = cell(x, path)
    y.sum().backward()
    assert y.isnan().any()
    assert path.gates.grad.isnan().any()


def test_none_stops_nan(cell, x):
    x.fill_(float("nan"))
    assert torch.equal(cell(x, Path.from_ops([0] * 6)), torch.zeros_like(x))


def test_empty_batch(cell, x):
    path = Path.from_ops(OPS)
    y = cell(x[:0], path)
    assert y.shape == (0, 8, 6, 6)
    y.sum().backward()
    assert path.gates.grad.tolist() == [[0]] * 6


def test_without_a_native_device_it_warns_once(cell, x, monkeypatch):
    native._warn_not_native.cache_clear()
    monkeypatch.setattr(native, "TYPES", {})
    with pytest.warns(UserWarning, match="no native kernels for cpu"):
        cell(x, Path.from_ops([1] * 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cell(x, Path.from_ops([1] * 6))
        y = copy.deepcopy(cell).to("meta")(
            x.to("meta"), Path.from_ops([1] * 6, requires_grad=False)
        )  # nobody wonders there
    assert y.device.type == "meta"


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (
            {"x": torch.ones(2, 4, 6, 6)},
            ValueError,
            r"x must have shape \[batch, 8, height, width\], got \[2, 4, 6, 6\]",
        ),
        ({"x": torch.ones(8, 6, 6)}, ValueError, r"got \[8, 6, 6\]"),
        (
            {"x": torch.ones(2, 8, 6, 6, dtype=torch.float64)},
            TypeError,
            "x is torch.float64 and the cell's parameters are",
        ),
        ({"x": torch.ones(2, 8, 6, 6, dtype=torch.int64)}, TypeError, "x is torch.int64"),
        ({"x": torch.ones(2, 8, 6, 6, device="meta")}, ValueError, "x is on meta and the cell on cpu"),
        ({"x": torch.ones(1, 8, 1, 1)}, ValueError, "more than one value per channel"),
        ({"ops": [3] * 5}, ValueError, "path must have 6 edges, got 5"),
        ({"ops": [5] * 6}, ValueError, "path.ops must be below 5"),
        ({"path": [3] * 6}, TypeError, "path must be an advnas_ext.Path, got list"),
    ],
)
def test_wrong_arguments(cell, x, arguments, error, text):
    path = arguments.get("path", Path.from_ops(arguments.get("ops", OPS)))
    with pytest.raises(error, match=text):
        cell(arguments.get("x", x), path)


def test_wrong_construction():
    with pytest.raises(ValueError, match="channels >= 1 and num_nodes >= 2, got 0 and 4"):
        OnePathCell(0)
    with pytest.raises(ValueError, match="ops must be names among"):
        OnePathCell(4, ops=("none", "conv_9x9"))
    assert NAS_BENCH_201 == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def test_weight_step_past_a_node_that_needs_no_gradient():
    """Node 2 is a pooled input: nothing of it is wanted, but the convolution out of node 1, which comes before it, is."""
    torch.manual_seed(0)
    cell = OnePathCell(8)
    path = Path.from_ops(torch.tensor([3, 4, 0, 0, 3, 1]), requires_grad=False)
    x, weight = torch.randn(5, 8, 9, 9), torch.randn(5, 8, 9, 9)
    picked = [cell.edges[edge][3].op[1].weight for edge in ("1<-0", "3<-1")]
    with natively():
        y = cell(x, path)
    found, expected = (torch.autograd.grad((y * weight).sum(), picked) for y in (y, cell.plain(x, path)))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("ops", [[3, 3, 2, 1, 4, 3], [2, 0, 3, 0, 0, 2], [3, 3, 3, 3, 3, 3]])
def test_values_made_again(ops):
    """Nodes that only convolutions feed are not kept: the backward pass is the same once more, and after a second forward pass."""
    torch.manual_seed(0)
    cell, x, weight = OnePathCell(8).double(), *torch.randn(2, 6, 8, 12, 12).double()
    path = Path.from_ops(torch.tensor(ops), dtype=torch.double)
    parameters = [p for p in cell.parameters() if p.dim() == 4]
    with natively(times=2):
        loss = (cell(x, path) * weight).sum()
        cell(torch.randn_like(x), path)
    first = torch.autograd.grad(loss, [path.gates, *parameters], retain_graph=True, allow_unused=True)
    again = torch.autograd.grad(loss, [path.gates, *parameters], allow_unused=True)
    loss = (cell.plain(x, path) * weight).sum()
    plain = torch.autograd.grad(loss, [path.gates, *parameters], allow_unused=True)
    for one, two, theirs in zip(first, again, plain, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert torch.equal(one, two)
            assert theirs is not None
            assert (one - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize("frozen", [(), (0,), (1, 4), tuple(range(6))], ids=str)
@pytest.mark.parametrize("ops", [(3, 3, 3, 3, 3, 3), (3, 2, 3, 3, 2, 2), (2, 2, 2, 1, 2, 3)], ids=str)
@pytest.mark.parametrize(("size", "channels"), [(12, 8), (5, 3)])
def test_convolutions_that_leave_one_node_together(ops, frozen, size, channels):
    """Five or six convolutions leave the first of seven nodes; some weights want no gradient."""
    torch.manual_seed(0)
    cell = OnePathCell(channels, num_nodes=7).double()
    x, weight = torch.randn(2, 3, channels, size, size, dtype=torch.double)
    x.requires_grad_()
    picked = torch.tensor(
        [op for target, op in zip(range(1, 7), ops, strict=True) for op in [op, *[1, 3, 4, 1, 2][: target - 1]]]
    )
    path = Path.from_ops(picked, dtype=torch.double)
    for k in frozen:
        for parameter in cell.edges[f"{k + 1}<-0"].parameters():
            parameter.requires_grad_(False)
    wanted = [x, path.gates, *(p for p in cell.parameters() if p.requires_grad and p.dim() == 4)]
    with natively():
        y = cell(x, path)
    ours = torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True)
    plain = torch.autograd.grad((cell.plain(x, path) * weight).sum(), wanted, allow_unused=True)
    for one, theirs in zip(ours, plain, strict=True):
        assert (one is None) == (theirs is None)
        if one is not None:
            assert (one - theirs).abs().max() <= 1e-9 * theirs.abs().max()
