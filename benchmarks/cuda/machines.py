"""Where the benchmark for GPUs runs: on a GPU, or in tests on the host."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.cuda.gpus import CARDS, Gpu
from benchmarks.steps.peak import peak_mib
from benchmarks.steps.sides import Clock, host_clock

Captured = TypeVar("Captured")


class Machine(ABC):
    device: torch.device
    clock: Clock
    name: str

    @property
    def gpu(self) -> Gpu | None:
        """Its published figures, if they are known; of a card with another cooling or memory they are the nearest."""
        chips = {gpu: gpu.name.removeprefix("RTX ").split()[0] for gpu in CARDS}
        return next((gpu for gpu, chip in chips.items() if re.search(rf"\b{chip}\b", self.name)), None)

    @abstractmethod
    def peak_mib(self, step: Callable[[], object]) -> float:
        """The most memory that tensors hold during ``step``, beside those that exist before it."""

    @abstractmethod
    def launches(self, step: Callable[[], object]) -> int:
        """The kernels that ``step`` launches."""

    @abstractmethod
    def compiled(self, function: Callable, mode: str) -> Callable:
        """``function`` by ``torch.compile``, anew for each shape."""

    @abstractmethod
    def graphed(self, module: nn.Module, samples: tuple[Tensor, ...]) -> Callable:
        """``module`` whose launches, forward and backward, are a graph each, captured on tensors such as ``samples``."""

    @abstractmethod
    def captured(self, step: Callable[[], Captured]) -> tuple[Callable[[], object], Captured]:
        """What runs all launches of ``step`` as one graph, and what it leaves there: both until the next call."""


def event_clock(step: Callable[[], object]) -> float:
    """By events on the current stream, which is idle before. The time that the GPU waits for launches is in it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


class Cuda(Machine):
    clock = staticmethod(event_clock)

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.name = torch.cuda.get_device_name()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._side = torch.cuda.Stream()  # one for all captures: libraries keep memory for each stream

    def peak_mib(self, step: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def launches(self, step: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
        events = [event for event in profiler.events() or [] if event.device_type == DeviceType.CUDA]
        return sum(not event.name.startswith(("Memcpy", "Memset")) for event in events)

    def compiled(self, function: Callable, mode: str) -> Callable:
        return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)

    def graphed(self, module: nn.Module, samples: tuple[Tensor, ...]) -> Callable:
        return torch.cuda.make_graphed_callables(module, samples)

    def captured(self, step: Callable[[], Captured]) -> tuple[Callable[[], object], Captured]:
        # Not by torch.cuda.graph: that empties the allocator's cache, which the next step of another side would pay for. The
        # memory of the graph before is taken again.
        graph, pool = torch.cuda.CUDAGraph(), None if self._graph is None else self._graph.pool()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._side):
            step()  # the library chooses its kernels, which cannot be captured
            torch.cuda.synchronize()
            graph.capture_begin(pool)
            try:
                left = step()
            finally:
                graph.capture_end()
        torch.cuda.synchronize()
        self._graph = graph
        return graph.replay, left


class Host(Machine):
    """Its peak is that of the process; it launches nothing, and PyTorch's operators are counted instead."""

    clock = staticmethod(host_clock)
    device = torch.device("cpu")
    name = "host"

    def peak_mib(self, step: Callable[[], object]) -> float:
        step()
        return peak_mib()

    def launches(self, step: Callable[[], object]) -> int:
        with profile(
            activities=[ProfilerActivity.CPU]
        ) as profiler:  # torch.compile takes no mode that counts operators
            step()
        return sum(event.name.startswith("aten::") for event in profiler.events() or [])

    def compiled(self, function: Callable, mode: str) -> Callable:
        """Traced as on a GPU; no code is generated."""
        return torch.compile(function, backend="aot_eager", dynamic=False, fullgraph=True)

    def graphed(self, module: nn.Module, samples: tuple[Tensor, ...]) -> Callable:
        module(*samples)
        return module

    def captured(self, step: Callable[[], Captured]) -> tuple[Callable[[], object], Captured]:
        return step, step()
