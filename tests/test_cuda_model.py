"""What the model of a step on a GPU is made of: launches, their bytes and FLOPs, as the passes themselves give them."""

from functools import partial

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def side():
    from benchmarks.steps import sides
    from benchmarks.steps.work import Case

    case = Case(4, 2, batch_size=2, image_size=8)
    return sides.Ours(*sides.make_network(case))


@pytest.mark.parametrize("to_gates", [False, True], ids=["weight", "architecture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels, own", [(16, False), (16, True), (3, False)])
def test_dry_steps_launch_what_steps_launch(launches, channels, own, dtype, to_gates):
    """Every launch with its grid, block, shared memory and bytes, and the operators of the library."""
    from benchmarks.cuda.operators import Operators
    from benchmarks.cuda.own import WithOwnConv3x3
    from benchmarks.steps import sides
    from benchmarks.steps.work import Case

    network, batch = sides.make_network(Case(channels, 2, batch_size=3, image_size=8))
    network = network.to(dtype)
    ours = sides.Ours(WithOwnConv3x3(network) if own else network, batch.to(dtype))
    for ops in [*sides.make_paths(12, seed=3), torch.zeros(6, dtype=torch.int64)]:
        with launches.counted() as found, Operators() as operators:
            ours.step(ops, to_gates)
        step = partial(ours.step, ops, to_gates)
        assert launches.launched(step) == found, ops
        assert launches.work(step) == [*(launch.work for launch in found), *operators.found], ops


def test_launches_by_hand(launches, side):
    """Cells of skip connections: a launch for each node each way, but for the first of a cell, which is its input; and nothing of
    the library but what stem and blocks need."""
    from benchmarks.cuda.launches import count

    skip, none = (count(launches.work(lambda op=op: side.step(torch.full((6,), op), False))) for op in (1, 0))
    nodes = 1 + 6 * 2 + 2 * 2  # the stem's, two of a cell, two of a reduction block
    assert skip["node_forward_kernel"] == nodes
    assert skip["node_backward_kernel"] == nodes - 1, "all but the last, where nothing is to be summed"
    assert skip["library: convolution"] == 1 + 2 * 2, "3x3 convolutions"
    assert none["node_forward_kernel"] == 1, "the output does not depend on anything"
    assert none["node_backward_kernel"] == none["library: convolution"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels, size", [(16, 8), (3, 5)])
def test_bytes_and_flops_by_hand(launches, channels, size, dtype):
    """A cell of one edge, with a skip connection and with a 1x1 convolution, both ways to input, weight and gate."""
    from advnas_ext import OnePathCell, Path

    cell = OnePathCell(channels, num_nodes=2).to(dtype)
    x = torch.randn(2, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    image, row, element = x.numel() * dtype.itemsize, 4 * channels, dtype.itemsize
    dy = torch.ones_like(x)

    def step(op):
        return lambda: cell(x, Path.from_ops([op])).backward(dy)

    forward, backward = launches.launched(step(1))
    assert forward.moved == forward.least == 2 * image, "input and output"
    assert backward.least == 3 * image + 8, "input, both gradients, and the gate's, which is read and written"
    blocks, slabs = backward.grid[:2]
    assert backward.moved == backward.least + 2 * 4 * blocks * slabs, "and a sum of each block, written and read"

    found = launches.launched(step(2))
    by_name = {launch.kernel: launch for launch in found}
    product, gradient = by_name["forward_kernel"], by_name["backward_kernel"]
    weight = channels**2 * element
    assert product.least == 2 * image + weight + 4 * row, "input, output, weight, mean, deviation, scale and shift"
    assert product.moved == product.least + 2 * 4 * product.grid[0] * (1 + 2 * channels), "statistics of each block"
    assert product.flops == 2 * x.numel() * channels
    # The gradient and z, dp and the weight, x and the weight's gradient, and three rows of coefficients.
    assert gradient.least == 4 * image + 2 * weight + 3 * row
    partial = 2 * 4 * gradient.grid[0] * channels**2 if gradient.grid[0] > 1 else 0
    assert gradient.moved == gradient.least + partial
    assert gradient.flops == 2 * product.flops
    forwards = [launch for launch in found if launch.kernel == "node_forward_kernel"]
    assert [launch.moved for launch in forwards] == [2 * image + 2 * row], "z, scale, shift, and the output"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 32, 7, 9), (30, 16, 11, 10)], ids=str)
def test_bytes_and_flops_of_our_own_3x3_convolution_by_hand(launches, shape, dtype):
    """Both ways to input and weight, whose gradient the blocks of the larger one leave in parts."""
    from benchmarks.cuda.own import own_conv3x3

    from advnas_ext import OnePathCell, Path

    channels, element = shape[1], dtype.itemsize
    cell = OnePathCell(channels, num_nodes=2).to(dtype)
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    with own_conv3x3():
        found = launches.launched(lambda: cell(x, Path.from_ops([3])).backward(torch.ones_like(x)))
    by_name = {launch.kernel: launch for launch in found}
    image, row, taps = x.numel() * element, 4 * channels, 9 * channels**2
    forward, to_input, to_weight = (by_name[f"conv3x3_{way}_kernel"] for way in ("forward", "input", "weight"))
    assert forward.least == 2 * image + taps * element + 4 * row, "input, output, weight, and the rows of batch norm"
    assert forward.moved == forward.least + 2 * 4 * forward.grid[0] * (1 + 2 * channels), "statistics of each block"
    assert to_input.least == to_input.moved == 3 * image + taps * element + 3 * row, (
        "gradient and z, dp, weight, coefficients"
    )
    assert {launch.flops for launch in (forward, to_input, to_weight)} == {2 * x.numel() * 9 * channels}
    ranges = to_weight.grid[0]
    assert (ranges > 1) == (shape[0] == 30) == ("conv3x3_sum_kernel" in by_name)
    if ranges == 1:
        assert to_weight.least == to_weight.moved == 3 * image + taps * element + 3 * row
    else:
        assert to_weight.moved == 3 * image + 3 * row + 4 * ranges * taps
        assert by_name["conv3x3_sum_kernel"].moved == 4 * ranges * taps + taps * element
