"""Threads and processes: the same bits from run to run, almost the same from one thread count to another, and forked children."""

import functools
import os
import subprocess
import sys

import pytest
import torch
from comparison import natively

from advnas_ext import OnePathCell, Path, reference

FLOATS = [torch.float32, torch.float64]
OPS = [3, 1, 2, 4, 2, 3]
# Relative to the largest entry. Each thread sums the weight gradients of its images, so that these alone depend on the count. They
# are sums in float32 over thousands of pixels; F(4x4, 3x3) Winograd transforms such sums back, and their rounding with them.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
WINOGRAD_WEIGHT = 5  # times that


def run(threads, dtype, shape, ops=OPS, num_nodes=4):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cell = OnePathCell(shape[1], num_nodes=num_nodes, affine=True).to(dtype)
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    path = Path.from_ops(ops)
    with natively():
        y = cell(x, path)
    (y * torch.randn_like(y)).sum().backward()
    gradients = {name: p.grad for name, p in cell.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, "gates": path.gates.grad, **gradients}


def distances(found, expected):
    """Relative to the largest entry, by name."""
    assert found.keys() == expected.keys()
    return {
        name: ((value.double() - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name, value in found.items()
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("winograd", "01")
def test_bits_stay_from_run_to_run(monkeypatch, winograd, threads, dtype):
    monkeypatch.setenv("ADVNAS_WINOGRAD", winograd)
    shape = (13, 16, 12, 12)
    expected = run(threads, dtype, shape)
    kept = []
    for size in (100, 70_001, 1_000_003):
        kept.append(torch.full((size,), float("nan")))  # other addresses, and memory that was something else before
        found = run(threads, dtype, shape)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("winograd", "01")
@pytest.mark.parametrize("shape", [(13, 16, 16, 16), (8, 17, 9, 9), (5, 64, 8, 8)], ids=str)
@pytest.mark.parametrize("ops", [OPS, [3] * 6], ids=str)
def test_thread_counts_differ_by_rounding_alone(monkeypatch, ops, shape, winograd, dtype):
    monkeypatch.setenv("ADVNAS_WINOGRAD", winograd)
    expected = run(1, dtype, shape, ops)
    for threads in (2, 3, 16):
        for name, distance in distances(run(threads, dtype, shape, ops), expected).items():
            amplified = winograd == "1" and name.endswith("3.op.1.weight")
            bound = TOLERANCE[dtype] * (WINOGRAD_WEIGHT if amplified else 1)
            assert distance <= bound, f"{name}, {threads} threads: {distance:.1e}"


def plain(cell, x, path):
    return reference.cell(x, path, list(cell.edges.values()), cell.num_nodes)


@pytest.mark.parametrize("batch", [1, 2, 40], ids=lambda batch: f"{batch} images")
@pytest.mark.parametrize("threads", [16, (os.cpu_count() or 1) + 3])
def test_more_threads_than_images_or_cores(batch, threads):
    # All operations of one edge: no ReLU lies behind another operation, where float32 could flip it.
    every, shape = [[0, 1, 2, 3, 4]], (batch, 16, 9, 10)
    torch.manual_seed(0)
    cell = OnePathCell(16, num_nodes=2)
    x = torch.randn(shape)
    found = []
    for dtype, count in ((torch.float32, threads), (torch.float64, 1)):
        torch.set_num_threads(count)
        module, image = cell.to(dtype), x.detach().to(dtype, copy=True).requires_grad_()
        path = Path.from_ops(every)
        fused = dtype == torch.float32
        with natively(times=int(fused)):
            y = (module if fused else functools.partial(plain, module))(image, path)
        y.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if name.endswith("weight")}
        found.append({"y": y.detach(), "x": image.grad, "gates": path.gates.grad, **gradients})
        module.zero_grad()
    assert max(distances(*found).values()) < 2e-5


# In a process of its own, so that a child that hangs takes no other test with it. The parent has used its threads before the fork.
CHILD = """
import os, signal, sys, torch, advnas_ext
from torch.utils.data import DataLoader, Dataset

def gradients(x):
    torch.manual_seed(0)
    path = advnas_ext.Path.from_ops([3, 1, 2, 4, 2, 3])
    advnas_ext.OnePathCell(16)(x, path).square().sum().backward()
    return path.gates.grad

class Images(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.randn(16, 12, 12, generator=torch.Generator().manual_seed(index))

def collate(images):
    x = torch.stack(images)
    return x, gradients(x)

def fork():
    x = collate([Images()[i] for i in range(6)])[0]
    expected = gradients(x)
    child = os.fork()
    if child == 0:
        signal.alarm(40)  # ends a child that hangs
        status = 3
        try:
            torch.set_num_threads(1)
            status = 0 if torch.equal(gradients(x), expected) else 4
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"

def worker(start):
    gradients(torch.randn(6, 16, 12, 12))
    loader = DataLoader(Images(), 3, collate_fn=collate, num_workers=1, multiprocessing_context=start, timeout=50)
    batches = list(loader)
    assert len(batches) == 2
    for x, found in batches:
        torch.testing.assert_close(found, gradients(x), rtol=1e-6, atol=0)

if __name__ == "__main__":
    torch.set_num_threads(2)
    fork() if sys.argv[1] == "child" else worker(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("start", ["child", "fork", "spawn"])
def test_in_a_process_that_uses_threads(tmp_path, start):
    """In a child of os.fork after torch.set_num_threads(1), and in a worker of a DataLoader, which makes that call itself.

    Without it no parallel region of OpenMP ends in such a child, of plain PyTorch (any large ReLU) as little as of the cell: the
    child has no threads but thinks that it has those of its parent.
    """
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    process = subprocess.run([sys.executable, script, start], capture_output=True, text=True, timeout=90)
    assert process.returncode == 0, process.stderr
