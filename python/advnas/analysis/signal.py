"""What an estimator's gradient is worth, at fixed weights of the supernet.

The exact gradient of the expected loss is made of main effects,

    dE[L]/dlogits_{e,k} = p_{e,k} (E[L | a_e = k] - E[L]),

which many independent paths on common batches give without bias (REINFORCE with a leave-one-out baseline). An estimator's samples g
are compared with it:

    correlation      rho = <E g, exact> / (|E g| |exact|)         its bias: averaging can bring no more
    signal to noise  s = |E g| / sqrt(E |g - E g|^2)              of one sample

The mean of n samples has a correlation of about rho / sqrt(1 + 1 / (n s^2)): it reaches c with n = 1 / (s^2 (rho^2 / c^2 - 1)).

A constant in a row of logits changes no probability, so that the mean of every row is taken off a gradient (only NASP's has one),
and this cosine is a correlation. Squared norms of means are products of the means of two halves of the samples: noise then adds
nothing in expectation. Where such a product is not above 0, noise hides the signal: the correlation is NaN, or s is 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from advnas.report.figures import COLOURS, plain, svg
from advnas.report.numbers import duration
from advnas.run.search import Search
from advnas.search import estimate
from advnas_ext import ESTIMATORS, Estimator, RlooEstimator

PATHS = 16  # measured on one batch for the exact gradient
RESAMPLES = 1000
LEARNING = tuple(name for name, kind in ESTIMATORS.items() if kind.learns)
AFTER = 1.0  # seconds of averaging after which the correlations are compared
REACHED = (0.5, 0.7)  # correlations of the averaged gradient to which times are given


@dataclass(frozen=True)
class Signal:
    """An estimator beside the exact gradient.

    Attributes:
        correlation, low, high: with the exact gradient, and its 95% bootstrap interval. The correlation is NaN where noise
            hides the signal.
        by_edge: the same for each edge.
        snr: signal to noise of one sample.
        snr_by_edge: the same for each edge. Adam scales the gradient of every logit by its size, so that this decides how soon an
            edge is settled, whatever its share of the whole.
        cost: seconds for one sample.
        after, after_low, after_high: correlation of the mean of as many samples as some seconds allow, ``AFTER`` if no others are
            given, and its 95% bootstrap interval.
    """

    name: str
    correlation: float
    low: float
    high: float
    by_edge: tuple[float, ...]
    snr: float
    snr_by_edge: tuple[float, ...]
    cost: float
    after: float
    after_low: float
    after_high: float

    def reached_after(self, seconds: float) -> float:
        """Correlation of the mean of as many samples as this time allows, fractions of one included."""
        return self.correlation / math.sqrt(1 + self.cost / (seconds * self.snr**2)) if self.snr > 0 else 0.0

    def time_to(self, correlation: float) -> float:
        """Seconds until the averaged gradient has this correlation, whole samples; infinite where the bias forbids it."""
        if not self.correlation > correlation or self.snr <= 0:  # NaN included
            return math.inf
        samples = 1 / (self.snr**2 * ((self.correlation / correlation) ** 2 - 1))
        return self.cost * max(1, math.ceil(samples))


@dataclass(frozen=True)
class Exact:
    """Samples of the exact gradient, [count, num_edges, num_ops], and the correlation of the means of their two halves."""

    samples: Tensor
    reliability: float


@dataclass(frozen=True)
class Problem:
    """What estimators are measured on: paths that have losses.

    Attributes:
        num_edges, num_ops: of the logits.
        estimate: measures an estimator's paths on one batch, which fills ``logits.grad``; it stays None while the estimator wants
            more batches.
        zero_op: place of the zero operation, if there is one.
        settings: of estimators, by their names, that are others than the defaults.
    """

    num_edges: int
    num_ops: int
    estimate: Callable[[Estimator], object]
    zero_op: int | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Search) -> Problem:
        """The architecture half of a search's data, with the weights that it has."""
        state, config, task = run.state, run.config, run.task

        def measure_paths(estimator: Estimator) -> None:
            loss_of = partial(task.loss, state.network, next(state.arch_batches))
            estimate(loss_of, estimator, state.path_generator, task.placement)

        num_edges, num_ops = state.estimator.logits.shape
        return cls(
            num_edges,
            num_ops,
            measure_paths,
            state.zero_op,
            {config.estimator: config.estimator_settings},
        )


def measure(
    problem: Problem,
    logits: Tensor,
    samples: int,
    exact_samples: int,
    names: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> tuple[Exact, list[Signal]]:
    """Estimators beside the exact gradient, with the arguments of :func:`draw`; the fastest to a correlation of ``REACHED[0]``
    comes first."""
    exact, drawn = draw(problem, logits, samples, exact_samples, names, advance)
    signals = [compare(name, gradients, exact, cost) for name, (gradients, cost) in drawn.items()]
    by_time = sorted(signals, key=lambda signal: (signal.time_to(REACHED[0]), -_known(signal.correlation)))
    return Exact(exact, _reliability(exact)), by_time


def draw(
    problem: Problem,
    logits: Tensor,
    samples: int,
    exact_samples: int,
    names: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
    """Samples of the exact gradient, and of every estimator its samples and the seconds for one, a median.

    What some estimators remember, such as averages, has settled in :func:`rounds` minus ``samples + exact_samples`` rounds before
    anything is kept.

    Args:
        problem: is not changed, but for batches that it uses up.
        logits: [num_edges, num_ops], where to measure.
        samples: gradients of each estimator, at least 4. They are drawn in turns, so that slow moments of the machine hit
            all alike.
        exact_samples: batches for the exact gradient, with ``PATHS`` paths on each; at least 4.
        names: registered estimators that learn; none: all of them.
        advance: called after each of :func:`rounds` rounds.
    """
    truth = _at(logits, RlooEstimator(*logits.shape, num_samples=PATHS, stratified=False))
    exact = []
    for _ in range(exact_samples):
        exact.append(_sample(problem, truth))
        advance()
    names = names or LEARNING
    estimators = [_at(logits, _halfway(problem, name)) for name in names]
    gradients: list[list[Tensor]] = [[] for _ in names]
    seconds: list[list[float]] = [[] for _ in names]
    settling = _settling(samples)
    for _ in range(settling + samples):
        for estimator, drawn, took in zip(estimators, gradients, seconds, strict=True):
            started = time.perf_counter()
            drawn.append(_sample(problem, estimator))
            took.append(time.perf_counter() - started)
        advance()
    costs = [torch.tensor(took[settling:]).median().item() for took in seconds]
    kept = [torch.stack(drawn[settling:]) for drawn in gradients]
    return torch.stack(exact), dict(zip(names, zip(kept, costs, strict=True), strict=True))


def rounds(samples: int, exact_samples: int) -> int:
    """How often :func:`measure` calls ``advance``."""
    return _settling(samples) + samples + exact_samples


def compare(name: str, samples: Tensor, exact: Tensor, cost: float, after: float = AFTER) -> Signal:
    """Gradient samples [count, num_edges, num_ops] of an estimator beside unbiased samples of the exact gradient, of other batches.

    Args:
        cost: seconds for a sample.
        after: seconds of averaging, of :attr:`Signal.after`.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = _resampled(samples, generator), _resampled(exact, generator)
    return _signal(name, samples.var(0).sum(-1), (_halves(samples), _halves(exact)), drawn, _correlation, cost, after)


def compare_on_batches(name: str, samples: Tensor, exact: Tensor, cost: float, after: float = AFTER) -> Signal:
    """The same where an estimator's samples [batches, count, num_edges, num_ops] and those of the exact gradient, [batches,
    num_edges, num_ops], are of the same losses.

    Their noise is common, so that no batch is compared with itself; and a batch is drawn again as a whole.
    """
    generator = torch.Generator().manual_seed(0)
    both = torch.stack([samples.mean(1), exact], 1)
    halves, drawn = _halves(both).unbind(1), _resampled(both, generator).unbind(2)
    noise = samples.flatten(0, 1).var(0).sum(-1)
    return _signal(name, noise, halves, drawn, _crossed_correlation, cost, after)


Means = tuple[Tensor, ...]  # of two halves, those of an estimator and the exact ones, [2, ..., num_edges, num_ops] each


def _signal(
    name: str,
    noise_by_edge: Tensor,
    halves: Means,
    drawn: Means,
    correlate: Callable[[Tensor, Tensor, float], Tensor],
    cost: float,
    after: float,
) -> Signal:
    """From the means of the samples, and from those of resamples [2, RESAMPLES, num_edges, num_ops]."""
    (by_edge, exact_by_edge), whole, exact = halves, halves[0].flatten(1), halves[1].flatten(1)
    left = noise_by_edge.sum().item() * cost / after

    def interval(noise: float) -> tuple[float, float]:
        """A resample in which noise hides the signal could have any correlation."""
        found = correlate(drawn[0].flatten(2), drawn[1].flatten(2), noise)
        return found.nan_to_num(nan=-1).quantile(0.025).item(), found.nan_to_num(nan=1).quantile(0.975).item()

    return Signal(
        name,
        correlate(whole, exact, 0.0).item(),
        *interval(0.0),
        tuple(correlate(by_edge, exact_by_edge, 0.0).tolist()),
        _ratio(_square_of_mean(whole), noise_by_edge.sum()).item(),
        tuple(_ratio(_square_of_mean(by_edge), noise_by_edge).tolist()),
        cost,
        correlate(whole, exact, left).item(),
        *interval(left),
    )


def records(signals: Sequence[Signal], edges: Sequence[str]) -> list[dict[str, Any]]:
    """A record an estimator, for a CSV file.

    Args:
        edges: their names.
    """
    return [
        {
            "estimator": signal.name,
            "correlation": signal.correlation,
            "correlation_low": signal.low,
            "correlation_high": signal.high,
            **{f"correlation_{edge}": value for edge, value in zip(edges, signal.by_edge, strict=True)},
            "snr": signal.snr,
            **{f"snr_{edge}": value for edge, value in zip(edges, signal.snr_by_edge, strict=True)},
            "milliseconds": 1000 * signal.cost,
            f"correlation_after_{AFTER:g}_s": signal.after,
            f"correlation_after_{AFTER:g}_s_low": signal.after_low,
            f"correlation_after_{AFTER:g}_s_high": signal.after_high,
            **{f"seconds_to_{c}": signal.time_to(c) for c in REACHED},
        }
        for signal in signals
    ]


def columns(edges: Sequence[str]) -> list[str]:
    """Names of what :func:`rows` gives."""
    by_edge = f"by edge: {' '.join(edges)}"
    times = [f"time to {c}" for c in REACHED]
    return ["estimator", "correlation (95%)", by_edge, "SNR", "by edge", "ms", f"after {AFTER:g} s (95%)", *times]


def rows(signals: Sequence[Signal]) -> list[list[str]]:
    """A row an estimator, for people."""
    return [
        [
            signal.name,
            f"{_text(signal.correlation)} ({signal.low:.2f} to {signal.high:.2f})",
            " ".join(f"{_text(value):>5}" for value in signal.by_edge),
            f"{signal.snr:.3f}",
            " ".join(f"{value:.2f}" for value in signal.snr_by_edge),
            f"{1000 * signal.cost:.1f}",
            f"{_text(signal.after)} ({signal.after_low:.2f} to {signal.after_high:.2f})",
            *(_duration(signal.time_to(c)) for c in REACHED),
        ]
        for signal in signals
    ]


def figure(signals: Sequence[Signal]) -> bytes:
    """Correlation of the averaged gradient with the exact one against the time spent, as SVG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 4.6), layout="constrained")
    axes = drawing.subplots()
    shown = [signal for signal in signals if signal.snr > 0 and not math.isnan(signal.correlation)]
    end = 1e5 * max((signal.cost for signal in shown), default=1.0)
    for place, signal in enumerate(shown):
        style = "-" if place < len(COLOURS) else "--"
        # From the first sample on.
        times = torch.logspace(math.log10(signal.cost), math.log10(end), 200).tolist()
        reached = [signal.reached_after(t) for t in times]
        axes.plot(times, reached, style, color=COLOURS[(place + 1) % len(COLOURS)], label=signal.name)
    axes.set(xscale="log", xlabel="seconds of averaging", ylabel="correlation with the exact gradient", ylim=(None, 1))
    axes.axhline(0, color="#999999", linewidth=0.8)
    plain(axes)
    if shown:
        drawing.legend(loc="outside right upper", frameon=False)
    return svg(drawing, "signal")


def _at(logits: Tensor, estimator: Estimator) -> Estimator:
    estimator.logits.data.copy_(logits)
    return estimator


def _halfway(problem: Problem, name: str) -> Estimator:
    """A new estimator, with its temperature, if it has one, as in the middle of a search."""
    settings: dict[str, Any] = {"zero_op": problem.zero_op, "total_steps": 1000, **problem.settings.get(name, {})}
    estimator = ESTIMATORS[name](problem.num_edges, problem.num_ops, **settings)
    estimator.advance_to(settings["total_steps"] // 2)
    return estimator


def _sample(problem: Problem, estimator: Estimator) -> Tensor:
    """One gradient of the logits, [num_edges, num_ops], without the means of its rows."""
    estimator.logits.grad = None
    while estimator.logits.grad is None:
        problem.estimate(estimator)
    gradient = estimator.logits.grad.double()
    return gradient - gradient.mean(1, keepdim=True)


def _halves(samples: Tensor) -> Tensor:
    """Means of two halves of the samples: [count, ...] to [2, ...]."""
    return torch.stack([samples[0::2].mean(0), samples[1::2].mean(0)])


def _resampled(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Means of two halves, [2, RESAMPLES, ...], each drawn with replacement from its own half, so that they stay independent."""
    means = []
    for half in (samples[0::2], samples[1::2]):
        picks = torch.randint(len(half), (RESAMPLES, len(half)), generator=generator)
        share = torch.full(picks.shape, 1 / len(half), dtype=samples.dtype)
        means.append(torch.tensordot(torch.zeros_like(share).scatter_add_(1, picks, share), half, 1))
    return torch.stack(means)


def _square_of_mean(halves: Tensor) -> Tensor:
    """|E g|^2 without the part that noise adds: [2, ..., entries] to [...]."""
    return halves.prod(0).sum(-1)


def _correlation(halves: Tensor, exact: Tensor, noise: float = 0.0) -> Tensor:
    """Of the means of two halves, each [2, ..., entries], to [...]; NaN where a square is not above 0.

    Args:
        noise: to be left in the square of the first mean, as of an average of few samples.
    """
    return _normalised((halves.mean(0) * exact.mean(0)).sum(-1), halves, exact, noise)


def _crossed_correlation(halves: Tensor, exact: Tensor, noise: float) -> Tensor:
    """The same of halves whose noise is that of the same half of the exact samples: each is compared with the other half."""
    return _normalised((halves * exact.flip(0)).sum(-1).mean(0), halves, exact, noise)


def _normalised(product: Tensor, halves: Tensor, exact: Tensor, noise: float) -> Tensor:
    squares = _square_of_mean(halves) + noise, _square_of_mean(exact)
    known = squares[0].minimum(squares[1]) > 0
    return (product / squares[0].sqrt() / squares[1].sqrt()).where(known, math.nan).clamp(-1, 1)


def _ratio(square: Tensor, noise: Tensor) -> Tensor:
    """Signal to noise from their squares; 0 where noise hides the signal, infinite where there is none."""
    return (square.clamp(min=0) / noise).sqrt().nan_to_num(nan=0.0, posinf=math.inf)


def _settling(samples: int) -> int:
    return samples // 4


def _reliability(samples: Tensor) -> float:
    """Correlation of the means of two halves."""
    one, other = _halves(samples)
    return ((one * other).sum() / (one.norm() * other.norm())).item()


def _known(correlation: float) -> float:
    return -2.0 if math.isnan(correlation) else correlation


def _text(correlation: float) -> str:
    return "noise" if math.isnan(correlation) else f"{correlation:.2f}"


def _duration(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.3g} s" if seconds < 60 else duration(seconds)
