"""The operators of PyTorch that a step runs, each with the launches, bytes and multiply-adds that it costs on a GPU, at least.

An operator counts as one launch, but for:
- a convolution with a bias: one more, which adds the bias; its backward pass: one for each gradient that is wanted
- batch norm: two each way, the sums and the map; in a pass over memory of its own each
- views, allocations and what is done to the path itself, which lies on the host: none

A convolution of the library may launch more than one kernel, to convert layouts or types for instance, and a reduction two; neither
is counted. An operator reads the tensors that it takes and writes those that it gives, each once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """``bytes``: moved. ``flops``: of a convolution or a product of matrices, two for a multiply-add."""

    name: str
    launches: int
    bytes: int
    flops: int = 0


FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "_unsafe_view"),
    *("as_strided_", "ones", "max", "_local_scalar_dense"),  # the last three: of the path
}


class Operators(TorchDispatchMode):
    """Collects in ``found`` what runs in a ``with``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operator] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        operator = describe(func, args, kwargs or {}, result)
        if operator is not None:
            self.found.append(operator)
        return result

    @property
    def launches(self) -> int:
        return sum(operator.launches for operator in self.found)


def describe(func: Any, args: tuple, kwargs: dict, result: Any) -> Operator | None:
    """What an operator costs; None: nothing."""
    name = func.__name__.split(".")[0]
    if func.is_view or name in FREE or func.namespace != "aten" or not any(True for _ in _tensors((args, result))):
        return None
    taken = args[0] if name == "avg_pool2d_backward" else (args, kwargs)  # the input is taken for its shape
    moved = _bytes(taken) + _bytes(result)
    if func is aten.convolution.default:
        return _convolution(args, result)
    if func is aten.convolution_backward.default:
        return _convolution_backward(args)
    if "batch_norm" in name:
        x = _bytes(args[0])
        return Operator(name, 2, moved + (2 * x if "backward" in name else x))
    return Operator(name, 1, moved, _flops(func, args))


def _convolution(args: tuple, result: Tensor) -> Operator:
    x, weight, bias = args[:3]
    bytes_of_bias = 2 * _bytes(result) if bias is not None else 0
    return Operator(
        "convolution", 1 + (bias is not None), _bytes((x, weight, result)) + bytes_of_bias, _flops_of(weight, result)
    )


def _convolution_backward(args: tuple) -> Operator:
    dy, x, weight = args[:3]
    to_x, to_weight, to_bias = args[-1]
    once = _bytes((dy, x, weight))  # two are read and the third is written
    products = int(to_x) + int(to_weight)
    moved = once * products + _bytes(dy) * to_bias
    return Operator("convolution_backward", products + to_bias, moved, _flops_of(weight, dy) * products)


def _flops_of(weight: Tensor, y: Tensor) -> int:
    return 2 * y.numel() * weight[0].numel()


def _flops(func: Any, args: tuple) -> int:
    if func is aten.mm.default:
        return 2 * args[0].numel() * args[1].shape[1]
    if func is aten.addmm.default:
        return 2 * args[1].numel() * args[2].shape[1]
    return 0


def _bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
