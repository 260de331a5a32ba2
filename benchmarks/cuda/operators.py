"""The operators of PyTorch that a step runs, each with the launches, bytes and FLOPs that it costs on a GPU, at least.

An operator counts as one launch, but for:
- a convolution with a bias: one more, which adds the bias; its backward pass: one for each gradient that is wanted
- batch norm: two each way, the sums and the map; in a pass over memory of its own each
- views, allocations and what is done to the path itself, which lies on the host: none

A convolution of the library may launch more than one kernel, to convert layouts or types for instance, and a reduction two; neither
is counted. An operator reads the tensors that it takes and writes those that it gives, each once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """Of one launch of a kernel of ours, or of one operator of the library, which may take several.

    Attributes:
        least, moved: bytes: what the arguments make necessary, and what is read and written.
        flops: two for a multiply-add.
        own: by our kernels, of which only 3x3 convolutions have TF32.
    """

    name: str
    least: int
    moved: int
    flops: int = 0
    launches: int = 1
    own: bool = False

    @property
    def has_tf32(self) -> bool:
        return not self.own or self.name.startswith("conv3x3")


FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "_unsafe_view"),
    *("as_strided_", "ones", "max", "_local_scalar_dense"),  # the last three: of the path
}
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


class Operators(TorchDispatchMode):
    """Collects in ``found`` what runs in a ``with``. ``dry``: convolutions give tensors that nobody has filled."""

    def __init__(self, dry: bool = False) -> None:
        super().__init__()
        self.dry = dry
        self.found: list[Work] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = _shaped(func, args) if self.dry and func in CONVOLUTIONS else func(*args, **(kwargs or {}))
        work = describe(func, args, kwargs or {}, result)
        if work is not None:
            self.found.append(work)
        return result


def operators_of(step: Callable[[], object]) -> list[Work]:
    with Operators() as operators:
        step()
    return operators.found


def _shaped(func: Any, args: tuple) -> Any:
    """Tensors such as a convolution gives."""
    results = func(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args))
    return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device=args[0].device), results)


def describe(func: Any, args: tuple, kwargs: dict, result: Any) -> Work | None:
    """What an operator costs; None: nothing."""
    name = func.__name__.split(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
    if func.is_view or name in FREE or func.namespace != "aten" or not tensors:
        return None
    taken = args[0] if name == "avg_pool2d_backward" else (args, kwargs)  # the input is taken for its shape
    moved, launches = _bytes(taken) + _bytes(result), 1
    if func is aten.convolution.default:
        x, weight, bias = args[:3]
        moved = _bytes((x, weight, result))
        if bias is not None:
            moved, launches = moved + 2 * _bytes(result), 2
    elif func is aten.convolution_backward.default:
        to_x, to_weight, to_bias = args[-1]
        products = to_x + to_weight
        # Of gradient, input and weight two are read and the third is written.
        moved, launches = _bytes(args[:3]) * products + _bytes(args[0]) * to_bias, products + to_bias
    elif "batch_norm" in name:
        moved, launches = moved + _bytes(args[0]) * (2 if "backward" in name else 1), 2
    return Work(name, moved, moved, _flops(func, args, kwargs, result), launches)


def _flops(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    """By the formulas of PyTorch's own counter, which knows convolutions and products of matrices."""
    formula = flop_registry.get(func.overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _bytes(value: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
