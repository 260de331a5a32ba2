"""What once crashed, or was silently not what plain PyTorch gives: parts that do not fit each other, saved tensors that come back
in other memory, backward passes that fail, paths and classes that somebody changes."""

import pytest
import torch
from comparison import counted, in_plain_pytorch
from torch import nn

import advnas_ext
from advnas.networks.darts import DartsNetwork
from advnas_ext import DartsRecurrentCell, OnePathCell, OnePathRecurrentCell, Path, native, operations
from advnas_ext.head import NormReluMean

OPS = [3, 2, 4, 1, 3, 2]
RECURRENT_CELLS = (OnePathRecurrentCell, DartsRecurrentCell)


@pytest.fixture
def calls(monkeypatch):
    """One entry for each native call of a graph."""
    return counted(monkeypatch, native, "_run")


def made(seed=0, channels=4, **settings):
    torch.manual_seed(seed)
    return OnePathCell(channels, **settings)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def depthwise(channels, out):
    return nn.Conv2d(channels, out, 3, padding=1, groups=channels, bias=False)


# Separable convolutions: what stands for the depthwise and for the 1x1 convolution.
PARTS = {
    "takes fewer": (None, nn.Conv2d(1, 8, 1, bias=False)),
    "takes more": (None, nn.Conv2d(16, 8, 1, bias=False)),
    "gives more": (depthwise(8, 16), None),
    "gives more, and more are taken": (depthwise(8, 16), nn.Conv2d(16, 8, 1, bias=False)),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_separable_convolutions_whose_parts_were_replaced(parts, close):
    cell = made(channels=8, ops=("none", "sep_conv_3x3"), num_nodes=2)
    for place, layer in zip((1, 2), parts, strict=True):
        if layer is not None:
            cell.edges["1<-0"][1].op[place] = layer
    x, path = images(2, 8, 6, 6), Path.from_ops([1])

    def run():
        return torch.autograd.grad(cell(x, path).square().sum(), [x, path.gates])

    try:
        with in_plain_pytorch():
            expected = run()
    except RuntimeError:
        with pytest.raises(RuntimeError):
            run()
    else:
        for found, wanted in zip(run(), expected, strict=True):
            close(found, wanted)


def dense(tensor):
    """As ``save_on_cpu(pin_memory=True)`` gives it back, whatever order it had."""
    return tensor.contiguous(memory_format=torch.contiguous_format).clone(memory_format=torch.contiguous_format)


def turned(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


@pytest.mark.parametrize("unpack", [dense, turned])
def test_saved_tensors_that_come_back_in_other_memory(unpack, close):
    cells = [made(seed).double() for seed in range(2)]
    head = NormReluMean(4).double()
    x, path = images(2, 4, 6, 6).detach().double().requires_grad_(), Path.from_ops(OPS, dtype=torch.float64)
    leaves = [x, path.gates, *(p for module in (*cells, head) for p in module.parameters() if p.requires_grad)]

    def run():
        y = head(cells[1](cells[0](x, path), path))
        return torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)

    expected = run()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other)


@pytest.mark.parametrize("kind", RECURRENT_CELLS)
def test_saved_tensors_of_recurrent_cells(kind, close):
    """They come back in other memory, and whoever keeps what was saved finds it as it was."""
    torch.manual_seed(0)
    cell = kind(6, 3).double()
    x, path = (
        torch.randn(5, 3, 6, dtype=torch.float64).requires_grad_(),
        Path.from_ops([1, 2, 3, 1, 0, 2], dtype=torch.float64),
    )
    kept = []

    def pack(tensor):
        kept.append((tensor, tensor.clone()))
        return tensor

    def run():
        return torch.autograd.grad(cell(x, path)[0].square().sum(), [x, path.gates, *cell.weights], allow_unused=True)

    expected = run()
    for unpack in (turned, lambda tensor: tensor):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            found = run()
        for one, other in zip(found, expected, strict=True):
            if other is not None:
                close(one, other)
        assert all(torch.equal(tensor, before) for tensor, before in kept)


@pytest.mark.parametrize("wrong", ["batched", "sparse"])
def test_a_backward_pass_after_one_that_failed(wrong, close):
    cell, x, path = made(), images(2, 4, 6, 6), Path.from_ops(OPS)
    (expected,) = torch.autograd.grad(cell(x, path).sum(), x)
    y = cell(x, path)
    batched = wrong == "batched"
    gradient = torch.ones(3, *y.shape) if batched else torch.ones_like(y).to_sparse()
    with pytest.raises(RuntimeError, match="the gradient of the output must be a dense tensor and not a batch"):
        torch.autograd.grad(y, x, gradient, is_grads_batched=batched)
    (found,) = torch.autograd.grad(y.sum(), x)
    close(found, expected)


GATES, OFFSETS = torch.ones(1, 1, requires_grad=True), torch.zeros(0, requires_grad=True)


@pytest.mark.parametrize("name, value", [("gates", torch.ones(0, 1)), ("gates", GATES), ("offsets", OFFSETS)])
def test_fields_of_a_path_that_were_assigned(name, value):
    path = Path.from_ops(OPS)
    setattr(path, name, value)
    with pytest.raises(ValueError, match=r"advnas_ext: (the path has \d gates|there are no offsets)"):
        made()(images(2, 4, 6, 6), path)


@pytest.mark.parametrize("kind", [OnePathCell, *RECURRENT_CELLS])
def test_offsets_that_are_not_0_are_added(kind, close):
    torch.manual_seed(0)
    cell = (kind(4) if kind is OnePathCell else kind(4, 3)).double()
    x = torch.randn(*((2, 4, 6, 6) if kind is OnePathCell else (5, 3, 4)), dtype=torch.float64)
    path = Path.from_ops([1, 2, 3, 1, 0, 2], dtype=torch.float64).with_offsets()
    path.offsets.data += torch.arange(1.0, 7)

    def run():
        y = cell(x, path)
        return y if isinstance(y, torch.Tensor) else y[0]

    with in_plain_pytorch():
        expected = run()
    close(run(), expected)
    path.offsets.data.zero_()
    assert not torch.allclose(run(), expected)


def test_more_operations_at_a_node_than_usual(close):
    cell, x = made(channels=2, num_nodes=15), images(1, 2, 4, 4)
    path = Path(torch.arange(5).expand(cell.num_edges, 5), torch.rand(cell.num_edges, 5).requires_grad_())

    def run():
        y = cell(x, path)
        return y, *torch.autograd.grad(y.square().sum(), [x, path.gates])

    with in_plain_pytorch():
        expected = run()
    for found, wanted in zip(run(), expected, strict=True):
        close(found, wanted)


def test_gates_that_are_negated_lazily(close):
    torch.manual_seed(0)
    cell = OnePathRecurrentCell(4, num_nodes=1).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    gates = (
        torch.complex(torch.zeros(1, 1, dtype=torch.float64), -2 * torch.ones(1, 1, dtype=torch.float64)).conj().imag
    )
    assert gates.is_neg()
    found, _ = cell(x, Path(torch.tensor([[1]]), gates))
    expected, _ = cell(x, Path(torch.tensor([[1]]), gates.clone()))
    close(found, expected)


def test_a_convolution_whose_own_forward_was_replaced(calls):
    cell, x, path = made(), images(2, 4, 6, 6), Path.from_ops(OPS)
    conv = cell.edges["1<-0"][3].op[1]
    conv._conv_forward = lambda x, weight, bias: torch.zeros_like(x)
    found = cell(x, path)
    assert not calls
    with in_plain_pytorch():
        assert torch.equal(found, cell(x, path))


@pytest.mark.parametrize("kind, method", [(operations.ReLUConvBN, "forward"), (nn.Conv2d, "_conv_forward")])
def test_a_class_whose_method_was_replaced(kind, method, monkeypatch, calls):
    cell, x, path = made(), images(2, 4, 6, 6), Path.from_ops(OPS)
    monkeypatch.setattr(kind, method, lambda self, x, *rest: torch.zeros_like(x))
    found = cell(x, path)
    assert not calls
    with in_plain_pytorch():
        assert torch.equal(found, cell(x, path))


@pytest.mark.parametrize("assign", [False, True])
def test_a_network_that_was_made_on_meta(assign, close, calls):
    torch.manual_seed(0)
    network = DartsNetwork(4, 1).eval()
    path = Path.from_ops(torch.randint(8, (28,), generator=torch.Generator().manual_seed(1)))
    x = images(2, 3, 16, 16)
    expected = network(x, path)
    with torch.device("meta"):
        other = DartsNetwork(4, 1).eval()
    if assign:
        other.load_state_dict(network.state_dict(), assign=True)
    else:
        other.to_empty(device="cpu")
        for buffer in other.buffers():
            buffer.fill_(3)
        other.load_state_dict(network.state_dict())
    close(other(x, path), expected)
    obstacles = set(advnas_ext.explain(other).values())
    if assign:  # a checkpoint has none of the constants, which stay on meta
        assert len(calls) == 1
        assert "has its identity on meta" in obstacles
    else:
        assert len(calls) == 2
        assert obstacles == {None}
