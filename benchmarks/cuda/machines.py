"""Where the benchmark for GPUs runs: on a GPU, or in tests on the host."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.cuda.gpus import GPUS, Gpu
from benchmarks.cuda.operators import operators_of
from benchmarks.steps.peak import peak_mib
from benchmarks.steps.sides import Clock, host_clock


class Machine(ABC):
    device: torch.device
    clock: Clock
    name: str

    @property
    def gpu(self) -> Gpu | None:
        """Its published figures, if they are known; of a card with another cooling or memory they are the nearest."""
        chips = {gpu: gpu.name.removeprefix("RTX ").split()[0] for gpu in GPUS}
        return next((gpu for gpu, chip in chips.items() if re.search(rf"\b{chip}\b", self.name)), None)

    @abstractmethod
    def peak_mib(self, step: Callable[[], object]) -> float:
        """The most memory that tensors hold during ``step``, beside those that exist before it."""

    @abstractmethod
    def launches(self, step: Callable[[], object]) -> int:
        """The kernels that ``step`` launches."""


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


class Host(Machine):
    """Its peak is that of the process; it launches nothing but PyTorch's operators."""

    clock = staticmethod(host_clock)
    device = torch.device("cpu")
    name = "host"

    def peak_mib(self, step: Callable[[], object]) -> float:
        step()
        return peak_mib()

    def launches(self, step: Callable[[], object]) -> int:
        return sum(work.launches for work in operators_of(step))
