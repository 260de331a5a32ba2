"""Networks side by side as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advnas.report.figures import plain, svg

FOUND, OTHER = "#D55E00", "#999999"


def comparison(values: Mapping[str, tuple[float, Sequence[float]]], highlighted: str, label: str) -> bytes:
    """A dot with its interval for each, the first one at the bottom, as SVG.

    Args:
        values: a proportion and its interval, by name.
        highlighted: the one in another colour.
        label: of the axis, in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.32 * len(values)), layout="constrained")
    axes = figure.subplots()
    for place, (name, (value, (low, high))) in enumerate(values.items()):
        colour = FOUND if name == highlighted else OTHER
        axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2)
        axes.plot([100 * value], [place], "o", color=colour, markersize=7)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_xlabel(label)
    plain(axes)
    return svg(figure, "comparison")
