"""A model that somebody has changed gives what PyTorch would give: natively where that is the same, else in plain PyTorch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable

import pytest
import torch
from comparison import in_plain_pytorch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import advnas_ext
from advnas.networks.nasbench201 import LightReduction, Reduction, Stem
from advnas_ext import OnePathCell, Path, native
from advnas_ext.head import NormReluMean

OPS = (*advnas_ext.NAS_BENCH_201, "max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3", "dua_sepc_3x3")
FULL = bool(os.environ.get("ADVNAS_FULL"))
CASES = 2000 if FULL else 200
# What PyTorch raises where a change makes no sense; NotImplementedError is a RuntimeError.
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
BOUND = 1e-9  # of the largest value; float64

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


class LowRank(nn.Conv2d):
    """An adapter: a correction beside the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * x.mean()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def replaced(make: Callable[[nn.Module], nn.Module]) -> Callable:
    """A change that puts another layer in the place of one."""

    def change(parent: nn.Module, name: str, layer: nn.Module) -> None:
        parent._modules[name] = make(layer)

    return change


def attribute(name: str, value: object) -> Callable:
    def change(parent: nn.Module, child: str, layer: nn.Module) -> None:
        setattr(layer, name, value)

    return change


def on(act: Callable[[nn.Module], object]) -> Callable:
    """A change of the layer itself."""

    def change(parent: nn.Module, name: str, layer: nn.Module) -> None:
        act(layer)

    return change


def subclassed(kind: type[nn.Module]) -> Callable:
    def act(layer: nn.Module) -> None:
        layer.__class__ = kind

    return on(act)


def weight_of_size(size: int) -> Callable:
    def act(layer: nn.Module) -> None:
        out, inputs = layer.weight.shape[:2]
        layer.weight = nn.Parameter(torch.randn(out, inputs, size, size, dtype=layer.weight.dtype))

    return on(act)


def weight_in_place(change: Callable[[Tensor], Tensor]) -> Callable:
    def act(layer: nn.Module) -> None:
        layer.weight.data = change(layer.weight.data)

    return on(act)


def own_forward(layer: nn.Module) -> None:
    usual = layer.forward
    layer.forward = lambda *arguments: 2 * usual(*arguments)


HOOKS: dict[str, Callable] = {
    "forward hook": on(lambda m: m.register_forward_hook(lambda module, given, out: 3 * out)),
    "forward pre-hook": on(lambda m: m.register_forward_pre_hook(lambda module, given: (given[0] - 1, *given[1:]))),
    "backward hook": on(lambda m: m.register_full_backward_hook(lambda module, given, out: (5 * given[0], *given[1:]))),
    "backward pre-hook": on(lambda m: m.register_full_backward_pre_hook(lambda module, out: (7 * out[0],))),
    "hook with keywords": on(
        lambda m: m.register_forward_hook(lambda module, given, named, out: out + 1, with_kwargs=True)
    ),
    "forward of its own": on(own_forward),
}
CONV_BESIDE_CHANNELS = {
    **{f"padding_mode {mode}": attribute("padding_mode", mode) for mode in ("reflect", "circular", "replicate")},
    "padding 0": attribute("padding", (0, 0)),
    "padding 2": attribute("padding", (2, 2)),
    "padding 1": attribute("padding", (1, 1)),
    "padding same": attribute("padding", "same"),
    "stride 2": attribute("stride", (2, 2)),
    "stride 1": attribute("stride", (1, 1)),
    "stride 1, 2": attribute("stride", (1, 2)),
    "dilation 2": attribute("dilation", (2, 2)),
    "groups 2": attribute("groups", 2),
    "bias gone": attribute("bias", None),
    "weight frozen": on(lambda m: m.weight.requires_grad_(False)),
    "weight of size 1": weight_of_size(1),
    "weight of size 5": weight_of_size(5),
    "weight of size 2": weight_of_size(2),
    "weight channels_last": weight_in_place(lambda w: w.contiguous(memory_format=torch.channels_last)),
    "weight with gaps": weight_in_place(lambda w: torch.cat([w, w], 0)[::2]),
    "weight transposed": weight_in_place(lambda w: w.transpose(2, 3)),
    "weight negated lazily": weight_in_place(lambda w: torch._neg_view(w)),
    "weight float32": weight_in_place(lambda w: w.float()),
    "subclass": subclassed(LowRank),
    "pruned": on(lambda m: prune.l1_unstructured(m, "weight", amount=0.5)),
    "pruned for good": on(lambda m: prune.remove(prune.random_unstructured(m, "weight", amount=0.5), "weight")),
    "old weight norm": on(lambda m: nn.utils.weight_norm(m)),
    "old spectral norm": on(lambda m: nn.utils.spectral_norm(m)),
    "weight norm": on(lambda m: parametrizations.weight_norm(m)),
    "spectral norm": on(lambda m: parametrizations.spectral_norm(m)),
    "parametrized": on(lambda m: nn.utils.parametrize.register_parametrization(m, "weight", Doubled())),
}
NORM = {
    "instance norm": replaced(lambda m: nn.InstanceNorm2d(m.num_features).double()),
    "instance norm with statistics": replaced(
        lambda m: nn.InstanceNorm2d(m.num_features, affine=True, track_running_stats=True).double()
    ),
    "group norm": replaced(lambda m: nn.GroupNorm(1, m.num_features).double()),
    "identity": replaced(lambda m: nn.Identity()),
    "synchronised": replaced(nn.SyncBatchNorm.convert_sync_batchnorm),
    "subclass": subclassed(type("OtherNorm", (nn.BatchNorm2d,), {})),
    **{f"momentum {momentum}": attribute("momentum", momentum) for momentum in (None, 0.0, 0.1, 1.0, 1)},
    **{f"eps {eps}": attribute("eps", eps) for eps in (1e-3, 0.5)},
    "training": on(lambda m: m.train()),
    "evaluating": on(lambda m: m.eval()),
    "tracking": attribute("track_running_stats", True),
    "not tracking": attribute("track_running_stats", False),
    "no running mean": attribute("running_mean", None),
    "no statistics": on(lambda m: [setattr(m, name, None) for name in ("running_mean", "running_var")]),
    "no count": attribute("num_batches_tracked", None),
    "frozen": on(lambda m: [p.requires_grad_(False) for p in m.parameters()]),
    "no weight": attribute("weight", None),
    "no bias": attribute("bias", None),
    "reset": on(lambda m: m.reset_running_stats()),
}
POOL = {
    "kernel 5": on(lambda m: (setattr(m, "kernel_size", 5), setattr(m, "padding", 2))),
    "kernel 1": on(lambda m: (setattr(m, "kernel_size", 1), setattr(m, "padding", 0))),
    "tuple": attribute("kernel_size", (3, 3)),
    "ceil_mode": attribute("ceil_mode", True),
    "stride 2": attribute("stride", 2),
}
CHANGES: dict[type[nn.Module], dict[str, Callable]] = {
    nn.ReLU: {
        **{
            kind.__name__: replaced(lambda m, kind=kind: kind())
            for kind in (nn.SiLU, nn.Identity, nn.Hardtanh, nn.ReLU6, nn.LeakyReLU)
        },
        "in place": attribute("inplace", True),
        **HOOKS,
    },
    nn.Conv2d: {**CONV_BESIDE_CHANNELS, **HOOKS},
    nn.BatchNorm2d: {**NORM, **HOOKS},
    nn.AvgPool2d: {
        **POOL,
        "padding counts": attribute("count_include_pad", True),
        "divisor": attribute("divisor_override", 4),
        "max": replaced(lambda m: nn.MaxPool2d(m.kernel_size, m.stride, m.padding)),
        **HOOKS,
    },
    nn.MaxPool2d: {**POOL, "dilation": attribute("dilation", 2), **HOOKS},
    nn.Sequential: {
        "layer appended": on(lambda m: m.append(nn.Tanh())),
        "layer gone": on(lambda m: m.__delitem__(-1)),
        "layers swapped": on(lambda m: m._modules.update({"0": m[1], "1": m[0]})),
        "subclass": subclassed(type("OtherSequential", (nn.Sequential,), {})),
        **HOOKS,
    },
    advnas_ext.operations.ReLUConvBN: {
        "subclass": subclassed(
            type("Tripled", (advnas_ext.operations.ReLUConvBN,), {"forward": lambda self, x: 3 * self.op(x)})
        ),
        "another operation": replaced(lambda m: nn.Hardtanh()),
        **HOOKS,
    },
    OnePathCell: HOOKS,
}
NAMES = [(kind, change) for kind, changes in CHANGES.items() for change in changes]


class Small(nn.Module):
    """A block of each kind, with few layers."""

    def __init__(self, affine: bool, tracks: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [Stem(3, 4), OnePathCell(4, OPS, 3, affine, tracks), Reduction(4), LightReduction(8)]
        )
        self.head = NormReluMean(16)

    def forward(self, x: Tensor, path: Path) -> Tensor:
        return self.head(native.run_blocks(list(self.blocks), x, path))


def make_network(affine: bool, tracks: bool) -> Small:
    torch.manual_seed(0)
    network = Small(affine, tracks).double()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.4)
    return network


def places(network: nn.Module, kind: type[nn.Module], picked: set[int]) -> list[tuple[nn.Module, str, nn.Module]]:
    """All layers of a class that a path with the operations ``picked`` runs, with their parents."""
    found = []
    for parent_name, parent in network.named_modules():
        for name, child in parent._modules.items():
            parts = [*parent_name.split("."), name]
            runs = "edges" not in parts or parts[parts.index("edges") + 2 : parts.index("edges") + 3] != []
            if runs and "edges" in parts:
                runs = int(parts[parts.index("edges") + 2]) in picked
            if type(child) is kind and runs:
                found.append((parent, name, child))
    return found


def step(network: nn.Module, x: Tensor, ops: list[int]) -> dict[str, Tensor]:
    """Everything that a step leaves: output, gradients, buffers."""
    path, x = Path.from_ops(ops, dtype=torch.float64), x.clone().requires_grad_()
    out = network(x, path)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    left = {"out": out.detach(), "x": x.grad, "gates": path.gates.grad}
    left.update({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    left.update(dict(network.named_buffers()))
    return {name: tensor.detach().clone() for name, tensor in left.items() if tensor is not None}


def outcome(network: nn.Module, x: Tensor, ops: list[int]) -> dict[str, Tensor] | Exception:
    """Of two steps, so that what the first leaves behind counts too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            step(network, x, ops)
            network.zero_grad()
            return step(network, x, ops)
        except REFUSALS as error:
            return error


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(1.0, tensor.abs().max().item() if tensor.numel() else 0.0)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=BOUND * scale, equal_nan=True, msg=name)


def check_outcomes(found: dict[str, Tensor] | Exception, expected: dict[str, Tensor] | Exception) -> None:
    if isinstance(expected, Exception):
        assert isinstance(found, Exception), f"plain PyTorch raises {expected!r}"
        return
    assert isinstance(found, dict), f"plain PyTorch does it, natively it raises {found!r}"
    check_same(found, expected)


def make_x() -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[f"{kind.__name__}-{name}" for kind, name in NAMES])
def test_each_change(kind, name, training):
    network, twin = (make_network(affine=True, tracks=True).train(training) for _ in range(2))
    ops = [OPS.index(op) for op in ("nor_conv_3x3", "avg_pool_3x3", "nor_conv_1x1")]
    if kind is nn.MaxPool2d:
        ops[0] = OPS.index("max_pool_3x3")
    check_same(outcome(network, make_x(), ops), outcome(twin, make_x(), ops))
    for layers in zip(*(places(each, kind, set(ops)) for each in (network, twin)), strict=True):
        for place in layers:
            torch.manual_seed(1)
            with contextlib.suppress(
                RuntimeError, ValueError, TypeError, AttributeError, IndexError
            ):  # refused on both sides
                CHANGES[kind][name](*place)
    found = outcome(network, make_x(), ops)
    with in_plain_pytorch():
        expected = outcome(twin, make_x(), ops)
    check_outcomes(found, expected)


conv_ops = st.sampled_from([OPS.index(op) for op in OPS if "conv" in op])
any_ops = st.integers(0, len(OPS) - 1)
live_ops = st.one_of(conv_ops, st.integers(1, len(OPS) - 1))


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=not FULL,  # CI tries the same cases each time, make test-full others
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_changes(data):
    """Any changes of any layers of a network: as plain PyTorch does it, whether natively or not, an error included."""
    affine, tracks, training = (data.draw(st.booleans(), name) for name in ("affine", "tracks", "training"))
    network, twin = (make_network(affine, tracks).train(training) for _ in range(2))
    # All edges reach the output: those that do not are run by plain PyTorch only, and change nothing but their own statistics.
    ops = [
        data.draw(kind, f"edge {edge}") for edge, kind in enumerate([st.one_of(conv_ops, any_ops), live_ops, live_ops])
    ]
    x = make_x()
    check_same(outcome(network, x, ops), outcome(twin, x, ops))
    for _ in range(data.draw(st.integers(1, 2), "changes")):
        kind, name = data.draw(st.sampled_from(NAMES), "change")
        where = list(zip(*(places(each, kind, set(ops)) for each in (network, twin)), strict=True))
        if not where:
            continue
        for place in where[data.draw(st.integers(0, len(where) - 1), "where")]:
            torch.manual_seed(1)
            try:
                CHANGES[kind][name](*place)
            except REFUSALS:
                event("a change that PyTorch refuses")
    obstacles = sum(obstacle is not None for obstacle in advnas_ext.explain(network).values())
    event(f"obstacles: {min(obstacles, 2)}")
    found = outcome(network, x, ops)
    with in_plain_pytorch():
        expected = outcome(twin, x, ops)
    if isinstance(expected, Exception):
        event("an error in plain PyTorch")
    check_outcomes(found, expected)
