"""What the estimators' signals are worth on several problems, along a search: the toy regression, and searches that were run.

    python -m benchmarks.paper.signals --runs RUN ...          # or make paper-signals RUNS="RUN ..."

The toy is that of :mod:`benchmarks.paper.toy`; its logits are those of AdvantageNAS after each of ``--toy-steps``. A run is a
folder of ``advnas search`` of any task; its logits are those after the warm-up and after each of ``--epochs``, its weights the
last ones. At each of them every estimator is compared with the exact gradient, as by ``advnas analysis signal``, and all are given
the same time: that of ``--passes`` samples of REINFORCE, which are forward passes of one path. Writes signals.csv to ``--results``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advnas.analysis import searched
from advnas.analysis.signal import LEARNING, Problem, compare, draw, rounds
from advnas.report.console import Rounds, console, print_table
from advnas.run.folder import RunFolder, write_csv
from advnas_ext import AdvantageEstimator, Estimator
from benchmarks.paper.jobs import main
from benchmarks.paper.toy import OPS, POSITIONS, Toy

REFERENCE = "reinforce"


@dataclass
class Settings:
    runs: tuple[Path, ...] = ()
    """Run folders of searches."""
    epochs: tuple[int, ...] = ()
    """Epochs of the runs after which the logits are taken, besides the warm-up."""
    toy_steps: tuple[int, ...] = (0, 200, 600)
    """Steps of AdvantageNAS on the toy after which the logits are taken; none: without the toy."""
    toy_seed: int = 100
    passes: int = 100
    """Samples of REINFORCE that the time allows."""
    samples: int = 200
    """Of each estimator."""
    exact_samples: int = 400
    """Batches for the exact gradient, with 16 paths each."""
    estimators: tuple[str, ...] = LEARNING
    results: Path = Path("benchmarks/results")


# A problem, its name, where its logits are, and the logits.
Place = tuple[Problem, str, str, Tensor]


def places(settings: Settings) -> Iterator[Place]:
    yield from on_toy(settings)
    for folder in settings.runs:
        yield from of_run(folder, settings.epochs)


def on_toy(settings: Settings) -> Iterator[Place]:
    """Along the way of AdvantageNAS, with the settings of the paper."""
    toy = Toy(settings.toy_seed, held_out=1)
    batches, generator = toy.batches(100), torch.Generator().manual_seed(toy.path_seed)

    def estimate(estimator: Estimator) -> None:
        patches = next(batches)
        for _ in range(estimator.paths_per_batch):
            path = estimator.sample(generator)
            with torch.set_grad_enabled(estimator.needs_gate_gradients):
                loss = toy.loss(patches, path)
            if loss.requires_grad:
                loss.backward()
            estimator.assign_grad(path, loss)

    problem = Problem(POSITIONS, OPS, estimate)
    learner = AdvantageEstimator(POSITIONS, OPS, total_steps=max(settings.toy_steps, default=0))
    optimizer = torch.optim.Adam([learner.logits], lr=1e-3)
    for step in range(max(settings.toy_steps, default=-1) + 1):
        if step in settings.toy_steps:
            yield problem, "toy", f"step {step}", learner.logits.detach().clone()
        estimate(learner)
        optimizer.step()


def of_run(folder: Path, epochs: tuple[int, ...]) -> Iterator[Place]:
    run = searched(folder, threads=1)[1]
    for epoch in (run.config.warmup_epochs, *epochs):
        yield Problem.of(run), run.config.space, f"epoch {epoch}", torch.tensor(run.state.logits[epoch])


def measured(place: Place, settings: Settings, advance: Any) -> list[dict[str, Any]]:
    """A row an estimator, that which is ahead after the common time first."""
    problem, name, at, logits = place
    counts = settings.samples, settings.exact_samples
    names = tuple(dict.fromkeys((REFERENCE, *settings.estimators)))
    exact, drawn = draw(problem, logits, *counts, names, advance)
    seconds = settings.passes * drawn[REFERENCE][1]
    signals = [compare(each, gradients, exact, cost, seconds) for each, (gradients, cost) in drawn.items()]
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean().item()
    return [
        {
            "problem": name,
            "at": at,
            "entropy": entropy,
            "estimator": signal.name,
            "correlation": signal.correlation,
            "correlation_low": signal.low,
            "correlation_high": signal.high,
            "snr": signal.snr,
            "ms": 1000 * signal.cost,
            "seconds": seconds,
            "after": signal.after,
            "after_low": signal.after_low,
            "after_high": signal.after_high,
        }
        for signal in sorted(signals, key=lambda signal: -signal.after)
    ]


def go(settings: Settings) -> None:
    torch.set_num_threads(1)
    for folder in settings.runs:
        RunFolder.of(folder)  # says what is missing before anything runs
    count = len(settings.toy_steps) + len(settings.runs) * (1 + len(settings.epochs))
    each = rounds(settings.samples, settings.exact_samples)
    with Rounds("measuring gradients", count * each, console()) as shown:
        rows = [row for place in places(settings) for row in measured(place, settings, shown.advance)]
    settings.results.mkdir(parents=True, exist_ok=True)
    write_csv(settings.results / "signals.csv", rows)
    print_table("signals", list(rows[0]), [[text(value) for value in row.values()] for row in rows])


def text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main("signals", __doc__, Settings, go)
