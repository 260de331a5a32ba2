"""What surrounds a call: tracing, export, transforms, checkpointing, default devices, optimizers. Natively where that is right."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
from comparison import counted, in_plain_pytorch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import advnas_ext
from advnas.networks.nasbench201 import Network
from advnas_ext import DartsRecurrentCell, OnePathCell, OnePathRecurrentCell, Path, native

OPS = [3, 2, 4, 1, 3, 2]
RECURRENT_CELLS = (OnePathRecurrentCell, DartsRecurrentCell)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])


def make_found(seed: int = 0, ops: list[int] = OPS) -> Network:
    """The network of a found cell, as it is trained from scratch."""
    torch.manual_seed(seed)
    return Network(4, 1, affine=True, track_running_stats=True).fix(torch.tensor(ops))


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    """One entry for each native call of a graph."""
    return counted(monkeypatch, native, "_run")


def flops(model, *inputs):
    with FlopCounterMode(display=False) as counter:
        out = model(*inputs)
        (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
    return counter.get_total_flops()


def test_flops_are_counted(x):
    network = make_found()
    found = flops(network, x)
    with in_plain_pytorch():
        assert found == flops(network, x) > 100_000


@pytest.mark.parametrize("kind", RECURRENT_CELLS)
def test_flops_of_recurrent_cells_are_counted(kind):
    cell = kind(8, 2)
    arguments = torch.randn(3, 2, 8), Path.from_ops([1, 2, 3])
    found = flops(cell, *arguments)
    with in_plain_pytorch():
        assert found == flops(cell, *arguments) > 1000


@each_mode
def test_jit_trace(x, training):
    network = make_found().train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(copy.deepcopy(network), (x,), check_trace=False)
    torch.testing.assert_close(traced(2 * x), network(2 * x))


def make_deployed(seed: int) -> tuple[Network, torch.Tensor]:
    """The network of a random cell, with running statistics, and images for it."""
    generator = torch.Generator().manual_seed(seed)
    network, x = (
        make_found(seed, torch.randint(5, (6,), generator=generator).tolist()),
        torch.randn(4, 3, 8, 8, generator=generator),
    )
    for _ in range(20):
        network(x)
    return network.eval(), x


def check_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("seed", range(20))
def test_export(seed):
    network, x = make_deployed(seed)
    exported = torch.export.export(network, (x,)).module()
    check_equal(exported(2 * x), network(2 * x))


@pytest.mark.parametrize("seed", range(20))
def test_onnx(seed):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -r requirements.txt")
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -r requirements.txt")
    network, x = make_deployed(seed)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: (2 * x).numpy()})
    check_equal(torch.from_numpy(found), network(2 * x).detach())


def test_compiled_it_still_runs_natively(x, calls):
    network, found = make_found(), []
    for run in (torch.compile(network, backend="eager"), network):
        y = run(x)
        y.square().sum().backward()
        found.append([y, *(parameter.grad for parameter in network.parameters())])
        network.zero_grad()
    assert len(calls) == 2
    for compiled, eager in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)
        assert eager.any()


def test_transforms(x):
    network, x = make_found().eval().double(), x.double()
    parameters = dict(network.named_parameters())
    torch.testing.assert_close(functional_call(network, parameters, (x,)), network(x))

    def loss(weights):
        return functional_call(network, weights, (x,)).square().sum()

    found = grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    torch.testing.assert_close(vmap(lambda image: network(image[None])[0])(x), network(x))
    difference = (network(x + 1e-3 * x) - network(x - 1e-3 * x)) / 2e-3
    torch.testing.assert_close(jvp(network, (x,), (x,))[1], difference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", RECURRENT_CELLS)
def test_transforms_of_recurrent_cells(kind):
    cell, path = kind(4, 2), Path.from_ops([1, 2, 3], requires_grad=False)
    x = torch.randn(3, 2, 4)
    batched = vmap(lambda row: cell(row[:, None], path)[0][:, 0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(batched, cell(x, path)[0])


def test_with_other_weights_it_still_runs_natively(x, calls):
    network = make_found()
    doubled = {name: 2 * parameter.detach() for name, parameter in network.named_parameters()}
    functional_call(network, doubled, (x,))
    assert len(calls) == 1


@each_mode
def test_meta_and_fake_tensors_have_shapes(x, training, calls):
    network = make_found().train(training)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for images in (x, mode.from_tensor(x)):
            y = network(images)
            assert isinstance(y, FakeTensor)
            assert y.shape == (2, 10)
    assert not calls
    assert network.to("meta")(x.to("meta")).shape == (2, 10)


def test_a_default_device():
    """Paths and estimators are on the host whatever it is, and a default device alone keeps nothing from running natively."""
    script = """
import torch, advnas_ext
from advnas_ext import native
torch.set_default_device("meta")
ran = []
run, native._run = native._run, lambda *arguments: ran.append(1) or run(*arguments)
cell = advnas_ext.OnePathCell(4).to_empty(device="cpu")
for name, kind in advnas_ext.ESTIMATORS.items():
    estimator = kind(6, 5, total_steps=9)
    path = estimator.sample(torch.Generator(device="cpu").manual_seed(0))
    assert path.ops.device.type == path.gates.device.type == "cpu", name
    y = cell(torch.ones(2, 4, 6, 6, device="cpu"), path)
    y.sum().backward()
    for tensor in (path.gates, path.offsets):
        if tensor is not None:
            tensor.grad = torch.ones_like(tensor)
    estimator.assign_grad(path, 1.0)
    estimator.after_step(path)
    assert estimator.logits.device.type == "cpu"
assert advnas_ext.Path.from_ops([1, 2, 3]).ops.device.type == "cpu"
print(len(ran) == len(advnas_ext.ESTIMATORS))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stdout + done.stderr


# What waits for the backward pass.


def make_cells() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(OnePathCell(4) for _ in range(3))


def gradients(cells, x, through):
    x, path = x.clone().requires_grad_(), Path.from_ops(OPS)
    y = through(x, path)
    y.square().sum().backward()
    found = {"x": x.grad, "gates": path.gates.grad}
    found.update({name: p.grad for name, p in cells.named_parameters() if p.grad is not None})
    cells.zero_grad()
    return found


def in_order(cells, x, path):
    for cell in cells:
        x = cell(x, path)
    return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, calls):
    cells, x = make_cells(), torch.randn(2, 4, 8, 8)
    expected = gradients(cells, x, lambda x, path: in_order(cells, x, path))
    runs = len(calls)
    found = gradients(
        cells, x, lambda x, path: checkpoint(lambda y: in_order(cells, y, path), x, use_reentrant=reentrant)
    )
    assert len(calls) == runs + 6  # natively, and once more in the backward pass
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_saved_tensors_can_be_moved():
    """As save_on_cpu moves them: all that waits is packed and comes back."""
    cells, x = make_cells(), torch.randn(2, 4, 8, 8)
    expected = gradients(cells, x, lambda x, path: in_order(cells, x, path))
    packed = []

    def pack(tensor):
        packed.append(tensor.numel())
        return tensor.clone()

    def through(x, path):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.clone()):
            return in_order(cells, x, path)

    found = gradients(cells, x, through)
    assert sum(packed) > 3 * 3 * x.numel()  # activations, not weights only
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def waiting_bytes(function) -> int:
    """Bytes of the tensors that nobody but the backward pass keeps, after ``function``."""
    script = f"""
import torch, advnas_ext, gc, resource
from torch.utils.checkpoint import checkpoint
torch.set_num_threads(1)
cells = [advnas_ext.OnePathCell(16) for _ in range(8)]
path = advnas_ext.Path.from_ops([3] * 6)
x = torch.randn(16, 16, 32, 32, requires_grad=True)
def status():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
checkpoint(cells[0], x, path, use_reentrant=False).sum().backward()
before = status()
y = x
for cell in cells:
    y = {function}
y.sum().backward()
print(status() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    return 1024 * int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_checkpointing_saves_memory():
    without = waiting_bytes("cell(y, path)")
    assert waiting_bytes("checkpoint(cell, y, path, use_reentrant=False)") < 0.6 * without


def test_a_gradient_that_is_negated_lazily(x):
    cell, path = OnePathCell(3), Path.from_ops(OPS)
    lazily, plainly = (x.clone().requires_grad_() for _ in range(2))
    dy = torch.randn_like(x)
    cell(lazily, path).backward(torch._neg_view(dy))
    cell(plainly, path).backward(-dy)
    assert torch.equal(lazily.grad, plainly.grad)
    assert torch.equal(cell(torch._neg_view(x), path), cell(-x, path))


# Training tools.


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0])
def test_update_bn(momentum):
    """Statistics of a data set, as SWA takes them: the mean over batches with momentum None, which update_bn sets itself."""
    network, batches = make_found(), [torch.randn(4, 3, 8, 8) for _ in range(5)]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    twin = copy.deepcopy(network)
    update_bn(batches, network)
    with in_plain_pytorch():
        update_bn(batches, twin)
    for (name, found), expected in zip(network.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)
    assert not torch.equal(network.stem[1].running_var, torch.ones(4))
    assert int(network.stem[1].num_batches_tracked) == 5


def test_parameters_keep_their_layout(x):
    """So that p.view(-1) works, as in parameters_to_vector, LBFGS and many home-made tools, and for gradients likewise."""
    network = make_found()
    vector = nn.utils.parameters_to_vector(network.parameters())
    nn.utils.vector_to_parameters(0.5 * vector, network.parameters())
    network(x).square().sum().backward()
    assert all(parameter.grad.view(-1).shape == parameter.view(-1).shape for parameter in network.parameters())
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = network(x).square().sum()
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


# What it says of itself.


def test_explain_names_what_does_not_run_natively():
    network = Network(4, 1)
    assert set(advnas_ext.explain(network).values()) == {None}
    network.cells[0].edges["2<-1"][3].op[0] = nn.SiLU()
    network.cells[2].edges["1<-0"][2].op[1].register_forward_hook(lambda module, given, out: out)
    network.cells[1].downsample[1] = nn.Identity()
    network.lastact[1] = nn.GELU()
    network.stem[0].padding_mode = "circular"
    network.cells[4].edges["3<-2"][1] = nn.Hardtanh()
    found = {name: obstacle for name, obstacle in advnas_ext.explain(network).items() if obstacle is not None}
    assert found == {
        "stem": "0 pads by (1, 1) with circular, not by 1 with zeros",
        "cells.0.edges.2<-1.3": "0 is a SiLU, not a ReLU",
        "cells.1": "1 is a Identity, not a Conv2d",
        "cells.2.edges.1<-0.2": "1 has hooks",
        "cells.4.edges.3<-2.1": "Hardtanh has no native kernels",
        "lastact": "1 is a GELU, not a ReLU",
    }


@pytest.mark.parametrize("kind", RECURRENT_CELLS)
def test_explain_of_recurrent_cells(kind):
    class Own(nn.Parameter):
        pass

    assert advnas_ext.explain(kind(4)) == {"": None}
    model = nn.ModuleDict({"first": kind(4), "second": kind(4), "third": kind(4)})
    model["second"].weights[1] = Own(torch.ones(4, 8))
    model["third"].weights[0] = nn.Parameter(torch.ones(8, 8).to_sparse())
    assert advnas_ext.explain(model) == {
        "first": None,
        "second": "a tensor is a Own",
        "third": "the layout of a tensor is torch.sparse_coo",
    }


def test_one_warning_for_what_ran_natively_and_does_no_more(x):
    cell, path = OnePathCell(3), Path.from_ops(OPS)
    cell(x, path)
    hook = cell.edges["1<-0"][3].register_forward_hook(lambda module, given, out: out)
    with pytest.warns(UserWarning, match=r"OnePathCell: has hooks; .* plain PyTorch.*advnas_ext\.explain"):
        cell(x, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cell(x, path)
        hook.remove()
        cell(x, path)


def test_changed_from_the_start_it_says_nothing(x):
    cell = OnePathCell(3)
    cell.edges["1<-0"][3].op[0] = nn.SiLU()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cell(x, Path.from_ops(OPS))


def test_hooks_of_all_modules_see_all_modules(x):
    network, seen = make_found(), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, out: seen.append(type(module)))
    try:
        network(x)
    finally:
        hook.remove()
    assert seen.count(nn.Conv2d) == 1 + 3 * 4 + 2 * 3
