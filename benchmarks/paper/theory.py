"""Where AdvantageNAS's expected update lowers the expected loss, and where it does not; docs/theory.md has the derivations.

Writes paper-theory.svg: the expected loss against iterations of the exact expected update, from the uniform policy, with the step
2 / (largest loss - smallest loss), at which the exact gradient never raises it. Prints how the expected updates relate to the
gradient on random nodes that batch norm follows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from advnas.checkpoint import write_atomic
from advnas.report.console import console
from advnas.report.figures import plain, svg
from benchmarks.paper.expected import (
    UPDATES,
    Paths,
    batch_norm,
    descend,
    eclipsed,
    far_apart,
    half_square,
    linear_cell,
    listed,
    node,
    reinforce,
    toy_loss,
)
from benchmarks.paper.toy import OPS, Toy
from benchmarks.sheet import RESULTS, Sheet

EXAMPLES, CANDIDATES = 16, 3
ROUNDING = 1e-6  # of the cosine of an update that is 0 but for rounding
# Colour, width and dashes: lines that coincide stay visible.
LOOKS: dict[str, tuple[str, float, str]] = {
    "AdvantageNAS": ("#D55E00", 4.5, "-"),
    "against the input": ("#56B4E9", 3.2, "-"),
    "against the mean": ("#009E73", 2.2, "-"),
    "swap": ("#000000", 1.5, "--"),
    "REINFORCE": ("#E69F00", 2.2, ":"),
}


@dataclass
class Settings:
    positions: int = 4
    """Of the toy."""
    images: int = 100
    """Of the toy."""
    problems: int = 2000
    """Random nodes of each kind."""
    seed: int = 0
    out: FilePath = RESULTS
    """Folder of paper-theory.svg."""


@dataclass(frozen=True)
class Kind:
    """Random nodes before batch norm. All edges have one input x ~ N(0, 1) and choose between x and two others,

    near * x + noise * e^(sizes * N(0, 1)) * N(0, 1),     the exponent drawn for each operation, the rest for each example
    """

    edges: int
    near: float = 0.0
    noise: float = 1.0
    sizes: float = 0.0


KINDS = {
    "one": Kind(1),
    "one, near its input": Kind(1, near=1.0, noise=0.3),
    "three": Kind(3),
    "three, of sizes e^N(0, 1)": Kind(3, sizes=1.0),
}


def random_node(kind: Kind, seed: int) -> tuple[Paths, Tensor]:
    """A node whose edges have one input, and a policy of random logits."""
    draw = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    x = torch.randn(EXAMPLES, **draw)
    outputs = x.repeat(kind.edges, CANDIDATES + 1, 1)
    others = outputs[:, 1:CANDIDATES]
    size = (kind.sizes * torch.randn(others.shape[:2], **draw)).exp()[:, :, None]
    others.mul_(kind.near).add_(kind.noise * size * torch.randn(others.shape, **draw))
    loss, p = half_square(torch.randn(EXAMPLES, **draw)), torch.randn(kind.edges, CANDIDATES, **draw).softmax(1)
    return listed(node(outputs, lambda sums: loss(batch_norm(sums))), kind.edges, CANDIDATES, CANDIDATES + 1), p


def cosines(paths: Paths, p: Tensor) -> Tensor:
    """Of the expected updates, in the order of UPDATES, with the gradient of the expected loss: below 0, a small step raises it."""
    updates = torch.stack([update(paths, p).flatten() for update in UPDATES.values()])
    return torch.cosine_similarity(updates, reinforce(paths, p).flatten(), dim=1, eps=1e-9)


def table_of(problems: int, seed: int) -> Table:
    lines = []
    for label, kind in KINDS.items():
        found = torch.stack([cosines(*random_node(kind, seed + i)) for i in range(problems)])
        raised = (found < -ROUNDING).double().mean(0)
        mean = found.mean(0).round(decimals=2) + 0.0  # no -0.00
        lines.append([label, *(f"{c:.2f}, {r:.1%}" for c, r in zip(mean.tolist(), raised.tolist(), strict=True))])
    title = f"mean cosine with the gradient, and the share of {problems} nodes on which a small step raises the loss"
    return Sheet(title, ("edges at the node", *UPDATES), rows=lines).rich()


def panels(settings: Settings) -> dict[str, tuple[Paths, tuple[str, ...], int]]:
    """Title to problem, methods and iterations."""
    generator = torch.Generator().manual_seed(settings.seed)
    toy = Toy(settings.seed, settings.images, settings.positions)
    everything = tuple(UPDATES)
    without_input = tuple(name for name in UPDATES if name != "against the input")
    return {
        "linear: all coincide": (listed(linear_cell(generator), 3, 3, 4), everything, 60),
        "batch norm: x or 2x": (eclipsed(), everything, 30),
        "batch norm: -x or 10x": (far_apart(), everything, 30),
        f"the paper's toy, {settings.positions} positions": (
            listed(toy_loss(toy), settings.positions, OPS, OPS),
            without_input,
            250,
        ),
    }


def draw(settings: Settings) -> bytes:
    figure = Figure(figsize=(9.5, 6.6), layout="constrained")
    for axes, (title, problem) in zip(figure.subplots(2, 2).flat, panels(settings).items(), strict=True):
        _panel(axes, title, *problem)
    figure.supxlabel("iterations of the exact expected update", fontsize=11)
    figure.supylabel("expected loss", fontsize=11)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return svg(figure, "paper-theory")


def _panel(axes: Axes, title: str, paths: Paths, names: Sequence[str], count: int) -> None:
    for name in names:
        color, width, dashes = LOOKS[name]
        curve = descend(paths, UPDATES[name], 2 / paths.spread, count)
        axes.plot(curve, dashes, color=color, linewidth=width, label=name)
    axes.set_title(title, fontsize=11)
    plain(axes)


def main(settings: Settings) -> None:
    torch.set_num_threads(1)  # the tensors are too small for more
    settings.out.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.out / "paper-theory.svg", draw(settings))
    console().print(table_of(settings.problems, settings.seed))
    console().print(f"{os.path.relpath(settings.out)}: paper-theory.svg", soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
