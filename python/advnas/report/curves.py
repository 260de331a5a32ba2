"""The course of a search as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from advnas.report.figures import COLOURS, plain, png
from advnas.run.folder import History, Logits

IN_A_ROW = 7  # edges, of which each has a panel


def curves(history: History, logits: Logits, metric: str, table_column: str | None = None) -> bytes:
    """Losses, a metric, entropy, and the probability of every operation on every edge, as PNG.

    Args:
        history: rows of ``history.csv``.
        logits: of ``logits.csv``.
        metric: column of the history beside the losses, such as ``valid_accuracy``.
        table_column: another column to show with it, in percent, where the history has it.
    """
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    columns = min(len(logits.edges), IN_A_ROW)
    rows = math.ceil(len(logits.edges) / columns)
    figure = Figure(figsize=(12, 3.6 + 1.8 * rows + 1), dpi=130, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.45, 1.95 * rows + 1)).flat
    loss, quality, entropy = top.subplots(1, 3)
    loss.plot(epochs, [row["train_loss"] for row in history], color="#0072B2", label="training, sampled paths")
    loss.plot(epochs, [row["valid_loss"] for row in history], color="#D55E00", label="validation, best cell")
    loss.set_title("Loss")
    loss.legend(frameon=False, fontsize=9)
    percent = metric.endswith("accuracy")
    values = [100 * row[metric] if percent else row[metric] for row in history]
    quality.plot(epochs, values, color="#D55E00", label="validation, shared weights")
    if table_column is not None and table_column in history[-1]:
        quality.plot(epochs, [row[table_column] for row in history], color="#009E73", label=f"table, {table_column}")
    name = metric.removeprefix("valid_").capitalize()
    quality.set_title(f"{name} of the best cell{', %' if percent else ''}")
    quality.legend(frameon=False, fontsize=9, loc="lower right" if percent else "upper right")
    entropy.plot(epochs, [row["entropy"] for row in history], color="#444444", label="mean over the edges")
    entropy.axhline(math.log(len(logits.ops)), color="#999999", linestyle="--", linewidth=1, label="uniform")
    entropy.set_ylim(0, 1.08 * math.log(len(logits.ops)))
    entropy.set_title("Entropy, nats")
    entropy.legend(frameon=False, fontsize=9, loc="lower left")
    grid = bottom.subplots(rows, columns, sharey=True, squeeze=False)
    panels, spare = grid.flat[: len(logits.edges)], grid.flat[len(logits.edges) :]
    for panel in spare:
        panel.set_axis_off()
    for edge, panel in enumerate(panels):
        for op, name in enumerate(logits.ops):
            probability = [softmax(epoch[edge])[op] for epoch in logits.values]
            panel.plot(
                range(len(probability)), probability, color=COLOURS[op % len(COLOURS)], label=name, linewidth=1.8
            )
        panel.set_title(logits.edges[edge], fontsize=10)
        panel.set_ylim(0, 1)
    for panel in grid[:, 0]:
        panel.set_ylabel("probability")
    handles, names = panels[0].get_legend_handles_labels()
    bottom.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    for panel in (loss, quality, entropy, *panels):
        plain(panel)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    return png(figure)


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]
