"""What people see: progress, tables, curves, intervals."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

# One colour for each operation, told apart by people with any colour vision (Okabe & Ito 2008).
COLOURS = ("#999999", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#F0E442")


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion (Wilson 1927): right also near 0 and 1, where the normal one leaves [0, 1]."""
    z = 1.959964
    p = correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(value: float, interval: Sequence[float]) -> str:
    low, high = interval
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


def console() -> Console:
    """On standard output. A file or a pipe is wide, so that nothing is broken over lines there."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def facts(values: Mapping[str, str]) -> None:
    """Print a fact a line."""
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value}")


def _bar(console: Console) -> Bar:
    """Shown on a terminal only."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=120,
    )


class Progress:
    """A bar with the time left on a terminal, and a line for each epoch everywhere.

    Args:
        label: shown before the bar.
        epochs: how many there will be.
        columns: of the history that are worth a place in the line, with the format of each.
        console: where to; None: standard output.
    """

    def __init__(self, label: str, epochs: int, columns: Mapping[str, str], console: Console | None = None) -> None:
        self.console = console or Console()
        self.label = label
        self.epochs = epochs
        self.columns = columns
        self._bar = _bar(self.console)

    def start(self, done: int, total: int) -> None:
        self._task = self._bar.add_task(self.label, total=total, completed=done)
        self._bar.start()

    def advance(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def line(self, row: Row, unit: str = "epoch") -> None:
        values = "  ".join(
            f"{name.replace('_', ' ')} {row[name]:{form}}" for name, form in self.columns.items() if name in row
        )
        self.console.print(f"{unit} {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  {values}", highlight=False)

    def stop(self) -> None:
        self._bar.stop()


class Rounds:
    """A bar with the time left, on a terminal: ``with Rounds(label, total) as rounds:`` around ``total`` calls of ``advance``."""

    def __init__(self, label: str, total: int, console: Console | None = None) -> None:
        self._bar = _bar(console or Console())
        self._task = self._bar.add_task(label, total=total)

    def advance(self) -> None:
        self._bar.advance(self._task)

    def __enter__(self) -> Rounds:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Text in the first column, numbers in the others."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def curves(
    history: Sequence[Row], logits: Sequence[Sequence[Sequence[float]]], edges: Sequence[str], ops: Sequence[str]
) -> bytes:
    """The course of a search as PNG: losses, accuracy, entropy, and the probability of every operation on every edge.

    Args:
        history: rows of ``history.csv``.
        logits: after every epoch [num_edges, num_ops], the start included.
        edges, ops: their names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(12, 6.4), dpi=130, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1)).flat
    loss, accuracy, entropy = top.subplots(1, 3)
    loss.plot(epochs, [row["train_loss"] for row in history], color="#0072B2", label="training, sampled paths")
    loss.plot(epochs, [row["valid_loss"] for row in history], color="#D55E00", label="validation, best cell")
    loss.set_title("Loss")
    loss.legend(frameon=False, fontsize=9)
    accuracy.plot(
        epochs, [100 * row["valid_accuracy"] for row in history], color="#D55E00", label="validation, shared weights"
    )
    if "cifar10_test_200" in history[-1]:
        accuracy.plot(
            epochs, [row["cifar10_test_200"] for row in history], color="#009E73", label="table, CIFAR-10, 200 epochs"
        )
    accuracy.set_title("Accuracy of the best cell, %")
    accuracy.legend(frameon=False, fontsize=9, loc="lower right")
    entropy.plot(epochs, [row["entropy"] for row in history], color="#444444", label="mean over the edges")
    entropy.axhline(math.log(len(ops)), color="#999999", linestyle="--", linewidth=1, label="uniform")
    entropy.set_ylim(0, 1.08 * math.log(len(ops)))
    entropy.set_title("Entropy, nats")
    entropy.legend(frameon=False, fontsize=9, loc="lower left")
    panels = bottom.subplots(1, len(edges), sharey=True, squeeze=False)[0]
    for edge, panel in enumerate(panels):
        for op, name in enumerate(ops):
            probability = [_softmax(step[edge])[op] for step in logits]
            panel.plot(range(len(logits)), probability, color=COLOURS[op % len(COLOURS)], label=name, linewidth=1.8)
        panel.set_title(edges[edge], fontsize=10)
        panel.set_ylim(0, 1)
    panels[0].set_ylabel("probability")
    bottom.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ops), frameon=False, fontsize=9
    )
    for panel in (loss, accuracy, entropy, *panels):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def svg(figure: Figure, salt: str) -> bytes:
    """A figure as SVG: the same one gives the same file, and ``salt`` keeps its ids apart from other figures'."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]
