"""The head, which is batch norm, ReLU and the mean over the pixels in one, against the same in plain PyTorch in float64."""

import copy

import pytest
import torch
from comparison import counted
from torch import nn

from advnas_ext import _C
from advnas_ext.head import NormReluMean

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest entry
SHAPES = [(2, 16, 8, 8), (5, 3, 7, 9), (3, 17, 5, 13), (9, 17, 1, 1), (1, 3, 11, 1), (4, 40, 16, 16)]
NORMS = {
    "affine": {},
    "no parameters": {"affine": False},
    "no bias": {"bias": False},
    "no running statistics": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
    "other numbers": {"eps": 0.1, "momentum": 0.7},
    "cumulative": {"momentum": None},
}
LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda x: x,
    "every other column": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "one image, expanded": lambda x: x[:1].expand_as(x),
}

pytestmark = pytest.mark.usefixtures("one_thread")  # so small tensors are slower with more
each_type = pytest.mark.parametrize("dtype", BOUND, ids=str)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])


def make_head(channels, dtype=torch.float32, **norm):
    """Its parameters and statistics are random."""
    torch.manual_seed(0)
    head = NormReluMean(channels)
    has_bias = norm.pop("bias", True)  # an argument of new releases of torch
    head[0] = nn.BatchNorm2d(channels, **norm)
    if not has_bias:
        head[0].register_parameter("bias", None)
    for name, tensor in head.state_dict().items():
        if name.endswith("var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_()
    return head.to(dtype)


def make_x(shape, dtype=torch.float32, layout="channels_last"):
    return LAYOUTS[layout](torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)


def run(head, x, call=NormReluMean.__call__):
    """The output, all gradients and all statistics of a copy of ``head``, by name."""
    head, x = copy.deepcopy(head), x.detach().requires_grad_()
    y = call(head, x)
    torch.manual_seed(2)
    y.backward(torch.randn(y.shape).to(y))
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(head.named_buffers())}


def check(head, x):
    bound = BOUND[x.dtype]
    found, expected = run(head, x), run(head.double(), x.double(), NormReluMean.plain)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        error, largest = (v.abs().max().item() for v in (value.double() - expected[name], expected[name]))
        assert value.shape == expected[name].shape
        assert error <= bound * largest, f"{name}: off by {error:.1e} of {largest:.1e}"


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """One entry for each call of the native head."""
    return counted(monkeypatch, _C, "head")


@pytest.fixture
def head():
    return make_head(8)


@pytest.fixture
def x():
    return make_x((4, 8, 5, 6))


@each_mode
@each_type
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_as_plain_pytorch(norm, shape, dtype, training, calls):
    check(make_head(shape[1], dtype, **NORMS[norm]).train(training), make_x(shape, dtype))
    assert len(calls) == 1


@each_mode
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, training, calls):
    x = make_x((5, 17, 6, 6), layout=layout)
    check(make_head(17).train(training), x)
    assert len(calls) == 1


@each_mode
@each_type
@pytest.mark.parametrize("scale", [1e-4, 1e4, 0])
def test_any_scale(scale, dtype, training):
    check(make_head(17, dtype).train(training), scale * make_x((5, 17, 6, 7), dtype))


@each_type
def test_a_mean_that_is_large_beside_the_spread(dtype):
    check(make_head(17, dtype), make_x((5, 17, 6, 7), dtype) + 16)


@pytest.mark.parametrize("shift", [0, -1])
def test_what_is_not_positive_gets_no_gradient(shift):
    """Zeros, as those after a cell of nothing, with the parameters of a new batch norm."""
    head, x = NormReluMean(8), torch.zeros(2, 8, 3, 3)
    nn.init.constant_(head[0].bias, shift)
    for name, value in run(head, x).items():
        if name in ("y", "dx", "0.weight", "0.bias"):
            assert torch.equal(value, torch.zeros_like(value)), name


@each_mode
@each_type
def test_nan_comes_out_where_plain_gives_it(dtype, training):
    head, x = make_head(17, dtype).train(training), make_x((3, 17, 5, 5), dtype)
    x[1, 2, 3, 4] = x[2, 16, 0, 0] = float("nan")
    found, expected = run(head, x), run(head, x, NormReluMean.plain)
    assert torch.equal(found["y"].isnan(), expected["y"].isnan())
    assert found["y"].isnan().sum() == (6 if training else 2)
    for name, value in expected.items():
        assert found[name][value.isnan()].isnan().all(), name
    clean = [c for c in range(17) if c not in (2, 16)]
    assert found["dx"][:, clean].isfinite().all()


def subclass(head):
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    head[0] = Doubled(8)


def other_activation(head):
    head[1] = nn.LeakyReLU()


@each_mode
@pytest.mark.parametrize("change", [subclass, other_activation], ids=["norm", "ReLU"])
def test_what_is_not_native_runs_in_plain_pytorch(head, x, change, training, calls):
    change(head.train(training))
    check_same(run(head, x), run(head, x, NormReluMean.plain))
    assert calls == []


@each_mode
def test_bfloat16(head, x, training, calls):
    head, x = head.train(training).bfloat16(), x.bfloat16()
    found = run(head, x)
    assert found["y"].dtype == torch.bfloat16
    check_same(found, run(head, x, NormReluMean.plain))
    assert calls == []


def test_autocast(head, x, calls):
    with torch.autocast("cpu", torch.bfloat16):
        check_same(run(head, x), run(head, x, NormReluMean.plain))
    assert calls == []


@pytest.mark.parametrize("child", [0, 1])
@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks_of_a_child_fire(head, x, register, child, calls):
    fired = []
    getattr(head[child], register)(lambda *_: fired.append(1))
    y = head(x.requires_grad_())
    y.sum().backward()
    assert fired == [1]
    assert calls == []
    assert torch.equal(y, head.plain(x))


def test_hooks_of_the_head_fire(head, x, calls):
    fired = []
    head.register_forward_hook(lambda module, given, y: fired.append(y.shape))
    head.register_full_backward_hook(lambda module, dx, dy: fired.append(dy[0].shape))
    head(x.requires_grad_()).sum().backward()
    assert fired == [(4, 8), (4, 8)]
    assert len(calls) == 1


@pytest.mark.parametrize(
    "x, error, text",
    [
        (
            torch.ones(2, 4, 6, 6),
            ValueError,
            r"head: x must have shape \[batch, 8, height, width\], got \[2, 4, 6, 6\]",
        ),
        (torch.ones(8, 6, 6), ValueError, r"got \[8, 6, 6\]"),
        (torch.ones(2, 8), ValueError, r"got \[2, 8\]"),
        (torch.ones(2, 8, 6, 6).double(), TypeError, "x is torch.float64 and the parameters are torch.float32"),
        (torch.ones(1, 8, 1, 1), ValueError, "head: batch statistics need more than one value per channel"),
    ],
    ids=["channels", "three dimensions", "two dimensions", "type", "one value"],
)
def test_wrong_arguments(head, x, error, text):
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(error, match=text):
        head(x)
    check_same(head.state_dict(), before)


def test_one_value_needs_running_statistics():
    """In eval mode as well, where there are none."""
    x = torch.randn(1, 8, 1, 1)
    with pytest.raises(ValueError, match="more than one value per channel"):
        make_head(8, track_running_stats=False).eval()(x)
    check(make_head(8).eval(), x)


def test_double_backward_says_no(head, x):
    y = head(x.requires_grad_())
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@each_mode
@each_type
def test_same_bits_from_run_to_run_and_at_any_number_of_threads(dtype, training):
    head, x = make_head(17, dtype).train(training), make_x((13, 17, 9, 9), dtype)
    expected, kept = run(head, x), []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        kept.append(torch.full((1_000 * threads,), float("nan")))  # other addresses
        check_same(run(head, x), expected)


def test_backward_twice_with_retained_graph(head, x):
    inputs = [x.requires_grad_(), *head.parameters()]
    y = head(x).square().sum()
    once = torch.autograd.grad(y, inputs, retain_graph=True)
    head(torch.randn_like(x))
    for first, second in zip(once, torch.autograd.grad(y, inputs), strict=True):
        assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, inputs)


@pytest.mark.parametrize("what", ["weight", "bias", "x"])
def test_what_is_changed_in_between_is_noticed(head, x, what):
    loss = head(x).sum()
    with torch.no_grad():
        (x if what == "x" else getattr(head[0], what)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_mode
def test_only_what_is_asked_for_gets_a_gradient(head, x, training):
    head.train(training)
    given = x.clone().requires_grad_()
    expected = torch.autograd.grad(head(given).square().sum(), [given, *head.parameters()])
    head(x).square().sum().backward()
    assert x.grad is None
    for parameter, gradient in zip(head.parameters(), expected[1:], strict=True):
        assert torch.equal(parameter.grad, gradient)
    head.zero_grad()
    head.requires_grad_(False)
    head(x.requires_grad_()).square().sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert all(parameter.grad is None for parameter in head.parameters())


def test_a_gradient_that_is_one_value(head, x):
    y = head(x.requires_grad_())
    (expanded,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(expanded, torch.autograd.grad(y, x, torch.ones_like(y))[0])


def test_no_grad_and_inference_mode(head, x):
    expected = head(x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y = head(x)
        assert not y.requires_grad
        assert torch.equal(y, expected)
    assert head[0].num_batches_tracked == 3


def test_empty_batch(head, x):
    x = x[:0].requires_grad_()
    y = head.eval()(x)
    assert y.shape == (0, 8)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(head[0].weight.grad, torch.zeros(8))
    assert torch.equal(head[0].bias.grad, torch.zeros(8))


def test_state_dict_has_the_names_of_a_sequential(head):
    sequential = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    assert list(head.state_dict()) == list(sequential.state_dict())
    sequential.load_state_dict(head.state_dict(), strict=True)
    head.load_state_dict(sequential.state_dict(), strict=True)


def test_statistics_that_are_not_tracked_stay():
    """Buffers are there, but training neither takes nor changes them."""
    head = NormReluMean(6).double()
    head[0].track_running_stats = False
    check(head, torch.randn(4, 6, 5, 5, dtype=torch.double))


def test_a_longer_sequence_is_run_as_it_is():
    head = NormReluMean(6)
    head.append(nn.Dropout(1.0))
    assert not head(torch.randn(4, 6, 5, 5)).any()


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_rows_of_another_length_are_refused(name):
    """The kernels would read past their end."""
    head = NormReluMean(4096).eval()
    row = torch.ones(4)
    setattr(head[0], name, nn.Parameter(row) if name in ("weight", "bias") else row)
    with pytest.raises(ValueError, match="must have 4096 values, one a channel, got 4"):
        head(torch.randn(2, 4096, 1, 2))


@pytest.mark.parametrize("module", [nn.GroupNorm(2, 8), nn.Identity()], ids=str)
def test_another_norm_is_run_as_it_is(module):
    head, x = NormReluMean(8), torch.randn(4, 8, 5, 5)
    head[0] = module
    assert torch.equal(head(x), head.plain(x))


def test_batches_need_not_be_counted():
    head, x = NormReluMean(8), torch.randn(4, 8, 5, 5)
    head[0].num_batches_tracked = None
    plain = copy.deepcopy(head).double()
    head(x)
    plain.plain(x.double())
    assert (head[0].running_var - plain[0].running_var).abs().max() < 1e-5


def test_an_empty_batch_counts(head):
    head(torch.randn(0, 8, 5, 5))
    assert head[0].num_batches_tracked == NormReluMean(8)[0].num_batches_tracked + 1
