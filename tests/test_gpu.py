"""On a GPU: numbers, streams, devices, graphs, memory. Everywhere else these tests skip; tests/test_cuda_pass.py runs the same
code on the host."""

import copy
import warnings

import pytest
import torch

from advnas.networks import nasbench201
from advnas.search import architecture_step, weight_step
from advnas.state import SearchState
from advnas.tasks import task_of
from advnas.tasks.image import ImageSearchConfig
from advnas_ext import _C, AdvantageEstimator, OnePathCell, Path, gate, native, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not _C.cuda, reason="needs an extension built for CUDA"),
]
NORMS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
OPS = [3, 2, 1, 4, 3, 2]


@pytest.fixture(autouse=True)
def exact():
    """The library's convolutions in float32, not in TensorFloat32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def backward(cell, x, path):
    y = cell(x, path)
    y.square().sum().backward()
    return y.detach()


@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (3, 17, 5, 7), (2, 3, 1, 9), (65, 64, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", NORMS, ids=str)
def test_a_cell_as_specified(dtype, shape):
    torch.manual_seed(0)
    cell = OnePathCell(shape[1]).to("cuda", dtype)
    truth = copy.deepcopy(cell).cpu().double()
    x = torch.randn(shape, dtype=dtype, device="cuda", requires_grad=True)
    wide = x.detach().cpu().double().requires_grad_()
    path, exact_path = (Path.from_ops(OPS, dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    y = cell(x, path)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected = reference.cell(wide, exact_path, list(truth.edges.values()), 4)
    expected.backward(dy.cpu().double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad)}
    pairs |= {name: (getattr(path, name).grad, getattr(exact_path, name).grad) for name in ("gates", "offsets")}
    for (name, p), q in zip(cell.named_parameters(), truth.parameters(), strict=True):
        if p.grad is not None and name.endswith("weight"):
            pairs[name] = (p.grad, q.grad)
    for name, (value, wanted) in pairs.items():
        error = ((value.cpu().double() - wanted).norm() / wanted.norm()).item()
        assert error < NORMS[dtype], f"{name}: {error}"


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("size", [1, 7, 4096, 100_003])
def test_a_gate_on_either_side(dtype, size):
    torch.manual_seed(0)
    h, dy = torch.randn(2, size, dtype=dtype, device="cuda").unbind()
    for place in ("cpu", "cuda"):
        g, x = torch.tensor(1.5, device=place, requires_grad=True), h.clone().requires_grad_()
        gate(x, g).backward(dy)
        expected = (dy.double() * h.double()).sum()
        assert g.grad.device.type == place
        assert abs(g.grad.item() - expected.item()) < 1e-5 * (dy.double() * h.double()).abs().sum().item() + 1e-6
        torch.testing.assert_close(x.grad, dy * 1.5)


def test_the_same_bits_from_run_to_run():
    torch.manual_seed(0)
    cell, x = OnePathCell(32).cuda(), torch.randn(32, 32, 16, 16, device="cuda")
    torch.backends.cudnn.deterministic = True
    runs = []
    for _ in range(3):
        path = Path.from_ops(OPS)
        runs.append((backward(cell, x, path), path.gates.grad))
    torch.backends.cudnn.deterministic = False
    for y, gates in runs[1:]:
        assert torch.equal(y, runs[0][0])
        assert torch.equal(gates, runs[0][1])


def test_a_step_crosses_to_the_host_once():
    net = nasbench201.Network(8, 1).cuda()
    est = AdvantageEstimator(num_edges=6, num_ops=5)
    x, target = torch.randn(8, 3, 32, 32, device="cuda"), torch.randint(10, (8,), device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        path = est.sample()
        torch.nn.functional.cross_entropy(net(x, path), target).backward(inputs=[path.gates])
    copies = [event.name for event in profile.events() if "DtoH" in event.name]
    assert len(copies) == 1, copies


def test_another_stream():
    """Work on a stream of its own, and one that consumes what it made."""
    torch.manual_seed(0)
    cell, x = OnePathCell(16).cuda(), torch.randn(64, 16, 32, 32, device="cuda")
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


def test_capture_in_a_graph():
    torch.manual_seed(0)
    cell, x = OnePathCell(16).cuda(), torch.randn(8, 16, 8, 8, device="cuda", requires_grad=True)
    path = Path.from_ops(OPS)
    gates = path.gates_on("cuda")  # before the capture: it copies from the host

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


def test_out_of_memory_is_torchs_error():
    cell = OnePathCell(16).cuda()
    free, _ = torch.cuda.mem_get_info()
    images = free // (16 * 32 * 32 * 4) * 2 // 3  # the input fits, the nodes do not
    x = torch.empty(images, 16, 32, 32, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        cell(x, Path.from_ops(OPS))
    del x
    torch.cuda.empty_cache()
    backward(cell, torch.randn(2, 16, 8, 8, device="cuda"), Path.from_ops(OPS))  # and goes on


def test_float64_runs_as_specified():
    torch.manual_seed(0)
    cell, path = OnePathCell(8).cuda().double(), Path.from_ops(OPS)
    x = torch.randn(2, 8, 5, 5, device="cuda", dtype=torch.float64)
    torch.testing.assert_close(cell(x, path), reference.cell(x, path, list(cell.edges.values()), 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_natively(dtype, monkeypatch):
    torch.manual_seed(0)
    cell, path = OnePathCell(8).cuda(), Path.from_ops(OPS)
    x = torch.randn(2, 8, 5, 5, device="cuda")
    types, run = [], native._run
    monkeypatch.setattr(native, "_run", lambda x, *rest: (types.append(x.dtype), run(x, *rest))[1])
    expected = cell(x, path)
    with torch.autocast("cuda", dtype):
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


@pytest.mark.parametrize("estimator", ["advantage", "rloo"])
@pytest.mark.parametrize("amp", [None, "bfloat16"])
def test_a_search_waits_for_the_logits_only(amp, estimator):
    settings = {"data": "digits", "channels": 4, "cells": 1, "batch_size": 16, "device": "cuda", "amp": amp}
    config = ImageSearchConfig().with_settings({**settings, "estimator": estimator}, "this test")
    task = task_of(config)
    state = SearchState(config, task)
    for _ in range(3):  # what is made once
        weight_step(task, state)
        architecture_step(task, state)
    assert waits(lambda: weight_step(task, state)) == 0
    # The loss and the gates' gradients cross to the host, for each path.
    assert waits(lambda: architecture_step(task, state)) <= 2 * state.estimator.paths_per_batch
