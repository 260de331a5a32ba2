"""Where credit goes: variants of the estimators of one operation an edge, from the same measured paths, along a search.

    python -m benchmarks.paper.credit --run RUN --epochs 8 10 12 14        # or make paper-credit RUN=RUN EPOCHS="8 10 12 14"

At the weights of a finished search and the logits that it had after each of ``--epochs``, every path of ``--batches`` x ``--paths``
gives its loss and the advantages of its edges, with no baseline and with the edge's input. From these come the gradients of all
variants, so that they see the same noise, beside the exact gradient (leave-one-out, all paths of a batch) as in advnas analysis
signal: variants of one half of the batches beside the exact gradient of the other half. The values that a variant takes off (means
of each edge, of each operation, an additive critic) are fitted to the half of the batches that it is not measured on. Costs are
medians of the passes as they ran. ``push_OP`` is where the mean gradient moves the logits of an operation, as a mean over the edges
in units of the gradient's norm; the exact gradient has a line for that.
Appends to ``credit.csv`` in ``--results``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from advnas.analysis import searched
from advnas.analysis.signal import Signal, compare_on_batches
from advnas.report.console import Rounds, console, print_table
from advnas.run.folder import read_csv, write_csv
from advnas.run.search import Search
from advnas_ext import OnePathCell
from advnas_ext import Path as OnePath
from advnas_ext.estimators.base import through_softmax
from benchmarks.paper.jobs import main

BASELINES = (None, "input")


@dataclass
class Settings:
    run: Path
    """Run folder of a search."""
    epochs: tuple[int, ...]
    """Epochs after which the logits are taken."""
    batches: int = 200
    paths: int = 8
    """On each batch; a multiple of 4."""
    results: Path = Path("benchmarks/results")


@dataclass(frozen=True)
class Measured:
    """Paths on common batches.

    Attributes:
        logits: [num_edges, num_ops].
        ops: int64 [batches, paths, num_edges].
        losses: [batches, paths].
        advantages: [batches, paths, num_edges] for each of ``BASELINES``.
        forward, backward: seconds of a forward pass, and of both passes for each of ``BASELINES``.
    """

    logits: Tensor
    ops: Tensor
    losses: Tensor
    advantages: tuple[Tensor, Tensor]
    forward: float
    backward: tuple[float, float]


def measure(run: Search, logits: Tensor, batches: int, paths: int, rounds: Rounds) -> Measured:
    """Draw paths at the logits and measure them; changes no weights."""
    state, task, cells = run.state, run.task, [m for m in run.state.network.modules() if isinstance(m, OnePathCell)]
    generator = torch.Generator().manual_seed(0)
    took: dict[object, list[float]] = {"forward": [], None: [], "input": []}
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(batches):
        batch = next(state.arch_batches)
        for _ in range(paths):
            ops = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
            started = time.perf_counter()
            with torch.no_grad():
                loss = task.loss(state.network, batch, OnePath.from_ops(ops, requires_grad=False))
            took["forward"].append(time.perf_counter() - started)
            credit = []
            for baseline in BASELINES:
                for cell in cells:
                    cell.baseline = baseline
                path = OnePath.from_ops(ops)
                started = time.perf_counter()
                task.placement.backward(task.loss(state.network, batch, path), [path.gates])
                took[baseline].append(time.perf_counter() - started)
                assert path.gates.grad is not None
                credit.append(path.gates.grad[:, 0])
            found.append((ops, loss, *credit))
        rounds.advance()
    ops, losses, *advantages = (torch.stack(part).unflatten(0, (batches, paths)) for part in zip(*found, strict=True))
    seconds = {name: statistics.median(values) for name, values in took.items()}
    plain, compared = (values.double() for values in advantages)
    costs = seconds["forward"], (seconds[None], seconds["input"])
    return Measured(logits.double(), ops, losses.double(), (plain, compared), *costs)


def leave_one_out(score: Tensor, values: Tensor, size: int) -> Tensor:
    """Gradients of groups of so many paths of a batch: [batches, paths / size, num_edges, num_ops]."""
    groups = values.unflatten(1, (-1, size))
    weights = (groups - groups.mean(-1, keepdim=True)) / (size - 1)
    return (weights[..., None, None] * score.unflatten(1, (-1, size))).sum(2)


def variants(measured: Measured) -> Iterator[tuple[str, Tensor, float]]:
    """Name, gradients [count, num_edges, num_ops] and seconds for one of them."""
    p, losses = measured.logits.softmax(1), measured.losses
    picked = one_hot(measured.ops, measured.logits.shape[1]).double()
    score = picked - p

    def known(values: Tensor) -> Tensor:
        """The gradient of the expected sum of values [batches, num_edges, num_ops]."""
        return through_softmax(p.expand_as(values), values)[:, None]

    def left(values: Tensor) -> Tensor:
        """Those of the picks: [batches, paths, num_edges]."""
        return (picked * values[:, None]).sum(-1)

    critic = crossed(picked, losses, additive)
    unexplained = losses - critic[:, :1] - left(critic[:, 1:].unflatten(1, p.shape)).sum(-1)
    of_critic = known(critic[:, 1:].unflatten(1, p.shape))
    forward = measured.forward
    yield "reinforce", (losses - losses.mean())[..., None, None] * score, forward
    yield "reinforce, critic", of_critic + unexplained[..., None, None] * score, forward
    for size in (2, 4):
        yield f"{size} paths, leave one out", leave_one_out(score, losses, size), size * forward
        yield f"{size} paths, critic", of_critic + leave_one_out(score, unexplained, size), size * forward
    for baseline, advantages, seconds in zip(BASELINES, measured.advantages, measured.backward, strict=True):
        name = "advantage" if baseline is None else f"advantage, {baseline}"
        yield name, advantages[..., None] * score, seconds
        for off, means in (("edge", edge_means), ("operation", operation_means)):
            values = crossed(picked, advantages, means)
            yield f"{name}, {off} means off", known(values) + (advantages - left(values))[..., None] * score, seconds


def crossed(picked: Tensor, values: Tensor, fit: object) -> Tensor:
    """``fit`` of the odd batches for the even ones, and the reverse: [batches, ...]."""
    halves = [fit(picked[other::2].flatten(0, 1), values[other::2].flatten(0, 1)) for other in (1, 0)]  # type: ignore[operator]
    return torch.stack([halves[batch % 2] for batch in range(len(picked))])


def additive(picked: Tensor, losses: Tensor) -> Tensor:
    """Least squares with a small penalty: the constant, and the values of all operations. [1 + num_edges * num_ops]."""
    features = torch.cat([picked.new_ones(len(picked), 1), picked.flatten(1)], 1)
    penalty = torch.eye(features.shape[1], dtype=features.dtype)
    penalty[0] = 0
    return torch.linalg.solve(features.T @ features + penalty, features.T @ losses)


def edge_means(picked: Tensor, advantages: Tensor) -> Tensor:
    return advantages.mean(0)[:, None].expand(picked.shape[1:])


def operation_means(picked: Tensor, advantages: Tensor) -> Tensor:
    """That of its edge for an operation that was hardly picked."""
    count = picked.sum(0)
    means = (picked * advantages[..., None]).sum(0) / count.clamp(min=1)
    return torch.where(count >= 5, means, edge_means(picked, advantages))


Row = dict[str, object]


def at(run: Search, epoch: int, settings: Settings, rounds: Rounds) -> list[Row]:
    """A row for each variant, and one for the exact gradient."""
    measured = measure(run, torch.tensor(run.state.logits[epoch]), settings.batches, settings.paths, rounds)
    score = one_hot(measured.ops, measured.logits.shape[1]) - measured.logits.softmax(1)
    exact = leave_one_out(score, measured.losses, settings.paths)[:, 0]
    common: Row = {
        "searched_by": run.config.estimator,
        "seed": run.config.seed,
        "epoch": epoch,
        "entropy": torch.special.entr(measured.logits.softmax(1)).sum(1).mean().item(),
    }
    rows = []
    for name, found, cost in variants(measured):
        signal = compare_on_batches(name, found, exact, cost)
        rows.append({**common, **row(run, signal), **pushes(run, found.flatten(0, 1))})
    return [*rows, {**common, "variant": "exact", **pushes(run, exact)}]


def pushes(run: Search, gradients: Tensor) -> Row:
    mean = gradients.mean(0)
    values = -mean.mean(0) / mean.norm()
    return {f"push_{op}": value for op, value in zip(run.task.ops, values.tolist(), strict=True)}


def go(settings: Settings) -> None:
    if settings.paths % 4 or settings.paths < 4:
        raise ValueError(f"paths: must be a multiple of 4, got {settings.paths}")
    _, run = searched(settings.run, threads=1)
    if not any(isinstance(module, OnePathCell) for module in run.state.network.modules()):
        raise ValueError(f"{settings.run}: must be a search of NAS-Bench-201's cells, got {run.config.space}")
    rows: list[Row] = []
    with Rounds("measuring paths", len(settings.epochs) * settings.batches, console()) as rounds:
        for epoch in settings.epochs:
            rows += at(run, epoch, settings, rounds)
    settings.results.mkdir(parents=True, exist_ok=True)
    file = settings.results / "credit.csv"
    before: list[Row] = [*read_csv(file)] if file.exists() else []
    columns = dict.fromkeys(name for line in (*before, *rows) for name in line)
    lines = [{name: line.get(name, "") for name in columns} for line in (*before, *rows)]
    write_csv(file, lines)
    shown = ["epoch", "entropy", "variant", "correlation", "snr", "ms", "after_1_s"]
    moved = ["epoch", "variant", *(name for name in rows[0] if name.startswith("push_"))]
    snr = [name for name in rows[0] if name.startswith("snr_")]
    for title, names in ((f"{settings.run}", [*shown, *snr]), ("where the logits are moved", moved)):
        print_table(title, names, [[text(line[name]) for name in names] for line in lines[len(before) :]])


def row(run: Search, signal: Signal) -> Row:
    edges = run.task.space.edge_names
    return {
        "variant": signal.name,
        "correlation": signal.correlation,
        "correlation_low": signal.low,
        "correlation_high": signal.high,
        "snr": signal.snr,
        **{f"snr_{edge}": value for edge, value in zip(edges, signal.snr_by_edge, strict=True)},
        "ms": 1000 * signal.cost,
        "after_1_s": signal.after,
        "after_1_s_low": signal.after_low,
        "after_1_s_high": signal.after_high,
    }


def text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main("credit", __doc__, Settings, go)
