"""What the native executor may run in place of a module's own ``forward``: what it was built for, and nothing else.

It knows modules by their exact class and settings. Whatever else somebody has done to a module, such as a hook, a pruned or
parametrized weight, another layer in its place, is an *obstacle*: a sentence that says what it is. Then the module runs as
PyTorch would run it. All of this is asked in every step, in some microseconds a module, so nothing is remembered that could be
out of date.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

Obstacle = str | None
"""Why something does not run natively; None: it does."""
Settings = dict[str, Any]  # a module's __dict__: its attributes without a search

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


def remembered(function: Callable[[Argument], Answer]) -> Callable[[Argument], Answer]:
    """``functools.cache`` of one argument, without the warning that torch.compile has for it."""
    answers: dict[Argument, Answer] = {}

    def ask(argument: Argument) -> Answer:
        if argument not in answers:
            answers[argument] = function(argument)
        return answers[argument]

    return ask


_TENSORS = (nn.Parameter, Tensor)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(modules, f"_global{hooks}") for hooks in _HOOKS)


def _unusual(tensor: object) -> bool:
    """Whether a parameter or buffer is more than a tensor, or computed from one and so absent ("")."""
    return tensor is not None and type(tensor) not in _TENSORS


def _convolution_obstacle(own: Settings, wanted: int = 1, dilation: int = 1, groups: int = 1) -> Obstacle:
    parameters = own["_parameters"]
    weight = parameters.get("weight", "")
    if _unusual(weight) or _unusual(parameters.get("bias", "")):
        return "has a weight or a bias that is computed, or of a class of its own"
    shape, stride, padding = weight.shape, own["stride"], own["padding"]
    size = shape[-1]
    around = size // 2 * dilation
    if len(shape) != 4 or size % 2 == 0 or shape[2] != size:
        return f"has a weight {list(shape)}, not one with a square kernel of odd size"
    if padding != (around, around) or own["padding_mode"] != "zeros":
        return f"pads by {padding} with {own['padding_mode']}, not by {around} with zeros"
    if stride != (wanted, wanted):
        return f"has stride {stride}, not {wanted}"
    if own["dilation"] != (dilation, dilation) or own["groups"] != groups:
        return f"has dilation {own['dilation']} and {own['groups']} groups"
    return None


def _norm_obstacle(own: Settings) -> Obstacle:
    parameters, buffers, momentum = own["_parameters"], own["_buffers"], own["momentum"]
    weight, bias = parameters.get("weight", ""), parameters.get("bias", "")
    mean, variance = buffers.get("running_mean", ""), buffers.get("running_var", "")
    if _unusual(weight) or _unusual(bias):
        return "has a weight or a bias that is computed, or of a class of its own"
    if _unusual(mean) or _unusual(variance) or (mean is None) != (variance is None):
        return "has a running mean or variance of a class of its own, or without the other"
    if _unusual(buffers.get("num_batches_tracked", "")):
        return "has a number of batches of a class of its own"
    if momentum is not None and not 0 <= momentum <= 1:
        return f"has momentum {momentum}"
    return None


_POOL = {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": False}
_AVG_POOL = {**_POOL, "count_include_pad": False, "divisor_override": None}
_MAX_POOL = {**_POOL, "dilation": 1, "return_indices": False}
_HALF = {"stride": 2}
_MEAN_2X2 = {**_AVG_POOL, "kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": True, "count_include_pad": True}


def _only(settings: Settings) -> Callable[[Settings], Obstacle]:
    """The obstacle of a layer with other settings than these."""

    items = tuple(settings.items())

    def obstacle(own: Settings) -> Obstacle:
        for name, value in items:
            if own[name] != value:
                return f"has {name}={own[name]}, not {value}"
        return None

    return obstacle


class Layer:
    """A layer that the executor knows: its class, and what it asks of its settings."""

    def __init__(self, kind: type[nn.Module], obstacle: Callable[[Settings], Obstacle]) -> None:
        self.kind = kind
        self._obstacle = obstacle

    def obstacle(self, module: nn.Module) -> Obstacle:
        if type(module) is not self.kind:
            return f"is a {type(module).__name__}, not a {self.kind.__name__}"
        own = module.__dict__
        return hooks_obstacle(own) or self._obstacle(own)


RELU = Layer(nn.ReLU, _only({"inplace": False}))
BATCH_NORM = Layer(nn.BatchNorm2d, _norm_obstacle)
AVG_POOL = Layer(nn.AvgPool2d, _only(_AVG_POOL))
MAX_POOL = Layer(nn.MaxPool2d, _only(_MAX_POOL))
HALVING_AVG_POOL = Layer(nn.AvgPool2d, _only({**_AVG_POOL, **_HALF}))
HALVING_MAX_POOL = Layer(nn.MaxPool2d, _only({**_MAX_POOL, **_HALF}))
MEAN_2X2 = Layer(nn.AvgPool2d, _only(_MEAN_2X2))


@remembered
def convolution(stride: int) -> Layer:
    """A convolution with a kernel of any odd size, padded by half of it."""
    return Layer(nn.Conv2d, functools.partial(_convolution_obstacle, wanted=stride))


CONVOLUTION = convolution(1)


@remembered
def depthwise(settings: tuple[int, int, int]) -> Layer:
    """A convolution of each channel by itself, of so many channels, a dilation and a stride."""
    channels, dilation, stride = settings

    def obstacle(own: Settings) -> Obstacle:
        found = _convolution_obstacle(own, stride, dilation, channels)
        if found is None and own["_parameters"]["weight"].shape[:2] != (channels, 1):
            return (
                f"has a weight {list(own['_parameters']['weight'].shape)}, not a filter for each of {channels} channels"
            )
        return found

    return Layer(nn.Conv2d, obstacle)


@remembered
def pointwise(channels: int) -> Layer:
    """A 1x1 convolution behind a depthwise one of so many channels."""

    def obstacle(own: Settings) -> Obstacle:
        found = _pointwise_obstacle(own)
        if found is None and own["_parameters"]["weight"].size(1) != channels:
            return f"takes {own['_parameters']['weight'].size(1)} channels, not {channels}"
        return found

    return Layer(nn.Conv2d, obstacle)


def _pointwise_obstacle(own: Settings, wanted: int = 1) -> Obstacle:
    obstacle = _convolution_obstacle(own, wanted)
    if obstacle is None and own["_parameters"]["weight"].size(3) != 1:
        return "is not a 1x1 convolution"
    return obstacle


def _matrix_obstacle(own: Settings, wanted: int) -> Obstacle:
    return _pointwise_obstacle(own, wanted) or ("has a bias" if own["_parameters"]["bias"] is not None else None)


# Nothing but a matrix, of which the executor may take parts.
MATRIX, HALVING_MATRIX = (Layer(nn.Conv2d, functools.partial(_matrix_obstacle, wanted=stride)) for stride in (1, 2))


def _linear_obstacle(own: Settings) -> Obstacle:
    parameters = own["_parameters"]
    weight, bias = parameters.get("weight", ""), parameters.get("bias", "")
    if weight is None or bias is None or _unusual(weight) or _unusual(bias):
        return "has a weight or a bias that is computed, of a class of its own, or absent"
    return None


LINEAR = Layer(nn.Linear, _linear_obstacle)
GLOBAL_MEAN = Layer(nn.AdaptiveAvgPool2d, _only({"output_size": 1}))


_METHODS = ("forward", "_conv_forward", "_call_impl", "_check_input_dim")


def hooks_obstacle(own: Settings) -> Obstacle:
    """The obstacle of a module that has hooks, or a ``forward`` that is not its class's."""
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return "has hooks"
    for method in _METHODS:
        if method in own:
            return f"has a {method} of its own"
    return None


def layers_obstacle(container: nn.Module, layers: Sequence[Layer]) -> Obstacle:
    """The obstacle in the children of a module, which are to be ``layers`` in their order."""
    children = container.__dict__["_modules"]
    if len(children) != len(layers):
        return f"has {len(children)} layers, not {len(layers)}"
    for layer, name in zip(layers, children, strict=True):
        obstacle = layer.obstacle(children[name])
        if obstacle is not None:
            return f"{name} {obstacle}"
    return None


def sequence_obstacle(module: nn.Module, layers: Sequence[Layer]) -> Obstacle:
    """The same for an ``nn.Sequential``, itself included."""
    if type(module) is not nn.Sequential:
        return f"is a {type(module).__name__}, not a Sequential"
    return hooks_obstacle(module.__dict__) or layers_obstacle(module, layers)


def overrides(kind: type, method: str, replaced: str) -> bool:
    """Whether a class has a ``method`` that is newer than ``replaced``, which stands for it in the executor: that of a subclass."""
    order = kind.__mro__
    newest = {name: next(i for i, base in enumerate(order) if name in base.__dict__) for name in (method, replaced)}
    return newest[method] < newest[replaced]


_KINDS = (
    nn.ReLU,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Linear,
    nn.AdaptiveAvgPool2d,
    nn.Sequential,
)
_FUNCTIONS = (
    *((kind, "forward") for kind in _KINDS),
    (nn.Conv2d, "_conv_forward"),
    *((nn.Module, name) for name in ("__call__", "_call_impl")),
    *((F, name) for name in ("relu", "conv2d", "batch_norm", "avg_pool2d", "max_pool2d", "linear")),
)
_ORIGINALS: list[tuple[Any, str, Any]] = [(owner, name, getattr(owner, name)) for owner, name in _FUNCTIONS]


def stands_for(owner: type, name: str) -> None:
    """Says that the executor stands for a method of a class, as the class has it now."""
    _ORIGINALS.append((owner, name, getattr(owner, name)))


is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # old versions


def context_obstacle() -> Obstacle:
    """The obstacle around a call: what must see, record or change the operators of PyTorch one by one."""
    if is_exporting():
        return "an export is on"
    # torch.compile itself traces nothing under a dispatch mode, and what it has compiled shows its operators to one.
    if not torch.compiler.is_dynamo_compiling() and torch._C._len_torch_dispatch_stack() > 0:
        return "a dispatch mode is on (a FLOP counter, fake tensors, an export)"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is on"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if any(_GLOBAL_HOOKS):
        return "hooks of all modules are on"
    if torch._C._len_torch_function_stack() > 0 and not _only_default_devices():
        return "a function mode is on"
    for owner, name, function in _ORIGINALS:
        if getattr(owner, name) is not function:
            return f"{owner.__name__}.{name} was replaced"
    return None


def _only_default_devices() -> bool:
    """A default device is a function mode, but one that says nothing about what is computed."""
    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


def tensor_obstacle(x: Tensor) -> Obstacle:
    """The obstacle of a tensor that is not just its numbers in memory."""
    if type(x) not in _TENSORS:
        return f"a tensor is a {type(x).__name__}"
    return None if x.layout == torch.strided else f"the layout of a tensor is {x.layout}"
