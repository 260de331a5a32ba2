"""What benchmark files know of a cell: its trainings, by hyper-parameters (named by their epochs), data set and seed.

In the Parquet file a cell is a row. A column such as ``200/cifar10/seed`` has a list with an entry a training;
``200/cifar10/ori-test/accuracy`` the value after the last epoch; ``200/cifar10/ori-test/accuracy/epochs`` the values after every
epoch, one training after the other. What was not measured is null.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from advnas.tables.pickles import RUNS, items

DATASETS = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
PARTS = ("train", "x-valid", "x-test", "ori-test")
METRICS = ("loss", "accuracy", "seconds")
COSTS = ("params", "flops", "latency")  # millions, millions, seconds; a latency of -1 was not measured
EPOCHS = "epochs"

# Columns of the table's own: their name without the epochs, and the data set and part that they are the mean accuracy of.
SUMMARY = {
    "cifar10_valid": ("cifar10-valid", "x-valid"),
    "cifar10_test": ("cifar10", "ori-test"),
    "cifar100_valid": ("cifar100", "x-valid"),
    "cifar100_test": ("cifar100", "x-test"),
    "imagenet16_120_valid": ("ImageNet16-120", "x-valid"),
    "imagenet16_120_test": ("ImageNet16-120", "x-test"),
}


@dataclass(frozen=True)
class Curve:
    """One number after every epoch: values and whether they are there, float64 and bool [epochs]."""

    values: np.ndarray
    there: np.ndarray

    @classmethod
    def empty(cls, epochs: int) -> Curve:
        return cls(np.zeros(epochs), np.zeros(epochs, bool))

    def only(self, where: np.ndarray) -> Curve:
        return Curve(self.values, self.there & where)


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        costs: in the order of ``COSTS``.
        curves: by part, in the order of ``METRICS``.
    """

    seed: int
    epochs: int
    costs: tuple[float, float, float]
    curves: Mapping[str, tuple[Curve, Curve, Curve]]


@dataclass(frozen=True)
class Cell:
    """A row: the cell's place in the benchmark, and its trainings by hyper-parameters and data set, both in the file's order."""

    index: int
    trials: Mapping[str, Mapping[str, Sequence[Trial]]] = field(default_factory=dict)


def cell(index: int, results: Mapping[str, Any]) -> Cell:
    """A cell from the dicts of a benchmark's file: hyper-parameters to results.

    Raises:
        ValueError: they are no such dicts.
    """
    try:
        return Cell(int(index), {hp: dict(_by_dataset(result)) for hp, result in results.items()})
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"cell {index} has no results as NAS-Bench-201 and NATS-Bench keep them: {error!r}") from None


def _by_dataset(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Trial]]]:
    for dataset, seeds in result["dataset_seed"].items():
        if dataset not in DATASETS:
            raise ValueError(f"the data set must be among {', '.join(DATASETS)}, got {dataset!r}")
        yield dataset, [_trial(seed, result["all_results"][dataset, seed]) for seed in seeds]


def _trial(seed: int, state: Mapping[str, Any]) -> Trial:
    epochs, latency = int(state["epochs"]), state["latency"]
    costs = (
        float(state["params"]),
        float(state["flop"]),
        -1.0 if latency is None else sum(latency) / len(latency),
    )
    train = [_by_part(state[name], epochs, "train") for name in ("train_losses", "train_acc1es", "train_times")]
    other = [_by_part(state[name], epochs) for name in ("eval_losses", "eval_acc1es", "eval_times")]
    if epochs < 1:
        raise ValueError(f"a training must have epochs, got {epochs}")
    curves = {"train": _timed([found.get("train") for found in train], epochs, state["train_times"] is not None)}
    for part in PARTS[1:]:
        curves[part] = _timed([found.get(part) for found in other], epochs, bool(state["eval_times"]))
    return Trial(int(seed), epochs, costs, curves)


def _timed(found: Sequence[Curve | None], epochs: int, times_kept: bool) -> tuple[Curve, Curve, Curve]:
    """Where times were kept at all, a number without the times up to its epoch counts as missing: so it does in the benchmarks' own
    programs, which fail to add them up."""
    loss, accuracy, seconds = (curve or Curve.empty(epochs) for curve in found)
    if not times_kept:
        return loss, accuracy, seconds
    reached = np.logical_and.accumulate(seconds.there)
    return loss.only(reached), accuracy.only(reached), seconds


def _by_part(numbers: Mapping[Any, Any] | None, epochs: int, only: str | None = None) -> dict[str, Curve]:
    """Curves from a dict whose keys are epochs (of the part ``only``) or part@epoch."""
    found: dict[str, Curve] = {}

    def curve(part: str) -> Curve:
        return found.setdefault(part, Curve.empty(epochs))

    for key, value in () if numbers is None else _without_runs(numbers):
        part, epoch = (only, key) if only else key.split("@")
        if 0 <= int(epoch) < epochs:
            curve(part).values[int(epoch)], curve(part).there[int(epoch)] = float(value), True
    for run in () if numbers is None else numbers.get(RUNS, ()):
        by_part = {only: (slice(None), np.asarray(run.keys, int))} if only else _places(tuple(run.keys))
        for part, (places, at) in by_part.items():
            values, inside = run.values[places], at < epochs
            curve(part).values[at[inside]], curve(part).there[at[inside]] = values[inside], True
    return found


def _without_runs(numbers: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    return items({key: value for key, value in numbers.items() if key is not RUNS})


@functools.lru_cache(4096)
def _places(keys: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Keys part@epoch: by part, their places and their epochs. Most trainings have the same."""
    split = [key.split("@") for key in keys]
    parts = dict.fromkeys(part for part, _ in split)
    return {
        name: (
            np.array([place for place, (part, _) in enumerate(split) if part == name]),
            np.array([int(epoch) for part, epoch in split if part == name]),
        )
        for name in parts
    }


def agreed(values: Sequence[float], seeds: Sequence[int]) -> Sequence[float]:
    """FLOPs or parameters of a cell's trainings. Where they differ after five digits, NATS-Bench takes those of seed 888.

    Raises:
        ValueError: they differ, and there is no such training.
    """
    if len({f"{value:.5f}" for value in values}) == 1:
        return values
    if 888 not in seeds:
        raise ValueError(
            f"FLOPs and parameters must agree or be there for seed 888, got {list(values)} for seeds {list(seeds)}"
        )
    return [values[list(seeds).index(888)]]
