"""Numbers as people read them, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion (Wilson 1927): right also near 0 and 1, where the normal one leaves [0, 1]."""
    z = 1.959964
    p = correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(value: float, bounds: Sequence[float]) -> str:
    """A proportion in percent, with its 95% interval."""
    low, high = bounds
    return f"{100 * value:.2f}% (95%: {100 * low:.2f} - {100 * high:.2f})"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else f"{minutes} min {rest:02} s"
        if minutes
        else f"{seconds:.1f} s"
    )


def paired_difference(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """How much more often ``first`` is right than ``second`` on the same examples, with the 95% interval of that difference.

    Only examples on which the two differ count (Wald's interval for paired proportions; examples are many here). It is about these
    two trained networks: training them again would move both.

    Args:
        first, second: bool [count].
    """
    count = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    difference = (gained - lost) / count
    half = 1.959964 * math.sqrt(max(gained + lost - (gained - lost) ** 2 / count, 0.0)) / count
    return difference, difference - half, difference + half
