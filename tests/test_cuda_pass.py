"""The passes for CUDA on the host: the C++ that launches the kernels as it is, the kernels on the shim (tests/cuda_shim).

It is built for tests only, beside the extension, and takes tensors of the host as if they were on a device.
"""

import copy
import functools
import re
import subprocess
from pathlib import Path as FilePath

import pytest
import torch
from benchmarks.cuda.shim import setup_module
from comparison import compare, in_plain_pytorch, natively

from advnas.networks import nasbench201
from advnas.networks.darts import DartsNetwork
from advnas_ext import (
    NAS_BENCH_201,
    DartsRecurrentCell,
    OnePathCell,
    OnePathRecurrentCell,
    Path,
    head,
    native,
    recurrent,
    reference,
)
from advnas_ext.operations import OPERATIONS

NORMS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.fixture
def extension(launches):
    return launches.module


@pytest.fixture
def shim(extension, monkeypatch):
    """Sends everything that runs natively to the passes for CUDA."""
    assert extension.cuda
    monkeypatch.setattr(native, "_run", extension.cell)
    monkeypatch.setattr(native, "TYPES", {"cpu": native.TYPES["cuda"]})
    monkeypatch.setattr(head, "DEVICES", ())
    monkeypatch.setattr(recurrent, "_run", torch.ops.advnas_shim.recurrent.default)
    torch.set_num_threads(1)


def test_what_the_extension_and_the_shim_share_is_the_same_for_both(extension):
    setup = setup_module()

    def said(*tool: str) -> str:
        command = [setup.find_ninja(), "-C", str(setup.objects_folder(torch)), "-t", *tool]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    both = set.intersection(
        *(set(re.findall(r"^    (\S+\.o)$", said("query", so), re.MULTILINE)) for so in ("shim.so", "_C.so"))
    )
    assert {"cell.cpp.o", "cpu/pass_forward.cpp.o"} <= both
    for compiled in both:
        files = [FilePath(file) for file in re.findall(r"^    (\S*/csrc/\S+)$", said("deps", compiled), re.MULTILINE)]
        assert files, compiled
        assert not [file for file in files if "ADVNAS_SHIM" in file.read_text()], compiled


@pytest.mark.parametrize("op", range(5), ids=NAS_BENCH_201)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 3, 5, 7), (1, 17, 1, 5), (2, 8, 9, 4)], ids=str)
def test_one_operation(shim, close, op, shape):
    compare(close, torch.tensor([op]), shape=shape)


@pytest.mark.parametrize("seed", range(8))
def test_a_cell(shim, close, seed):
    ops = torch.randint(1, 5, (6,), generator=torch.Generator().manual_seed(seed))
    compare(close, ops, shape=(2, 16, 6, 6), affine=seed % 2 == 1, track=seed % 4 > 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "strided"], ids=str)
@pytest.mark.parametrize("ops", [[3, 2, 3, 1, 4, 2], [3, 3, 3, 3, 3, 3], [2, 2, 2, 2, 2, 2]], ids=str)
def test_layouts(shim, close, layout, ops):
    compare(close, torch.tensor(ops), layout=layout)


def test_evaluation(shim, close):
    compare(close, torch.tensor([3, 2, 1, 4, 3, 2]), affine=True, track=True, evaluate=True)


@pytest.mark.parametrize("num_nodes", [2, 3, 5])
def test_numbers_of_nodes(shim, close, num_nodes):
    edges = num_nodes * (num_nodes - 1) // 2
    compare(close, torch.arange(edges) % 4 + 1)


@pytest.mark.parametrize("picks", [2, 5])
def test_more_than_one_pick(shim, close, picks):
    """15 operations into the last node, more than a launch takes; 6 convolutions, more sums than a launch takes."""
    compare(close, torch.stack([torch.randperm(5)[:picks] for _ in range(6)]))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith(("sep", "dil"))])
def test_the_operations_of_darts(shim, close, name):
    compare(close, torch.tensor([1, 1, 0]), shape=(2, 8, 6, 7), names=("skip_connect", name), affine=True, track=True)


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 3, 5, 7), (1, 17, 1, 5)], ids=str)
@pytest.mark.parametrize("ops", [[1, 0, 2], [2, 0, 2], [2, 1, 2]], ids=str)
def test_maxima(shim, close, ops, shape):
    compare(close, torch.tensor(ops), shape=shape, names=("none", "nor_conv_3x3", "max_pool_3x3"))


@pytest.mark.parametrize("dtype", NORMS, ids=str)
def test_types(shim, dtype):
    """In the norm of the difference: in short types ReLU inputs change sign."""
    torch.manual_seed(0)
    cell = OnePathCell(16).to(dtype)
    truth = copy.deepcopy(cell).double()
    ops = [3, 2, 1, 4, 3, 2]
    x = torch.randn(4, 16, 8, 8, dtype=dtype, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    path, exact = (Path.from_ops(ops, dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    with natively():
        y = cell(x, path)
    expected = reference.cell(wide, exact, list(truth.edges.values()), 4)
    assert y.dtype == dtype
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad), "gates": (path.gates.grad, exact.gates.grad)}
    pairs["offsets"] = (path.offsets.grad, exact.offsets.grad)
    for (name, p), q in zip(cell.named_parameters(), truth.parameters(), strict=True):
        if p.grad is not None and name.endswith("weight"):
            pairs[name] = (p.grad, q.grad)
    for name, (value, wanted) in pairs.items():
        error = ((value.double() - wanted).norm() / wanted.norm()).item()
        assert error < NORMS[dtype], f"{name}: {error}"


def test_running_statistics_that_are_means_over_all_batches(shim):
    """momentum=None: the kernel takes the number of batches that it counts."""
    torch.manual_seed(0)
    cell, path = OnePathCell(8, track_running_stats=True), Path.from_ops([3, 2, 3, 2, 3, 2], requires_grad=False)
    for module in cell.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    twin, batches = copy.deepcopy(cell), torch.randn(3, 4, 8, 6, 6)
    for x in batches:
        cell(x, path)
    with in_plain_pytorch():
        for x in batches:
            twin(x, path)
    for (name, found), expected in zip(cell.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=name)


def test_only_what_is_wanted(shim):
    torch.manual_seed(0)
    cell, path = OnePathCell(8), Path.from_ops([3, 2, 1, 4, 3, 2])
    x = torch.randn(2, 8, 5, 5)
    cell(x, path).square().sum().backward(inputs=[path.gates])
    assert all(parameter.grad is None for parameter in cell.parameters())
    alone = path.gates.grad.clone()
    path.gates.grad = None
    cell(x, path).square().sum().backward()
    assert torch.equal(alone, path.gates.grad)
    weights = [parameter.grad.clone() for parameter in cell.parameters() if parameter.grad is not None]
    assert len(weights) == 8  # of four convolutions, with the biases that batch norm cancels
    cell.zero_grad()
    cell(x, path.detach()).square().sum().backward()
    for one, other in zip(weights, (p.grad for p in cell.parameters() if p.grad is not None), strict=True):
        assert torch.equal(one, other)


def test_the_same_bits_from_run_to_run(shim):
    torch.manual_seed(0)
    cell, x = OnePathCell(16), torch.randn(8, 16, 8, 8)
    results = []
    for _ in range(2):
        path = Path.from_ops([3, 2, 4, 2, 3, 2])
        y = cell(x, path)
        y.square().sum().backward()
        results.append((y.detach(), path.gates.grad, cell.edges["1<-0"][3].op[1].weight.grad.clone()))
        cell.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_nothing_to_do(shim):
    cell = OnePathCell(4)
    x = torch.empty(0, 4, 5, 5, requires_grad=True)
    path = Path.from_ops([3, 2, 1, 4, 3, 2])
    y = cell(x, path)
    assert y.shape == x.shape
    y.sum().backward()
    assert torch.equal(path.gates.grad, torch.zeros(6, 1))
    assert x.grad.shape == x.shape


def test_errors_are_those_of_the_host(shim):
    with pytest.raises(ValueError, match="batch statistics need more than one value"):
        OnePathCell(4)(torch.randn(1, 4, 1, 1), Path.from_ops([3, 2, 1, 4, 3, 2]))


SUPERNETS = {
    **{name: functools.partial(nasbench201.Network, reduction=name) for name in nasbench201.REDUCTIONS},
    "darts": DartsNetwork,
}


@pytest.mark.parametrize("kind", SUPERNETS)
def test_a_supernet(extension, monkeypatch, close, kind):
    """Stem, reductions and head included, beside the engine of the host."""
    torch.manual_seed(0)
    net = SUPERNETS[kind](4, 1)
    x, target = torch.randn(2, 3, 16, 16), torch.tensor([1, 7])
    ops = torch.arange(28) % 8 if kind == "darts" else torch.tensor([3, 2, 1, 4, 3, 2])
    results = []
    for device in (False, True):
        path = Path.from_ops(ops).with_offsets()
        if device:
            monkeypatch.setattr(native, "_run", extension.cell)
        net.zero_grad()
        with natively():
            loss = torch.nn.functional.cross_entropy(net(x, path), target)
        loss.backward()
        results.append(
            [
                loss.detach(),
                path.gates.grad,
                path.offsets.grad,
                *(p.grad for p in net.parameters() if p.grad is not None),
            ]
        )
    for one, other in zip(*results, strict=True):
        close(one, other, at_least=1e-2)


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("size", [(3, 2, 5), (4, 3, 64), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("kind", [OnePathRecurrentCell, DartsRecurrentCell])
def test_a_recurrent_cell(shim, kind, dtype, size):
    torch.manual_seed(0)
    cell = kind(size[-1], 3).to(dtype)
    for weight in cell.weights:
        torch.nn.init.normal_(weight, std=size[-1] ** -0.5)
    truth = copy.deepcopy(cell).double()
    functions = [recurrent.ACTIVATIONS[op].function for op in cell.ops]
    ops = torch.tensor([[1, 2], [3, 4], [4, 1], [0, 3], [2, 1], [1, 3]])
    x, dy = torch.randn(2, *size, dtype=dtype).unbind()
    masks = [torch.rand(size[1:]).lt(0.7).to(dtype).requires_grad_() for _ in range(2)]
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    wide_masks = [mask.detach().double().requires_grad_() for mask in masks]
    path, exact = (Path.from_ops(ops, dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    specification = reference.recurrent_cell if kind is OnePathRecurrentCell else reference.darts_recurrent_cell
    with natively(recurrent):
        y, _ = cell(x, path, None, *masks)
    expected, _ = specification(wide, exact, wide[0] * 0, list(truth.weights), functions, *wide_masks)
    y.backward(dy)
    expected.backward(dy.double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad)}
    pairs |= {name: (getattr(path, name).grad, getattr(exact, name).grad) for name in ("gates", "offsets")}
    pairs |= {name: (p.grad, dict(truth.named_parameters())[name].grad) for name, p in cell.named_parameters()}
    pairs |= {f"mask {i}": (one.grad, other.grad) for i, (one, other) in enumerate(zip(masks, wide_masks, strict=True))}
    for name, (value, wanted) in pairs.items():
        # Rounding adds up over the steps, and sums over them may cancel.
        scale = max(wanted.norm().item(), wide.grad.norm().item())
        error = (value.double() - wanted).norm().item()
        assert error <= 3 * NORMS[dtype] * scale, f"{name}: {error}"


@pytest.fixture
def autocast(shim, monkeypatch):
    """Autocast, and how many calls ran natively in it."""
    counts = []
    for owner in (native, recurrent):
        run = owner._run
        monkeypatch.setattr(owner, "_run", lambda *args, run=run: (counts.append(args[0].dtype), run(*args))[1])
    return counts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("track", [False, True])
def test_autocast_of_a_cell(autocast, dtype, track):
    """Parameters, statistics and all gradients stay float32, and are those of the specification."""
    torch.manual_seed(0)
    cell = OnePathCell(16, affine=True, track_running_stats=track)
    truth = copy.deepcopy(cell).double()
    for parameter in truth.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(dtype).double()  # what rounding the weights does is not looked at here
    ops = [3, 2, 1, 4, 3, 2]
    x = torch.randn(4, 16, 8, 8).to(dtype).float().requires_grad_()
    wide = x.detach().double().requires_grad_()
    path, exact = (Path.from_ops(ops, dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    with torch.autocast("cpu", dtype):
        y = cell(x, path)
    assert y.dtype == dtype
    assert autocast == [dtype]
    dy = torch.randn_like(y)
    y.backward(dy)
    expected = reference.cell(wide, exact, list(truth.edges.values()), 4)
    expected.backward(dy.double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad), "gates": (path.gates.grad, exact.gates.grad)}
    pairs["offsets"] = (path.offsets.grad, exact.offsets.grad)
    pairs |= {
        name: (p.grad, q.grad)
        for (name, p), q in zip(cell.named_parameters(), truth.parameters(), strict=True)
        if p.grad is not None
    }
    for (name, buffer), other in zip(cell.named_buffers(), truth.buffers(), strict=True):
        if name.endswith(("mean", "var")):
            pairs[name] = (buffer, other)
    assert any(name.endswith("running_mean") for name in pairs) == track
    for name, (value, wanted) in pairs.items():
        assert value is y or value.dtype == torch.float32, f"{name}: {value.dtype}"
        error = (value.double() - wanted).norm().item()
        assert error <= 1.5 * NORMS[dtype] * wanted.norm().item(), f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_of_a_supernet(autocast, monkeypatch, dtype):
    """Within autocast a backward pass too; as close to float64 as plain modules are."""
    torch.manual_seed(0)
    net = nasbench201.Network(8, 1)
    truth = copy.deepcopy(net).double()
    x, target = torch.randn(8, 3, 16, 16), torch.arange(8)

    def gradients(network, images, type):
        path = Path.from_ops([3, 2, 1, 3, 3, 2], dtype=type)
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images, path), target)
        loss.backward()
        assert all(p.grad is None or p.grad.dtype == type for p in network.parameters())
        return loss.item(), torch.cat([path.gates.grad.flatten(), network.stem[0].weight.grad.flatten()]).double()

    wanted_loss, wanted = gradients(truth, x.double(), torch.float64)
    with torch.autocast("cpu", dtype):
        loss, native_gradients = gradients(net, x, torch.float32)
        assert autocast == [dtype]  # stem, cells and reductions in one call
        monkeypatch.setattr(native, "runs_natively", lambda x: False)
        _, plain_gradients = gradients(net, x, torch.float32)
        assert len(autocast) == 1
    assert abs(loss - wanted_loss) < NORMS[dtype]
    assert (native_gradients - wanted).norm() < 1.2 * (plain_gradients - wanted).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [OnePathRecurrentCell, DartsRecurrentCell])
def test_autocast_of_a_recurrent_cell(autocast, kind, dtype):
    """The same bits as from a cell that was converted, with gradients in float32."""
    torch.manual_seed(0)
    cell = kind(16, 2)
    converted = copy.deepcopy(cell).to(dtype)
    x, mask = torch.randn(4, 3, 16), torch.rand(3, 16).lt(0.7).float()
    path, other = Path.from_ops([1, 2, 3]), Path.from_ops([1, 2, 3])
    with torch.autocast("cpu", dtype):
        y, h = cell(x, path, None, mask, mask)
        cell(x, path.detach(), h)  # the state goes on
    expected, _ = converted(x.to(dtype), other, None, mask.to(dtype), mask.to(dtype))
    assert autocast == [dtype] * 3
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(path.gates.grad, other.gates.grad)
    for weight, wanted in zip(cell.weights, converted.weights, strict=True):
        assert weight.grad.dtype == torch.float32
        assert torch.equal(weight.grad, wanted.grad.float())
