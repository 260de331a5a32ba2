"""Gates on weights, for supernets whose candidates are slices of shared weights.

A decision's value reads some entries of a weight W, its smallest value fewer of them. In comparison with W where the smallest value
reads it, and 0 elsewhere, the gate's gradient is what the entries that the value adds are worth: <dL/dW, W where they are>.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advnas_ext import OnePathChoice


class _Called(nn.Module):
    """A function that reads a module's parameters, as the forward of a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.__dict__["function"] = function  # which may be a module: no second name for its weights

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self.__dict__["function"](*arguments, **keywords)


def call_with(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    function: Callable[..., Any],
    arguments: Iterable[Any] = (),
    keywords: dict[str, Any] | None = None,
) -> Any:
    """What a function returns while a module has other weights."""
    named = {f"module.{name}": weight for name, weight in weights.items()}
    return functional_call(_Called(module, function), named, tuple(arguments), keywords)


def read_by(module: nn.Module, take: Callable[[], Iterable[Any]]) -> dict[str, Tensor]:
    """Which entries of a module's parameters a function reads, as 1 and 0.

    Args:
        take: returns slices, gathered rows and the like of the parameters; what else it returns does not count.
    """
    leaves = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in module.named_parameters()}
    with torch.enable_grad():
        taken = call_with(module, leaves, take)
        sums = [part.sum() for part in taken if isinstance(part, Tensor) and part.requires_grad]
        read = torch.autograd.grad(sums, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {name: (part != 0).to(part) for name, part in zip(leaves, read, strict=True)}


def gated_weight(choice: OnePathChoice, weight: Tensor, read: Tensor) -> Tensor:
    """A weight through a decision's gate; ``read`` are the entries that its smallest value reads."""
    return choice.gate(weight, weight * read)
