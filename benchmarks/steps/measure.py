"""Comparing the sides: first their results, then their times, interleaved in one process."""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.sheet import Sheet
from benchmarks.steps.sides import OURS, PLAIN, STEPS, XAUTODL, Side, make_network, make_sides
from benchmarks.steps.work import Case

KEY = "ms: of a step, median and range over the paths; ratio: side/ours on the same path, its median and the worst path"


@dataclass
class Times:
    """Milliseconds of one side's step, one for each path, beside ours on the same paths."""

    ms: list[float]
    ours: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for theirs, ours in zip(self.ms, self.ours, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def worst(self) -> float:
        return min(self.ratios)


Comparison = dict[tuple[str, bool], Times]  # side, to_gates


def compare(case: Case, names: Iterable[str], paths: Tensor, advance: Callable[[], None], turns: int = 1) -> Comparison:
    """Time a step of either kind of every side on every path, ``turns`` times, of which the median counts.

    ``advance`` is called after each path, and after the first one's extra turn, which warms up.
    """
    return interleave(make_sides(names, *make_network(case), case), paths, advance, turns)


def interleave(made: Mapping[str, Side], paths: Tensor, advance: Callable[[], None], turns: int = 1) -> Comparison:
    """The same with sides that are there; one of them is ours."""
    times: dict[tuple[str, bool], list[float]] = {}
    gc.collect()
    gc.disable()  # graphs are freed by reference counts; a collection would hit one side by chance
    try:
        _one_path(made, paths[0], 0)  # warms up
        advance()
        for index, ops in enumerate(paths):
            found: dict[tuple[str, bool], list[float]] = {}
            for turn in range(turns):
                for key, seconds in _one_path(made, ops, index + turn):
                    found.setdefault(key, []).append(1e3 * seconds)
            for key, ms in found.items():
                times.setdefault(key, []).append(statistics.median(ms))
            advance()
    finally:
        gc.enable()
    keys = [(name, to_gates) for to_gates in STEPS for name in made if (name, to_gates) in times]
    return {key: Times(times[key], times[OURS, key[1]]) for key in keys}


def _one_path(made: Mapping[str, Side], ops: Tensor, turn: int) -> list[tuple[tuple[str, bool], float]]:
    """The sides take turns in going first."""
    names = list(made)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    return [
        ((name, to_gates), made[name].seconds(ops, to_gates))
        for to_gates in STEPS
        for name in names
        if to_gates or made[name].weight_step
    ]


def times(comparison: Comparison, title: str) -> Sheet:
    sheet = Sheet(title, ("step", "side", "ms", "[min - max]", "ratio", "worst"), 2)
    for (name, to_gates), side in comparison.items():
        span = f"[{min(side.ms):.1f} - {max(side.ms):.1f}]"
        ratios = ["", ""] if name == OURS else [f"{side.ratio:.2f}x", f"{side.worst:.2f}x"]
        sheet.rows.append([STEPS[to_gates], name, f"{side.median:.1f}", span, *ratios])
    return sheet


@dataclass
class Differences:
    """The largest ones over the paths that were checked.

    Attributes:
        loss, gate_grads: ours against plain PyTorch in float64, relative to the loss and to the largest entry.
        xautodl_loss: ours against xautodl in float32; None where it did not run.
    """

    loss: float = 0
    gate_grads: float = 0
    xautodl_loss: float | None = None

    def __str__(self) -> str:
        text = f"against plain PyTorch in float64: loss {self.loss:.0e}, gate gradients {self.gate_grads:.0e}"
        if self.xautodl_loss is not None:
            text += f"; against xautodl in float32: loss {self.xautodl_loss:.0e}"
        return text

    def require_small(self) -> None:
        if max(self.loss, self.gate_grads) > 1e-9 or (self.xautodl_loss or 0) > 1e-3:
            raise SystemExit(f"the sides do not compute the same, {self}")


def differences(case: Case, paths: Tensor, xautodl: bool, images: int = 8) -> Differences:
    """Compare the results of the sides on the first ``images`` images."""
    network, batch = make_network(case)
    batch = batch.first(images)
    exact = make_sides((OURS, PLAIN), copy.deepcopy(network).double(), batch.double(), case)
    found = Differences()
    for ops in paths:
        ours, plain = (side.step(ops, True) for side in exact.values())
        found.loss = max(found.loss, _relative(ours.loss, plain.loss))
        found.gate_grads = max(found.gate_grads, _relative(ours.gate_grads, plain.gate_grads))
    if xautodl:
        pair = make_sides((OURS, XAUTODL), network, batch, case).values()
        losses = [[side.step(ops, False).loss.item() for side in pair] for ops in paths]
        found.xautodl_loss = max(abs(ours - theirs) for ours, theirs in losses)
    return found


def _relative(actual: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((actual - expected).abs().max() / scale).item()
