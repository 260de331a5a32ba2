"""Graphs that are no cells: the stem and the reduction block against their modules, and what a graph refuses."""

import copy

import pytest
import torch
from comparison import natively
from torch import nn

from advnas.networks.nasbench201 import Reduction, Stem
from advnas_ext.native import AVG_POOL, IDENTITY, MAX_POOL, Graph, Prologue, Step, convolution


def modules(layer, x):
    """The layer as its modules say, without the native executor."""
    if isinstance(layer, Reduction):
        conv_a, conv_b = layer.conv_a.op, layer.conv_b.op
        return conv_b(conv_a(x)) + layer.downsample(x)
    return nn.Sequential.forward(layer, x)


def run(layer, call, x, dy):
    x = x.clone().requires_grad_()
    y = call(layer, x)
    (y * dy).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize("evaluate", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 3), (16, 16)], ids=str)
@pytest.mark.parametrize("layer", [Reduction(6), Reduction(16), Stem(3, 16), Stem(1, 5)], ids=str)
def test_stem_and_reduction_equal_their_modules(close, layer, size, evaluate):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double().train(not evaluate)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    twin = copy.deepcopy(layer)
    x = torch.randn(3, next(layer.parameters()).shape[1], *size, dtype=torch.double)
    dy = torch.randn_like(modules(copy.deepcopy(layer), x))
    with natively():
        found = run(layer, lambda layer, x: layer(x), x, dy)
    expected = run(twin, modules, x, dy)
    for name, value in expected.items():
        close(found[name], value, name)
    for name, buffer in twin.named_buffers():
        close(dict(layer.named_buffers())[name].double(), buffer.double(), name, dtype=torch.double)


def test_no_gradient_of_the_images_is_made_for_nobody():
    stem = Stem(3, 8)
    x = torch.randn(2, 3, 8, 8)
    stem(x).sum().backward()
    assert x.grad is None
    assert stem[0].weight.grad is not None


def graph_of(*arrivals):
    graph = Graph()
    graph.node([([step], 0, -1) for step in arrivals])
    return graph


CONV, NORM = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([convolution(Prologue.RELU, nn.Conv2d(5, 8, 1))], "takes 5 channels, got 4"),
        ([convolution(Prologue.RELU, CONV, nn.BatchNorm2d(4))], "must have 8 values"),
        ([convolution(Prologue.RELU, CONV, NORM), IDENTITY], "4x6x6 and 8x6x6"),
        ([convolution(Prologue.MEAN_2X2, CONV), convolution(Prologue.RELU, CONV)], "8x6x6 and 8x3x3"),
        (
            [convolution(Prologue.RELU, nn.Conv2d(4, 8, 3), depthwise=nn.Conv2d(4, 4, 3, groups=4))],
            "size 1 and stride 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        graph_of(*steps).run(torch.randn(2, 4, 6, 6))


def test_another_dtype_is_refused():
    with pytest.raises(RuntimeError, match="expected scalar type Double but found Float"):
        graph_of(convolution(Prologue.RELU, CONV, NORM)).run(torch.randn(2, 4, 6, 6, dtype=torch.double))


def test_one_value_has_no_batch_statistics():
    with pytest.raises(ValueError, match="more than one value per channel, got one image of 1x1"):
        graph_of(convolution(Prologue.RELU, CONV, NORM)).run(torch.randn(1, 4, 1, 1))


def test_a_hand_computed_graph():
    """A 2x2 image: the mean of all its pixels, twice, and a 1x1 convolution with weight 3 and bias 1."""
    conv = nn.Conv2d(1, 1, 1)
    nn.init.constant_(conv.weight, 3)
    nn.init.constant_(conv.bias, 1)
    graph = Graph()
    pooled = graph.node([([AVG_POOL], 0, -1)])
    graph.node([([convolution(Prologue.NOTHING, conv)], pooled, -1), ([IDENTITY], 0, -1)])
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert graph.run(x).tolist() == [[[[11.0, 12.0], [13.0, 16.0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(7, 6), (1, 5), (5, 1), (2, 2), (1, 1)], ids=str)
def test_a_maximum_and_its_gradient_are_those_of_torch(size, dtype):
    """Few different values, so that many are equal: the first gets the gradient. Infinities; and NaNs, of which the last does."""
    torch.manual_seed(0)
    x = torch.randint(0, 3, (3, 19, *size)).to(dtype)
    x[0, ::2] = -torch.inf
    x[1, torch.rand(x[1].shape) < 0.2] = torch.nan
    dy = torch.randint(-9, 9, x.shape).to(dtype)  # sums are exact
    twin = x.clone().requires_grad_()
    x.requires_grad_()
    y, expected = graph_of(MAX_POOL).run(x), nn.functional.max_pool2d(twin, 3, 1, 1)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(x.grad, twin.grad)


def test_a_convolution_needs_a_weight():
    piece = convolution(Prologue.RELU, CONV).piece
    with pytest.raises(ValueError, match="a convolution needs a weight, got None"):
        graph_of(Step(piece)).run(torch.randn(2, 4, 6, 6))
    with pytest.raises(ValueError, match="only a convolution takes tensors"):
        graph_of(Step(AVG_POOL.piece, weight=CONV.weight)).run(torch.randn(2, 4, 6, 6))


def test_a_weight_with_gaps_gets_its_gradient(close):
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
    conv.weight = nn.Parameter(torch.randn(8, 24, 3, 3).double()[:, ::3])
    x, dy = torch.randn(2, 2, 8, 9, 9).double()
    (graph_of(convolution(Prologue.NOTHING, conv)).run(x) * dy).sum().backward()
    found, conv.weight.grad = conv.weight.grad, None
    (conv(x) * dy).sum().backward()
    close(found, conv.weight.grad)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_batch_norm_of_another_length_is_refused(name):
    conv, norm = nn.Conv2d(2, 4096, 1), nn.BatchNorm2d(4096).eval()
    row = torch.ones(4)
    setattr(norm, name, nn.Parameter(row) if name in ("weight", "bias") else row)
    with pytest.raises(ValueError, match="must have 4096 values, one a channel, got 4"):
        graph_of(convolution(Prologue.NOTHING, conv, norm)).run(torch.randn(1, 2, 3, 3))


@pytest.mark.parametrize("size", [(0, 4), (4, 0)], ids=str)
@pytest.mark.parametrize("step", [AVG_POOL, MAX_POOL, IDENTITY], ids=["average", "maximum", "skip"])
def test_images_without_pixels_are_refused(step, size):
    with pytest.raises(ValueError, match=f"images must have pixels, got {size[0]}x{size[1]}"):
        graph_of(step).run(torch.randn(2, 8, *size))


@pytest.mark.parametrize("count", [64, 65, 200])
def test_many_operations_at_a_node(count):
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    y = graph_of(*[IDENTITY] * count).run(x)
    y.backward()
    assert y.item() == x.grad.item() == count
