import copy
import re

import pytest
import torch
from comparison import natively
from torch.nn import functional as F

from advnas.cost import cost
from advnas.networks.nasbench201 import REDUCTIONS, LightReduction, Network
from advnas.spaces.nasbench201 import NASBENCH201
from advnas_ext import Path

EDGES, OPS = NASBENCH201.edges, NASBENCH201.ops
parse_arch = NASBENCH201.parse
MIXED = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
POOLS = "|none~0|+|none~0|none~1|+|avg_pool_3x3~0|skip_connect~1|none~2|"
CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_1x1~2|"


def fixed(arch, *sizes):
    return Network(*sizes, affine=True, track_running_stats=True).fix(parse_arch(arch))


def written_out(x, weights, arch, cells):
    """The benchmark's network as functions of its ``state_dict``, in training mode, for cells without affine batch norm."""

    def conv(x, name, **kwargs):
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **kwargs)

    def norm(x, name):
        return F.batch_norm(x, None, None, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"), training=True)

    def op(x, name, place):
        if name == "skip_connect":
            return x
        if name == "avg_pool_3x3":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return norm(conv(F.relu(x), f"{place}.op.1", padding=int(name[-1]) // 2), f"{place}.op.2")

    picked = dict(zip(EDGES, re.findall(r"([^|~+]+)~", arch), strict=True))
    x = norm(conv(x, "stem.0", padding=1), "stem.1")
    for i in range(3 * cells + 2):
        if i in (cells, 2 * cells + 1):
            y = norm(conv(F.relu(x), f"cells.{i}.conv_a.op.1", stride=2, padding=1), f"cells.{i}.conv_a.op.2")
            y = norm(conv(F.relu(y), f"cells.{i}.conv_b.op.1", padding=1), f"cells.{i}.conv_b.op.2")
            x = y + conv(F.avg_pool2d(x, 2), f"cells.{i}.downsample.1")
            continue
        nodes = [x]
        for target in range(1, 4):
            terms = [
                op(
                    nodes[source],
                    picked[target, source],
                    f"cells.{i}.edges.{target}<-{source}.{OPS.index(picked[target, source])}",
                )
                for source in range(target)
                if picked[target, source] != "none"
            ]
            nodes.append(sum(terms, torch.zeros_like(x)))
        x = nodes[3]
    x = F.relu(norm(x, "lastact.0"))
    return F.linear(x.mean((2, 3)), weights["classifier.weight"], weights["classifier.bias"])


@pytest.mark.parametrize("arch", [MIXED, POOLS, CONVOLUTIONS])
@pytest.mark.parametrize(("size", "in_channels"), [(32, 3), (8, 1)])
def test_network_is_the_benchmarks(arch, size, in_channels, close):
    torch.manual_seed(0)
    network = Network(4, 2, in_channels, 7).double()
    x = torch.randn(3, in_channels, size, size, dtype=torch.float64)
    expected = written_out(x, network.state_dict(), arch, cells=2)
    close(network(x, Path.from_ops(parse_arch(arch))), expected)


def test_parameter_names_are_those_of_xautodl():
    convolution = {
        f"cells.{i}.edges.{t}<-{s}.{op}.op.1.{p}"
        for i in (0, 2, 4)
        for t, s in EDGES
        for op in (2, 3)
        for p in ("weight", "bias")
    }
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = {f"cells.{i}.{conv}.op.1.weight" for i in (1, 3) for conv in ("conv_a", "conv_b")}
    blocks |= {f"cells.{i}.{conv}.op.2.{p}" for i in (1, 3) for conv in ("conv_a", "conv_b") for p in statistics}
    blocks |= {f"cells.{i}.downsample.1.weight" for i in (1, 3)}
    ends = {"stem.0.weight", "classifier.weight", "classifier.bias"}
    ends |= {f"{norm}.{p}" for norm in ("stem.1", "lastact.0") for p in statistics}
    assert set(Network(2, 1).state_dict()) == convolution | blocks | ends


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (33, 31)])
def test_any_image_size(size, reduction):
    network = Network(4, 1, reduction=reduction)
    x = torch.randn(3, 3, *size)
    path = Path.from_ops(parse_arch(MIXED))
    network(x, path).square().sum().backward()
    assert path.gates.grad is not None
    assert path.gates.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def plain(block, x):
    """The light reduction as functions of its parameters; updates its running statistics as PyTorch does."""
    _, conv, norm = block
    x = F.conv2d(F.avg_pool2d(x, 2, ceil_mode=True), conv.weight)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=norm.training)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_light_reduction_is_the_plain_one(size, dtype, close):
    torch.manual_seed(0)
    block = LightReduction(3).to(dtype)
    block[2].weight.data.uniform_(0.5, 1.5)
    block[2].bias.data.normal_()
    twin = copy.deepcopy(block)
    x = torch.randn(5, 3, *size, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    same_x = x.detach().clone().requires_grad_()
    with natively():
        y = block(x)
    expected = plain(twin, same_x)
    assert y.shape == (5, 6, -(-size[0] // 2), -(-size[1] // 2))
    close(y, expected, "y")
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    close(x.grad, same_x.grad, "x")
    for (name, actual), other in zip(block.named_parameters(), twin.parameters(), strict=True):
        close(actual.grad, other.grad, name)
    close(block[2].running_mean, twin[2].running_mean, "running_mean")
    close(block[2].running_var, twin[2].running_var, "running_var")
    with natively():
        y = block.eval()(x)
    close(y, plain(twin.eval(), same_x), "evaluation")


def test_a_light_network_has_light_blocks_and_only_some_operations():
    network = Network(4, 1, ops=("skip_connect", "nor_conv_3x3"), reduction="light")
    names = [name for name, _ in network.named_parameters()]
    assert [name for name in names if name.startswith(("cells.1.", "cells.3."))] == [
        f"cells.{cell}.{name}" for cell in (1, 3) for name in ("1.weight", "2.weight", "2.bias")
    ]
    for cell in (0, 2, 4):
        assert network.cells[cell].ops == ("skip_connect", "nor_conv_3x3")
    x = torch.randn(2, 3, 8, 8)
    assert network(x, Path.from_ops([0, 1, 0, 1, 1, 0])).shape == (2, 10)
    with pytest.raises(ValueError, match=r"path\.ops must be below 2"):
        network(x, Path.from_ops([0, 1, 2, 1, 1, 0]))


def test_only_the_path_gets_gradients():
    """Those of biases before batch norm are 0: it cancels them."""
    network = Network(4, 1)
    network(torch.randn(2, 3, 8, 8), Path.from_ops(parse_arch(MIXED))).sum().backward()
    ops = dict(zip((f"{t}<-{s}" for t, s in EDGES), parse_arch(MIXED).tolist(), strict=True))
    for name, parameter in network.named_parameters():
        if edge := re.search(r"edges\.(.+?)\.(\d)\.", name):
            picked = ops[edge[1]] == int(edge[2])
            assert (parameter.grad is not None) == picked, name
            assert parameter.grad is None or parameter.grad.any() != name.endswith("bias"), name
        else:
            assert parameter.grad is not None, name


def test_activations_are_channels_last_and_weights_as_their_owner_wants_them():
    network = Network(4, 1)
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    seen = []
    for module in network.cells:
        module.register_forward_hook(
            lambda module, args, y: seen.append(y.is_contiguous(memory_format=torch.channels_last))
        )
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    network(x, Path.from_ops(parse_arch(MIXED)))
    assert seen == [True] * 5


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 8, 8, 3)])
def test_wrong_images(shape):
    with pytest.raises(ValueError, match=r"Network: x must have shape \[batch, 3, height, width\], got"):
        Network(4, 1)(torch.randn(shape), Path.from_ops(parse_arch(MIXED)))


@pytest.mark.parametrize("arch", [MIXED, POOLS, CONVOLUTIONS])
def test_fixed_network_has_the_cells_parameters_only(arch):
    network = fixed(arch, 4, 1, 1, 10)
    kept = {f"edges.{t}<-{s}.{op}" for (t, s), op in zip(EDGES, parse_arch(arch).tolist(), strict=True) if op in (2, 3)}
    found = {match[0] for name in network.state_dict() if (match := re.search(r"edges\.\d<-\d\.\d", name))}
    assert found == kept
    assert sum(p.numel() for p in network.parameters()) == cost(network, (1, 1, 8, 8)).params


def test_fixed_network_evaluates_images_one_by_one(close):
    """In evaluation its batch norm uses the statistics of the training: an image's answer does not depend on the batch."""
    torch.manual_seed(0)
    network = fixed(MIXED, 4, 1)
    x = torch.randn(8, 3, 8, 8)
    network(x)
    network.eval()
    together = network(x)
    close(torch.cat([network(image.unsqueeze(0)) for image in x]), together)
    assert not torch.allclose(network.train()(x), together)


def test_without_a_path_it_must_be_fixed():
    with pytest.raises(
        ValueError, match=r"Network: path is missing; give one, or fix the network .* with \.fix\(ops\)"
    ):
        Network(4, 1)(torch.randn(2, 3, 8, 8))


def test_the_baseline_of_the_advantages_changes_nothing_but_them():
    """Of the first edge too, which batch norm makes blind without one where it is the only input of a node."""
    torch.manual_seed(0)
    networks = [Network(4, 1, baseline=baseline) for baseline in (None, "input")]
    networks[1].load_state_dict(networks[0].state_dict())
    ops = torch.tensor([OPS.index("nor_conv_3x3")] * len(EDGES))
    ops[[1, 3]] = OPS.index("none")  # node 1 feeds convolutions alone
    x, outputs, gates = torch.randn(8, 3, 8, 8), [], []
    for network in networks:
        path = Path.from_ops(ops)
        outputs.append(network(x, path))
        outputs[-1].square().mean().backward(inputs=[path.gates])
        gates.append(path.gates.grad[:, 0])
    assert torch.equal(*outputs)
    assert gates[0][0].abs() < 1e-3 * gates[1][0].abs()
