"""What times a step: the host's clock, or events on a GPU's stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch


class Clock(ABC):
    @abstractmethod
    def seconds(self, step: Callable[[], object]) -> float:
        """The time of one call of ``step``."""


class HostClock(Clock):
    def seconds(self, step: Callable[[], object]) -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin


class EventClock(Clock):
    """Of the current stream, which is idle before. The time that the GPU waits for launches is in it."""

    def seconds(self, step: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
