"""Numbers as people read them, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
