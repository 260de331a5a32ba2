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


def number(text: str) -> int | float | str:
    """The number that a text is; any other text as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# What a number may end with, by what it counts; seconds for a latency.
SUFFIXES: dict[str, dict[str, float]] = {
    "flops": {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9},
    "latency": {"": 1, "s": 1, "ms": 1e-3, "us": 1e-6},
}


def quantity(text: str, kind: str) -> float:
    """The number of a text such as 60M, 1.5k, 15ms; see ``SUFFIXES``.

    Raises:
        ValueError: it is none above 0.
    """
    suffixes = SUFFIXES[kind]
    number = text.rstrip("".join(suffixes))
    try:
        value = float(number) * suffixes[text[len(number) :]]
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"must be a number above 0, with {', '.join(s for s in suffixes if s)} or nothing behind it")
    return value


def written(value: float, kind: str) -> str:
    """A number as :func:`quantity` reads it, in four digits."""
    sizes = [(size, suffix) for suffix, size in SUFFIXES[kind].items() if suffix not in ("", "K")]
    size, suffix = max(
        (pair for pair in sizes if pair[0] <= value),
        default=(1.0, "") if kind != "latency" else min(sizes),
    )
    return f"{value / size:.4g}{suffix}"


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
