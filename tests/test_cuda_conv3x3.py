"""Cells whose 3x3 convolutions are our own for CUDA, on the host's shim, beside the specification in float64; when they run, and
when the library's do.
"""

import copy
import subprocess
import sys
from pathlib import Path as FilePath

import pytest
import torch
from benchmarks.cuda.own import own_conv3x3

from advnas_ext import OnePathCell, Path, reference

pytestmark = pytest.mark.usefixtures("one_thread")
# Of the norm: what rounding of inputs and weights leaves, in float32 to TF32, and ReLU inputs that change sign by it.
NORMS = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 6e-2}
KERNELS = {"conv3x3_forward_kernel", "conv3x3_input_kernel", "conv3x3_weight_kernel"}


@pytest.fixture
def engine(launches):
    """What runs natively runs on the shim. Gives the kernels launched since it was asked last."""
    module = launches.module

    def kernels():
        found = {kernel.strip("(").split("<")[0] for kernel, *_ in module.launches()}
        module.clear_launches()
        return found

    with launches.counted():
        yield kernels


def compare(cell, shape, ops, limit):
    """Output and all gradients, in the norm of the difference."""
    dtype = next(cell.parameters()).dtype
    cell.zero_grad()
    truth = copy.deepcopy(cell).double()
    x, dy = torch.randn(2, *shape).to(dtype).unbind()
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    path, exact = (Path.from_ops(ops, dtype=t).with_offsets() for t in (torch.float32, torch.float64))
    y, expected = cell(x, path), reference.cell(wide, exact, list(truth.edges.values()), cell.num_nodes)
    y.backward(dy)
    expected.backward(dy.double())
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad)}
    pairs |= {name: (getattr(path, name).grad, getattr(exact, name).grad) for name in ("gates", "offsets")}
    for (name, p), q in zip(cell.named_parameters(), truth.parameters(), strict=True):
        if p.grad is not None and not name.endswith("bias"):
            pairs[name] = (p.grad, q.grad)
    for name, (value, wanted) in pairs.items():
        scale = wanted.norm().item()
        if name in ("gates", "offsets"):
            scale = max(scale, 0.1 * dy.norm().item())  # sums of terms that may cancel
        error = (value.double() - wanted).norm().item()
        assert error <= limit * scale, f"{name}: {error / scale}"
    return pairs


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 48, 5, 7), (1, 64, 3, 1), (5, 32, 9, 4)], ids=str)
def test_one_convolution(engine, shape, dtype):
    torch.manual_seed(0)
    cell = OnePathCell(shape[1], ("nor_conv_3x3",), num_nodes=2, affine=True, track_running_stats=True).to(dtype)
    with own_conv3x3():
        pairs = compare(cell, shape, [0], NORMS[dtype])
    assert "edges.1<-0.0.op.1.weight" in pairs
    assert engine() >= KERNELS


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("ops", [[3, 2, 1, 4, 3, 2], [3, 3, 3, 3, 3, 3], [1, 3, 3, 2, 3, 4]], ids=str)
def test_a_cell(engine, ops, layout, dtype):
    """Nodes that 3x3 convolutions read alone, and beside skip connections, poolings and 1x1 convolutions."""
    torch.manual_seed(0)
    cell = OnePathCell(16).to(dtype, memory_format=layout)
    with own_conv3x3():
        compare(cell, (8, 16, 8, 8), ops, 3 * NORMS[dtype])
    assert engine() >= KERNELS


def test_evaluation(engine):
    torch.manual_seed(0)
    cell = OnePathCell(16, affine=True, track_running_stats=True).eval()
    with own_conv3x3():
        compare(cell, (2, 16, 6, 6), [3, 2, 3, 4, 3, 1], NORMS[torch.float32])
    assert engine() >= KERNELS | {"fixed_kernel"}


def test_only_what_is_wanted(engine):
    torch.manual_seed(0)
    cell, path = OnePathCell(16, ("nor_conv_3x3",), num_nodes=3), Path.from_ops([0, 0, 0])
    x = torch.randn(2, 16, 5, 5)
    with own_conv3x3():
        cell(x, path).square().sum().backward(inputs=[path.gates])
        architecture = engine()
        cell(x, path.detach()).square().sum().backward()
    assert "conv3x3_input_kernel" in architecture
    assert "conv3x3_weight_kernel" not in architecture
    assert engine() >= KERNELS


def test_the_same_bits_from_run_to_run(engine):
    torch.manual_seed(0)
    cell, x = OnePathCell(16), torch.randn(8, 16, 8, 8)
    results = []
    for _ in range(2):
        path = Path.from_ops([3, 2, 4, 3, 3, 2])
        with own_conv3x3():
            y = cell(x, path)
        y.square().sum().backward()
        results.append((y.detach(), path.gates.grad, cell.edges["1<-0"][3].op[1].weight.grad.clone()))
        cell.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_no_images(engine):
    cell, path = OnePathCell(16), Path.from_ops([3, 3, 1, 3, 3, 2])
    x = torch.empty(0, 16, 5, 5, requires_grad=True)
    with own_conv3x3():
        cell(x, path).sum().backward()
    assert torch.equal(path.gates.grad, torch.zeros(6, 1))
    assert torch.equal(cell.edges["1<-0"][3].op[1].weight.grad, torch.zeros(16, 16, 3, 3))


def test_a_backward_pass_goes_as_its_forward_pass_went(engine):
    torch.manual_seed(0)
    cell, x = OnePathCell(16, ("nor_conv_3x3",), num_nodes=2), torch.randn(2, 16, 5, 5, requires_grad=True)
    with own_conv3x3():
        y = cell(x, Path.from_ops([0]))
    z = cell(x, Path.from_ops([0]))
    engine()
    with own_conv3x3():
        z.sum().backward()
    assert not engine() & KERNELS
    y.sum().backward()
    assert engine() >= KERNELS - {"conv3x3_forward_kernel"}


@pytest.fixture
def no_tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("no_tf32")
def test_float32_runs_in_tf32_only_where_that_is_allowed(engine):
    torch.manual_seed(0)
    cell = OnePathCell(16, ("nor_conv_3x3",), num_nodes=2)
    with own_conv3x3():
        compare(cell, (2, 16, 6, 6), [0], 1e-5)
        assert not engine() & KERNELS
        compare(cell.bfloat16(), (2, 16, 6, 6), [0], NORMS[torch.bfloat16])
    assert engine() >= KERNELS


@pytest.mark.parametrize(
    "channels, op",
    [(8, "nor_conv_3x3"), (24, "nor_conv_3x3"), (80, "nor_conv_3x3"), (16, "dil_conv_3x3"), (16, "sep_conv_3x3")],
)
def test_what_the_library_runs(engine, channels, op):
    torch.manual_seed(0)
    cell = OnePathCell(channels, (op,), num_nodes=2)
    with own_conv3x3():
        cell(torch.randn(2, channels, 5, 5), Path.from_ops([0])).sum().backward()
    assert engine() >= {"gradient_kernel"}
    assert not engine() & KERNELS


SCRIPT = """
import torch
from advnas_ext import OnePathCell, Path
from benchmarks.cuda import shim
with shim.launches().counted() as found:
    OnePathCell(16, num_nodes=2)(torch.randn(2, 16, 4, 4), Path.from_ops([3]))
print(sum(launch.kernel.startswith("conv3x3") for launch in found))
"""


@pytest.mark.parametrize("choice, said", [(None, "0"), ("library", "0"), ("own", "1"), ("yes", None)])
def test_the_variable(launches, monkeypatch, choice, said):
    monkeypatch.delenv("ADVNAS_CUDA_CONV", raising=False)
    if choice is not None:
        monkeypatch.setenv("ADVNAS_CUDA_CONV", choice)
    monkeypatch.setenv("PYTHONPATH", "python")
    root = FilePath(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root)
    if said is not None:
        assert done.stdout.strip() == said, done.stderr
        return
    assert done.returncode == 1
    message = "advnas_ext: ADVNAS_CUDA_CONV must be own or library, got yes; unset it for the library's convolutions"
    assert f"ValueError: {message}" in done.stderr
