"""The best paths within a limit, exactly: the multiple-choice knapsack problem (Kellerer, Pferschy & Pisinger 2004, chapter 11).

    maximise sum_e scores[e, a_e]   subject to   sum_e costs[e, a_e] <= limit

Edge after edge, every partial path is extended by every operation, and two kinds are given up:

- those that ``count`` others dominate, which cost no more and score no less (dynamic programming over lists, Nemhauser & Ullmann
  1969): whatever completes the one completes the others as well;
- those whose bound is below ``count`` paths that are known. For any multiplier m >= 0 no path within the limit scores more than
  m * limit + sum_e max_a (scores[e, a] - m * costs[e, a]); the least such bound is that of the linear relaxation.

So the answer is exact. Its time is exponential in the worst case, as the problem is NP-hard, and short for costs and scores as
they are measured, where the bound leaves few partial paths: 67 edges with 8 operations take a fraction of a second.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# Sums of costs may differ in their last bits by the order of their terms.
ROUNDING = 1e-12
State: TypeAlias = tuple[float, float, tuple[int, ...]]  # of a partial path: its cost, its score, its operations


def best_paths(
    scores: Tensor, costs: Tensor, limit: float, count: int = 1, sizes: Sequence[int] | None = None
) -> Tensor:
    """The paths of the largest sum of scores whose sum of costs is within a limit.

    Args:
        scores: [num_edges, num_ops], the larger the better.
        costs: [num_edges, num_ops].
        limit: of the sum of costs, to rounding.
        count: how many paths are wanted, at least 1.
        sizes: operations of each edge, where some have fewer than num_ops.

    Returns:
        int64 [at most count, num_edges], best first: fewer where fewer are within the limit.

    Raises:
        ValueError: shapes differ, a score or a cost is not finite, ``count`` is below 1, or no path is within the limit.
    """
    if scores.shape != costs.shape or scores.dim() != 2 or scores.numel() == 0:
        shapes = f"{list(scores.shape)} and {list(costs.shape)}"
        raise ValueError(f"best_paths: scores and costs must both have shape [num_edges, num_ops], got {shapes}")
    sizes = [scores.shape[1]] * len(scores) if sizes is None else sizes
    values = [row[:size] for row, size in zip(scores.double().tolist(), sizes, strict=True)]
    prices = [row[:size] for row, size in zip(costs.double().tolist(), sizes, strict=True)]
    if not all(math.isfinite(number) for row in [*values, *prices] for number in row):
        raise ValueError("best_paths: scores and costs must be finite")
    if count < 1:
        raise ValueError(f"best_paths: count must be at least 1, got {count}")
    least = sum(map(min, prices))
    room = limit + ROUNDING * sum(max(map(abs, row)) for row in prices)
    if not least <= room:
        raise ValueError(f"best_paths: limit must be at least that of the cheapest path, {least:g}, got {limit!r}")
    return torch.tensor(Knapsack(values, prices, room, count).solve(), device="cpu")


class Knapsack:
    """One problem, with what bounds its partial paths. Scores and costs are lists [num_edges][operations of the edge]."""

    def __init__(self, scores: list[list[float]], costs: list[list[float]], limit: float, count: int) -> None:
        self.scores, self.costs, self.limit, self.count = scores, costs, limit, count
        self.multiplier = self._tightest()
        gains = [max(self._gains(edge)) for edge in range(len(scores))]
        cheapest = [min(row) for row in costs]
        # Of the edges from each on: the largest sum of gains, and the smallest cost.
        self.gain_left = [math.fsum(gains[edge:]) for edge in range(len(gains) + 1)]
        self.cost_left = [math.fsum(cheapest[edge:]) for edge in range(len(gains) + 1)]

    def solve(self) -> list[list[int]]:
        """The paths, best first."""
        # A greedy solution may be far from the best ones; the bound is lowered until enough paths lie above it.
        slack = self._first_slack()
        while True:
            floor = self._bound(0, 0.0, 0.0) - slack
            found, whole = self._bounded_by(floor)
            if whole or (len(found) == self.count and found[-1][1] >= floor):
                return [list(ops) for _, _, ops in found]
            slack *= 4

    def _bounded_by(self, floor: float) -> tuple[list[State], bool]:
        """The best paths among those of which no part has a bound below ``floor``, and whether these are all paths."""
        whole = True
        states: list[State] = [(0.0, 0.0, ())]
        for edge, (values, prices) in enumerate(zip(self.scores, self.costs, strict=True)):
            extended = []
            for cost, score, ops in states:
                for op, (value, price) in enumerate(zip(values, prices, strict=True)):
                    state = (cost + price, score + value, (*ops, op))
                    if state[0] + self.cost_left[edge + 1] > self.limit:
                        continue
                    if self._bound(edge + 1, state[0], state[1]) < floor:
                        whole = False
                        continue
                    extended.append(state)
            states = self._undominated(extended)
        return sorted(states, key=lambda state: -state[1])[: self.count], whole

    def _undominated(self, states: list[State]) -> list[State]:
        """Those that fewer than ``count`` others dominate."""
        kept: list[State] = []
        best: list[float] = []  # a heap of the largest scores among the cheaper ones
        for state in sorted(states, key=lambda state: (state[0], -state[1])):
            if len(best) < self.count:
                heapq.heappush(best, state[1])
            elif state[1] > best[0]:
                heapq.heapreplace(best, state[1])
            else:
                continue
            kept.append(state)
        return kept

    def _bound(self, edge: int, cost: float, score: float) -> float:
        """No path that begins with a partial path of the edges before ``edge`` scores more."""
        return score + self.multiplier * (self.limit - cost) + self.gain_left[edge]

    def _gains(self, edge: int, multiplier: float | None = None) -> list[float]:
        m = self.multiplier if multiplier is None else multiplier
        return [value - m * price for value, price in zip(self.scores[edge], self.costs[edge], strict=True)]

    def _tightest(self) -> float:
        """The multiplier of the linear relaxation: the bound is convex in it, and falls as long as the paths of the largest gains
        cost more than the limit."""

        def too_dear(multiplier: float) -> bool:
            total = 0.0
            for edge, prices in enumerate(self.costs):
                gains = self._gains(edge, multiplier)
                top = max(gains)
                total += min(price for price, gain in zip(prices, gains, strict=True) if gain == top)
            return total > self.limit

        if not too_dear(0.0):
            return 0.0
        spread = max(max(row) - min(row) for row in self.costs)
        low, high = 0.0, max(max(row) - min(row) for row in self.scores) / spread
        for _ in range(2000):
            if not too_dear(high):
                break
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if too_dear(middle) else (low, middle)
        return high

    def _first_slack(self) -> float:
        """A gap between the bound and the best paths that is usual: a share of what one operation matters."""
        spreads = [max(row) - min(row) for row in (self._gains(edge) for edge in range(len(self.scores)))]
        return max(max(spreads) / 8, 1e-9 * (1 + abs(self._bound(0, 0.0, 0.0))))
