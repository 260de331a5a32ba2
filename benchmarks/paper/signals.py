"""What the estimators' signals are worth on several problems, along a search: the toy regression, and searches that were run.

    python -m benchmarks.paper.signals --runs RUN ...          # or make paper-signals RUNS="RUN ..."

The toy is that of :mod:`benchmarks.paper.toy`, searched by AdvantageNAS. A run is a folder of ``advnas search`` of any task; its
weights are the last ones. Logits are those after shares of the way from the warm-up to the end. At each of them every estimator is
compared with the exact gradient, as by ``advnas analysis signal``, and all are given the same time: that of ``--passes`` samples of
REINFORCE, which are forward passes of one path. Writes signals.csv to ``--results``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advnas.analysis import searched
from advnas.analysis.signal import LEARNING, Problem, compare, draw, rounds
from advnas.report.console import Rounds, console, print_table
from advnas.run.folder import write_csv
from advnas.search import estimate
from advnas_ext import AdvantageEstimator
from benchmarks.paper.jobs import main, require_names
from benchmarks.paper.toy import OPS, POSITIONS, Toy

REFERENCE = "reinforce"


@dataclass
class Settings:
    runs: tuple[Path, ...] = ()
    """Run folders of searches."""
    way: tuple[float, ...] = (0.0, 0.2, 0.5)
    """Shares of the way from uniform logits to the last ones."""
    toy_steps: int = 800
    """Steps of AdvantageNAS on the toy, until it has nearly settled; 0: without the toy."""
    toy_seed: int = 100
    passes: int = 100
    """Samples of REINFORCE that the time allows."""
    samples: int = 200
    """Of each estimator."""
    exact_samples: int = 400
    """Batches for the exact gradient, with 16 paths each."""
    estimators: tuple[str, ...] = LEARNING
    critic_paths: int = 4
    """That the critic measures on a batch."""
    results: Path = Path("benchmarks/results")


# A problem, its name, where its logits are, and the logits.
Place = tuple[Problem, str, str, Tensor]


def places(settings: Settings) -> Iterator[Place]:
    own = {"critic": {"num_samples": settings.critic_paths}}
    toy = on_toy(settings) if settings.toy_steps else ()
    for problem, *where in chain(toy, *(of_run(folder, settings.way) for folder in settings.runs)):
        yield replace(problem, settings={**problem.settings, **own}), *where


def on_toy(settings: Settings) -> Iterator[Place]:
    """Along the way of AdvantageNAS, with the settings of the paper."""
    toy = Toy(settings.toy_seed, held_out=1)
    batches, generator = toy.batches(100), torch.Generator().manual_seed(toy.path_seed)

    problem = Problem(POSITIONS, OPS, lambda each: estimate(partial(toy.loss, next(batches)), each, generator))
    learner = AdvantageEstimator(POSITIONS, OPS, total_steps=settings.toy_steps)
    optimizer = torch.optim.Adam([learner.logits], lr=1e-3)
    done = 0
    for share in sorted(settings.way):
        while done < share * settings.toy_steps:
            problem.estimate(learner)
            optimizer.step()
            done += 1
        yield problem, "toy", f"step {done}", learner.logits.detach().clone()


def of_run(folder: Path, way: tuple[float, ...]) -> Iterator[Place]:
    run = searched(folder, threads=1)[1]
    start, end = run.config.warmup_epochs, run.config.epochs
    if run.state.epoch < end:
        raise ValueError(
            f"{folder}: must be a finished search, got {run.state.epoch} of {end} epochs; go on with it first"
        )
    for epoch in sorted({start + round(share * (end - start)) for share in way}):
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
    require_names("estimators", settings.estimators, LEARNING)
    torch.set_num_threads(1)
    every = list(places(settings))
    each = rounds(settings.samples, settings.exact_samples)
    with Rounds("measuring gradients", len(every) * each, console()) as shown:
        rows = [row for place in every for row in measured(place, settings, shown.advance)]
    settings.results.mkdir(parents=True, exist_ok=True)
    write_csv(settings.results / "signals.csv", rows)
    print_table("signals", list(rows[0]), [[text(value) for value in row.values()] for row in rows])


def text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main("signals", __doc__, Settings, go)
