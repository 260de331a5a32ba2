"""On a GPU: numbers, streams, devices, graphs, memory. Everywhere else these tests skip.

ADVNAS_TEST_DEVICE=shim runs on the host what needs no device, our kernels on tests/cuda_shim, so that the tests themselves are
tested; benchmarks/cuda/quarter_hour.sh --dry does so.
"""

import copy
import os
import warnings

import pytest
import torch
from benchmarks.cuda.own import own_conv3x3

from advnas.networks import nasbench201
from advnas.search import architecture_step, weight_step
from advnas.state import SearchState
from advnas.tasks import task_of
from advnas.tasks.image import ImageSearchConfig
from advnas_ext import (
    _C,
    AdvantageEstimator,
    DartsRecurrentCell,
    OnePathCell,
    OnePathRecurrentCell,
    Path,
    gate,
    native,
    recurrent,
    reference,
)
from advnas_ext.operations import OPERATIONS

ON_SHIM = os.environ.get("ADVNAS_TEST_DEVICE") == "shim"
DEVICE = "cpu" if ON_SHIM else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON_SHIM or torch.cuda.is_available()), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not (ON_SHIM or _C.cuda), reason="needs an extension built for CUDA"),
]
only_on_a_gpu = pytest.mark.skipif(ON_SHIM, reason="needs an NVIDIA GPU")
NORMS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
OPS = [3, 2, 1, 4, 3, 2]


@pytest.fixture(autouse=True)
def exact():
    """The library's convolutions in float32, not in TensorFloat32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=["library", "own"])
def convolutions(request, exact, engine):
    """Either way 3x3 convolutions run; our own round float32 to TF32."""
    if request.param == "library":
        yield
        return
    torch.backends.cudnn.allow_tf32 = True
    with own_conv3x3():
        yield


@pytest.fixture(autouse=True)
def engine(request):
    """What runs natively runs on the shim where that is asked for."""
    if not ON_SHIM:
        yield
        return
    with request.getfixturevalue("launches").counted():
        yield


def backward(cell, x, path):
    y = cell(x, path)
    y.square().sum().backward()
    return y.detach()


def compare(pairs, tolerance, sums=0.0):
    """Value and what is expected, by name; ``None`` where there is no gradient. ``sums``: how large the gates' and the offsets'
    gradients are at least taken for, sums of terms that may cancel."""
    for name, (value, wanted) in pairs.items():
        if wanted is None or wanted.norm() == 0:
            continue
        scale = max(wanted.norm().item(), sums if name in ("gates", "offsets") else 0)
        error = (value.detach().cpu().double() - wanted).norm().item() / scale
        assert error < tolerance, f"{name}: {error}"


def compare_cell(cell, shape, ops, dtype, tolerance=None):
    """Output and gradients of a cell against the specification in float64."""
    cell.to(DEVICE, dtype)
    truth = copy.deepcopy(cell).cpu().double()
    x = torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    wide = x.detach().cpu().double().requires_grad_()
    path, exact_path = (Path.from_ops(ops, dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    y = cell(x, path)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected = reference.cell(wide, exact_path, list(truth.edges.values()), cell.num_nodes)
    expected.backward(dy.cpu().double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad)}
    pairs |= {name: (getattr(path, name).grad, getattr(exact_path, name).grad) for name in ("gates", "offsets")}
    for (name, p), q in zip(cell.named_parameters(), truth.parameters(), strict=True):
        if p.grad is not None and name.endswith("weight"):
            pairs[name] = (p.grad, q.grad)
    compare(pairs, tolerance or NORMS[dtype], 0.1 * dy.norm().item())


@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (3, 17, 5, 7), (2, 3, 1, 9), (65, 64, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", NORMS, ids=str)
def test_a_cell_as_specified(dtype, shape):
    torch.manual_seed(0)
    compare_cell(OnePathCell(shape[1]), shape if not ON_SHIM else (min(shape[0], 4), *shape[1:]), OPS, dtype)


@pytest.mark.parametrize(
    "shape", [(4, 16, 8, 8), (3, 48, 5, 7), (65, 64, 8, 8), (64, 32, 16, 16), (33, 16, 32, 32)], ids=str
)
@pytest.mark.parametrize("dtype", NORMS, ids=str)
def test_our_own_3x3_convolutions(dtype, shape):
    """In float32 with TF32, whose mantissa is that of float16."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = True
    cell = OnePathCell(shape[1], ("nor_conv_3x3",), num_nodes=2).to(memory_format=torch.channels_last)
    shape = shape if not ON_SHIM else (min(shape[0], 4), *shape[1:])
    with own_conv3x3():
        compare_cell(cell, shape, [0], dtype, max(NORMS[dtype], NORMS[torch.float16]))


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation(op, dtype):
    torch.manual_seed(0)
    compare_cell(OnePathCell(16, (op,), num_nodes=2), (3, 16, 6, 5), [0], dtype)


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("kind", [OnePathRecurrentCell, DartsRecurrentCell])
@pytest.mark.parametrize("size", [(3, 4, 64), (2, 3, 5)], ids=str)
def test_a_recurrent_cell(kind, dtype, size):
    torch.manual_seed(0)
    cell = kind(size[-1], 3).to(DEVICE, dtype)
    for weight in cell.weights:
        torch.nn.init.normal_(weight, std=size[-1] ** -0.5)
    truth = copy.deepcopy(cell).cpu().double()
    functions = [recurrent.ACTIVATIONS[op].function for op in cell.ops]
    x, dy = torch.randn(2, *size, dtype=dtype, device=DEVICE).unbind()
    x.requires_grad_()
    wide = x.detach().cpu().double().requires_grad_()
    path, exact = (Path.from_ops([1, 2, 3, 4, 1, 0], dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    specification = reference.recurrent_cell if kind is OnePathRecurrentCell else reference.darts_recurrent_cell
    y, expected = cell(x, path)[0], specification(wide, exact, wide[0] * 0, list(truth.weights), functions)[0]
    y.backward(dy)
    expected.backward(dy.cpu().double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad)}
    pairs |= {name: (getattr(path, name).grad, getattr(exact, name).grad) for name in ("gates", "offsets")}
    pairs |= {name: (p.grad, dict(truth.named_parameters())[name].grad) for name, p in cell.named_parameters()}
    compare(pairs, 5 * NORMS[dtype])  # rounding adds up over the steps


@pytest.mark.parametrize("reduction", ["residual", "light"])
def test_a_supernet_runs_in_one_call(reduction, monkeypatch):
    """Stem, cells and reductions in one call, with the loss and the gates' gradients of plain PyTorch."""
    torch.manual_seed(0)
    net = nasbench201.Network(8, 1, reduction=reduction).to(DEVICE)
    x, target = torch.randn(8, 3, 17, 17, device=DEVICE), torch.arange(8, device=DEVICE)
    calls, run = [], native._run
    monkeypatch.setattr(native, "_run", lambda *given: (calls.append(given), run(*given))[1])
    results = []
    for runs_natively in (native.runs_natively, lambda x: False):
        monkeypatch.setattr(native, "runs_natively", runs_natively)
        path = Path.from_ops(OPS)
        loss = torch.nn.functional.cross_entropy(net(x, path), target)
        loss.backward()
        results.append((loss, path.gates.grad, net.stem[0].weight.grad))
        net.zero_grad()
    assert len(calls) == 1
    (loss, gates, weight), (expected, *gradients) = results
    assert abs(loss - expected) < 1e-4
    # They jump where a ReLU's input changes its sign by rounding.
    for value, wanted in zip((gates, weight), gradients, strict=True):
        assert (value - wanted).norm() < 5e-2 * wanted.norm()


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("size", [1, 7, 4096, 100_003])
def test_a_gate_on_either_side(dtype, size):
    if ON_SHIM and dtype != torch.float32:
        pytest.skip("on the host a gate takes float32 and float64; the rest is plain PyTorch's")
    torch.manual_seed(0)
    h, dy = torch.randn(2, size, dtype=dtype, device=DEVICE).unbind()
    for place in dict.fromkeys(("cpu", DEVICE)):
        g, x = torch.tensor(1.5, device=place, requires_grad=True), h.clone().requires_grad_()
        gate(x, g).backward(dy)
        expected = (dy.double() * h.double()).sum()
        assert g.grad.device.type == place
        assert abs(g.grad.item() - expected.item()) < 1e-5 * (dy.double() * h.double()).abs().sum().item() + 1e-6
        torch.testing.assert_close(x.grad, dy * 1.5)


@pytest.mark.usefixtures("convolutions")
def test_the_same_bits_from_run_to_run():
    torch.manual_seed(0)
    cell, x = OnePathCell(32).to(DEVICE), torch.randn(32, 32, 16, 16, device=DEVICE)
    torch.backends.cudnn.deterministic = True
    runs = []
    for _ in range(3):
        path = Path.from_ops(OPS)
        runs.append((backward(cell, x, path), path.gates.grad))
    torch.backends.cudnn.deterministic = False
    for y, gates in runs[1:]:
        assert torch.equal(y, runs[0][0])
        assert torch.equal(gates, runs[0][1])


@only_on_a_gpu
def test_a_step_crosses_to_the_host_once():
    net = nasbench201.Network(8, 1).to(DEVICE)
    est = AdvantageEstimator(num_edges=6, num_ops=5)
    x, target = torch.randn(8, 3, 32, 32, device=DEVICE), torch.randint(10, (8,), device=DEVICE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        path = est.sample()
        torch.nn.functional.cross_entropy(net(x, path), target).backward(inputs=[path.gates])
    copies = [event.name for event in profile.events() if "DtoH" in event.name]
    assert len(copies) == 1, copies


@only_on_a_gpu
def test_another_stream():
    """Work on a stream of its own, and one that consumes what it made."""
    torch.manual_seed(0)
    cell, x = OnePathCell(16).to(DEVICE), torch.randn(64, 16, 32, 32, device=DEVICE)
    path = Path.from_ops(OPS)
    expected, gates = backward(cell, x, path), path.gates.grad
    work, consumer = torch.cuda.Stream(), torch.cuda.Stream()
    work.wait_stream(torch.cuda.current_stream())
    path = Path.from_ops(OPS)
    with torch.cuda.stream(work):
        y = backward(cell, x, path)
    consumer.wait_stream(work)
    with torch.cuda.stream(consumer):
        total = y.double().sum()
    consumer.synchronize()
    assert total.item() == expected.double().sum().item()
    torch.testing.assert_close(path.gates.grad, gates)


@only_on_a_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device():
    """While the first one is the current one."""
    torch.manual_seed(0)
    cell, x = OnePathCell(16), torch.randn(8, 16, 8, 8)
    results = []
    for device in ("cuda:0", "cuda:1"):
        path = Path.from_ops(OPS)
        y = backward(copy.deepcopy(cell).to(device), x.to(device), path)
        assert y.device == torch.device(device)
        results.append((y.cpu(), path.gates.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@only_on_a_gpu
@pytest.mark.usefixtures("convolutions")
def test_capture_in_a_graph():
    torch.manual_seed(0)
    cell, x = OnePathCell(16).to(DEVICE), torch.randn(8, 16, 8, 8, device=DEVICE, requires_grad=True)
    path = Path.from_ops(OPS)
    gates = path.gates_on(x.device)  # before the capture: it copies from the host

    def step():
        y = cell(x, path)
        return y, *torch.autograd.grad(y.square().sum(), [x, gates])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        torch.testing.assert_close(one, other)


@only_on_a_gpu
def test_out_of_memory_is_torchs_error():
    cell = OnePathCell(16).to(DEVICE)
    free, _ = torch.cuda.mem_get_info()
    images = free // (16 * 32 * 32 * 4) * 2 // 3  # the input fits, the nodes do not
    x = torch.empty(images, 16, 32, 32, device=DEVICE)
    with pytest.raises(torch.OutOfMemoryError):
        cell(x, Path.from_ops(OPS))
    del x
    torch.cuda.empty_cache()
    backward(cell, torch.randn(2, 16, 8, 8, device=DEVICE), Path.from_ops(OPS))  # and goes on


def test_float64_runs_as_specified():
    torch.manual_seed(0)
    cell, path = OnePathCell(8).to(DEVICE).double(), Path.from_ops(OPS)
    x = torch.randn(2, 8, 5, 5, device=DEVICE, dtype=torch.float64)
    torch.testing.assert_close(cell(x, path), reference.cell(x, path, list(cell.edges.values()), 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_natively(dtype, monkeypatch):
    torch.manual_seed(0)
    cell, path = OnePathCell(8).to(DEVICE), Path.from_ops(OPS)
    x = torch.randn(2, 8, 5, 5, device=DEVICE)
    types, run = [], native._run
    monkeypatch.setattr(native, "_run", lambda x, *rest: (types.append(x.dtype), run(x, *rest))[1])
    expected = cell(x, path)
    with torch.autocast(DEVICE, dtype):
        y = cell(x, path)
    assert types == [torch.float32, dtype]
    y.float().square().sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in cell.parameters())
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


def waits(step):
    """How often ``step`` waits for the device, by torch's own count."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@only_on_a_gpu
@pytest.mark.parametrize("estimator", ["advantage", "rloo"])
@pytest.mark.parametrize("amp", [None, "bfloat16"])
def test_a_search_waits_for_the_logits_only(amp, estimator):
    settings = {"data": "digits", "channels": 4, "cells": 1, "batch_size": 16, "device": DEVICE, "amp": amp}
    config = ImageSearchConfig().with_settings({**settings, "estimator": estimator}, "this test")
    task = task_of(config)
    state = SearchState(config, task)
    for _ in range(3):  # what is made once
        weight_step(task, state)
        architecture_step(task, state)
    assert waits(lambda: weight_step(task, state)) == 0
    # The loss and the gates' gradients cross to the host, for each path.
    assert waits(lambda: architecture_step(task, state)) <= 2 * state.estimator.paths_per_batch
