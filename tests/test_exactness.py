"""How exact float32 is: every operation by itself against its specification in float64, over sizes, channels, scales and zeros.

Inputs and weights are float32 numbers, so that both sides start from the same values, and the one ReLU of an operation has the same
mask on both. Errors are relative to the largest entry of what is expected.
"""

import copy

import pytest
import torch

from advnas_ext import NAS_BENCH_201, OnePathCell, Path, reference

BOUND = {"y": 1e-5, "x": 1e-5, "weight": 5e-5}
SCALES = (1.0, 1e-4, 1e4)
KINDS = ("dense", "mostly zero", "zero channels", "zero images")
# An operation, and whether its 3x3 convolution takes Winograd.
RUNS = [
    ("skip_connect", "0"),
    ("avg_pool_3x3", "0"),
    ("nor_conv_1x1", "0"),
    ("nor_conv_3x3", "0"),
    ("nor_conv_3x3", "1"),
]

each_run = pytest.mark.parametrize("op, winograd", RUNS, ids=[f"{op} winograd {w}" for op, w in RUNS])
each_width = pytest.mark.parametrize("channels", [3, 16, 17, 32, 64])
each_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors are slower with more


def make_input(shape, kind, scale):
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=noise)
    x += 0.1 * x.sign()  # away from 0: what is 0 is so by intention
    if kind == "mostly zero":
        x *= torch.rand(shape, generator=noise) < 0.3
    elif kind == "zero channels":
        x[:, 1::3] = 0
    elif kind == "zero images":
        x[1::2] = 0
    return scale * x


def run(call, cell, x, dy, op):
    x = x.detach().requires_grad_()
    y = call(cell, x, Path.from_ops([NAS_BENCH_201.index(op)], requires_grad=False))
    cell.zero_grad()
    y.backward(dy)
    weights = [p.grad for name, p in cell.named_parameters() if name.endswith("weight") and p.grad is not None]
    return dict(zip(BOUND, (y.detach(), x.grad, *weights), strict=False))


def plain(cell, x, path):
    return reference.cell(x, path, list(cell.edges.values()), cell.num_nodes)


def both(channels, shape, op, kind, scale):
    """What the cell gives in float32, what its specification gives in float64, and the latter's cell and input."""
    torch.manual_seed(1)
    cell = OnePathCell(channels, num_nodes=2)
    truth = copy.deepcopy(cell).double()
    x, dy = make_input(shape, kind, scale), torch.randn(shape)
    return run(OnePathCell.__call__, cell, x, dy, op), run(plain, truth, x.double(), dy.double(), op), truth, x, dy


def check(found, expected, scales, case):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        error = (value.double() - expected[name]).abs().max().item()
        bound = BOUND[name] * scales[name]
        assert error <= bound, f"{case}: {name} is off by {error:.1e}, and may be by {bound:.1e}"


def largest(tensors):
    return {name: tensor.abs().max().item() for name, tensor in tensors.items()}


@each_run
@each_width
@each_kind
def test_one_operation(monkeypatch, op, winograd, channels, kind):
    monkeypatch.setenv("ADVNAS_WINOGRAD", winograd)
    for batch, height, width in ((8, 5, 7), (4, 8, 8), (3, 16, 16), (2, 32, 32)):
        for scale in SCALES:
            found, expected, *_ = both(channels, (batch, channels, height, width), op, kind, scale)
            check(found, expected, largest(expected), f"{height}x{width}, scale {scale}")


def before_cancellation(op, truth, x, dy):
    """Largest entries of what batch norm takes differences of.

    y = (z - mean) / deviation is a difference of two values of up to |z| / deviation. Its backward pass subtracts from
    dy / deviation what has the direction of 1 and of y; y has the error of the numbers above.
    """
    module = truth.edges["1<-0"][NAS_BENCH_201.index(op)].op
    weight = module[1].weight.detach().requires_grad_()
    x = x.double().requires_grad_()
    z = torch.nn.functional.conv2d(x.relu(), weight, module[1].bias, padding=module[1].padding)
    rstd = (z.detach().var((0, 2, 3), correction=0, keepdim=True) + module[2].eps).rsqrt()
    y = (z.detach() * rstd).abs().max().item()
    dx, dweight = torch.autograd.grad(z, (x, weight), dy.double() * rstd)
    return {"y": y, "x": max(1, y) * dx.abs().max().item(), "weight": max(1, y) * dweight.abs().max().item()}


@each_run
@each_width
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_images_of_one_pixel(monkeypatch, op, winograd, channels, batch):
    """Batch norm over so few values cancels nearly all of its input or of its gradient, which is 0 in theory for two values.

    Then what is left in float32 is rounding, in plain PyTorch as here: the bounds are relative to what cancels.
    """
    monkeypatch.setenv("ADVNAS_WINOGRAD", winograd)
    for kind in KINDS:
        for scale in SCALES:
            found, expected, truth, x, dy = both(channels, (batch, channels, 1, 1), op, kind, scale)
            scales = before_cancellation(op, truth, x, dy) if "conv" in op else largest(expected)
            check(found, expected, scales, f"{kind}, scale {scale}")
