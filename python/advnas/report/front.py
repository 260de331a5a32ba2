"""The cells that one search found within several limits, as a picture and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advnas.report.figures import plain, svg
from advnas.report.numbers import written

NAMES = {"flops": "FLOPs", "params": "parameters", "latency": "latency, ms"}
SCALES = {"flops": 1e-6, "params": 1e-6, "latency": 1e3}
UNITS = {"flops": ", millions", "params": ", millions", "latency": ""}


def front(rows: Sequence[Mapping[str, Any]], kind: str, column: str | None = None) -> bytes:
    """Loss against cost, a dot for each limit and the limit as a line, as SVG; with a table's column beside it, where rows have it.

    Args:
        rows: of front.csv.
        kind: of cost.
    """
    from matplotlib.figure import Figure

    scale = SCALES[kind]
    shown = ["loss", *(name for name in rows[0] if name == column)]
    figure = Figure(figsize=(5 * len(shown), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for row in rows:
            axes.axvline(scale * row["limit"], color="#999999", linewidth=0.8, linestyle=":")
        axes.plot([scale * row[kind] for row in rows], [row[name] for row in rows], "o-", color="#D55E00")
        axes.set_xlabel(NAMES[kind] + UNITS[kind])
        axes.set_ylabel({"loss": "loss after a short training"}.get(name, name))
        plain(axes)
    return svg(figure, "front")


def columns(kind: str, shown: Mapping[str, str]) -> list[str]:
    return ["cell", "limit", NAMES[kind].partition(",")[0], *(name.replace("_", " ") for name in shown)]


def lines(rows: Sequence[Mapping[str, Any]], kind: str, shown: Mapping[str, str]) -> list[list[str]]:
    """A line a limit, for people.

    Args:
        shown: further columns of ``rows``, with their formats.
    """
    return [
        [
            row["arch"],
            written(row["limit"], kind),
            written(row[kind], kind),
            *(f"{row[n]:{form}}" for n, form in shown.items()),
        ]
        for row in rows
    ]
