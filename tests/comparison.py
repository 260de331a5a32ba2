"""A cell beside its specification in float64, with ReLU inputs that rounding cannot flip."""

import contextlib
import copy
from unittest.mock import patch

import pytest
import torch

from advnas_ext import NAS_BENCH_201, OnePathCell, Path, native, reference


@contextlib.contextmanager
def in_plain_pytorch():
    """Nothing runs natively in here."""
    with patch.object(native, "runs_natively", lambda x: False):
        yield


@contextlib.contextmanager
def natively(owner=native, times=1):
    """What is in here makes so many native calls: of graphs, or of recurrent cells with ``owner=recurrent``."""
    run, calls = owner._run, []

    def counting(*arguments):
        calls.append(None)  # not the arguments: some of their memory may be used again
        return run(*arguments)

    with patch.object(owner, "_run", counting):
        yield
    assert len(calls) == times, f"{len(calls)} native calls, not {times}"


def counted(monkeypatch, owner, name):
    """A list that gets an entry for each call of a function."""
    function, calls = getattr(owner, name), []

    def counting(*arguments):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(owner, name, counting)
    return calls


def away_from_zero(cell, x, path):
    """Whether no input of a ReLU is so near 0 that rounding could flip its sign: the masks are those of float64 then."""
    nearest = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, __: nearest.append(inputs[0].abs().min().item()))
        for module in cell.modules()
        if isinstance(module, torch.nn.ReLU)
    ]
    plain(cell, x, path)
    for hook in hooks:
        hook.remove()
    # An all-zero node is exactly zero on both sides.
    return all(distance == 0 or distance > 1e-5 for distance in nearest)


def run(cell, call, x, ops, gates, dy):
    x, gates = x.clone().requires_grad_(), gates.clone().requires_grad_()
    y = call(cell, x, Path(ops, gates))
    (y * dy).sum().backward()
    gradients = {name: parameter.grad for name, parameter in cell.named_parameters()}
    dx = torch.zeros_like(x) if x.grad is None else x.grad  # plain PyTorch: nothing depends on x
    return {"y": y.detach(), "dx": dx, "dgates": gates.grad}, gradients, dict(cell.named_buffers())


def plain(cell, x, path):
    return reference.cell(x, path, list(cell.edges.values()), cell.num_nodes, cell.baseline == "input")


def compare(
    close,
    ops,
    dtype=torch.float32,
    shape=(2, 6, 5, 7),
    layout=torch.channels_last,
    affine=False,
    track=False,
    evaluate=False,
    names=NAS_BENCH_201,
    baseline=None,
):
    ops = ops if ops.dim() == 2 else ops.unsqueeze(1)
    num_nodes = {1: 2, 3: 3, 6: 4, 10: 5}[len(ops)]
    for seed in range(100):
        torch.manual_seed(seed)
        cell = OnePathCell(shape[1], names, num_nodes, affine, track, baseline).to(dtype)
        for parameter in cell.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        for buffer in cell.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        cell.train(not evaluate)
        x, dy = torch.randn(2, *shape, dtype=dtype).unbind()
        gates = torch.empty(ops.shape, dtype=dtype).uniform_(0.5, 1.5)
        truth = copy.deepcopy(cell).double()
        if away_from_zero(copy.deepcopy(truth), x.double(), Path(ops, gates.double())):
            break
    else:
        pytest.fail("every seed puts the input of a ReLU too near to 0")
    x = x.contiguous(memory_format=layout) if layout != "strided" else torch.stack([x, x], -1)[..., 0]
    with natively():
        values, gradients, buffers = run(cell, OnePathCell.__call__, x, ops, gates, dy)
    expected = run(truth, plain, x.double(), ops, gates.double(), dy.double())
    for name, value in values.items():
        close(value, expected[0][name], name)
    largest = max((g.abs().max().item() for g in expected[1].values() if g is not None), default=0.0)
    for name, gradient in gradients.items():
        wanted = expected[1][name]
        if gradient is None or not gradient.any():  # not run, or exactly 0 in theory
            assert wanted is None or wanted.abs().max() < 1e-10, name
        else:
            # Batch norm cancels the scale of a weight: a gradient may be 0 in theory, as a sum of terms that are not.
            close(gradient, wanted, name, at_least=0.1 * largest)
    for name, buffer in buffers.items():
        close(buffer.double(), expected[2][name].double(), name, dtype=dtype)


def advantages_by_differences(search, loss, step=1e-5):
    """What the gates' gradients of a path must be, by central differences of the loss in each gate, [num_edges].

    A choice among modules puts out b + g (y - b), with b its input where that has the shape of y and 0 elsewhere; here by hooks on
    the picked candidates.
    """
    picked = [
        [place.candidates[op] for place in places]
        for places, op in zip(search.choices.values(), search.path.ops[:, 0].tolist(), strict=True)
    ]

    def loss_at(modules, g):
        def hook(_, arguments, y):
            b = arguments[0] if arguments[0].shape == y.shape else torch.zeros_like(y)
            return b + g * (y - b)

        handles = [module.register_forward_hook(hook) for module in modules]
        try:
            return loss().item()
        finally:
            for handle in handles:
                handle.remove()

    return torch.tensor([(loss_at(modules, 1 + step) - loss_at(modules, 1 - step)) / (2 * step) for modules in picked])
