"""The state of a training: what changes as it goes, and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

T = TypeVar("T")


def endless(batches: Iterable[T]) -> Iterator[T]:
    """Epoch after epoch."""
    while True:
        yield from batches


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Independent streams of random numbers from one seed."""
    root = torch.Generator().manual_seed(seed)
    return [torch.Generator().manual_seed(int(s)) for s in torch.randint(2**62, (count,), generator=root)]


def seeded(generator: torch.Generator, make: Callable[[], T]) -> T:
    """What ``make`` returns, with torch's global generator, which initial weights come from, seeded for the call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return make()


def check_finite(name: str, value: Tensor | float) -> None:
    """Where ``value`` is on a device, nobody waits for it: the mean at the end of the epoch will show it.

    Raises:
        FloatingPointError: it is infinite or not a number.
    """
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return
        value = value.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the {name} must be finite, got {value}")


def descend(
    loss: Tensor, weights: Iterable[Tensor], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float
) -> None:
    """A step of the weights down a loss.

    Args:
        clip: largest norm of the gradient.

    Raises:
        FloatingPointError: the norm is not finite; the weights are as they were.
    """
    scaler.scale(loss).backward()
    clip_gradients(weights, optimizer, scaler, clip)
    follow_gradients(optimizer, scaler)


def clip_gradients(
    weights: Iterable[Tensor], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float
) -> None:
    """Raises as :func:`descend`."""
    scaler.unscale_(optimizer)
    check_finite("norm of the weights' gradient", clip_grad_norm_(weights, clip))


def follow_gradients(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """A step, after which there are no gradients."""
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


class Training:
    """Base of the states of the search and of the retraining.

    Attributes:
        epoch, step: finished epochs, and finished steps of the current one.
        work, total_work: passes through the network done and to do, for the time left.
        history: a row for each finished epoch.
    """

    kind: ClassVar[str]
    unit: ClassVar[str] = "epoch"  # what people call its epochs
    parts: ClassVar[tuple[str, ...]]  # attributes that have a state_dict
    values: ClassVar[tuple[str, ...]] = ("epoch", "step", "work", "history")  # generators, and plain ones

    def __init__(self, total_work: int) -> None:
        self.epoch = 0
        self.step = 0
        self.work = 0
        self.total_work = total_work
        self.history: list[dict[str, Any]] = []
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of work so far, without the pause between an interrupt and its resumption."""
        return time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.values}
        return {
            "seconds": self.seconds,
            "parts": {name: getattr(self, name).state_dict() for name in self.parts},
            "values": {k: v.get_state() if isinstance(v, torch.Generator) else v for k, v in values.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.parts:
            getattr(self, name).load_state_dict(state["parts"][name])
        for name in self.values:
            if isinstance(generator := getattr(self, name), torch.Generator):
                generator.set_state(state["values"][name])
            else:
                setattr(self, name, state["values"][name])
        self._started = time.perf_counter() - state["seconds"]
