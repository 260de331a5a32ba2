"""A limit on what a path costs, for every estimator: a constraint, so that there is no weight to guess.

    cost(a) = constant + sum_e costs[e, a_e],      E[cost] = constant + sum_e <p_e, costs_e>,      p_e = softmax(logits_e)
    h = dE[cost]/dlogits,      h_e = p_e (costs_e - <p_e, costs_e>)

Found is min E[loss] subject to E[cost] <= limit. Two projections hold the logits there:

- Of the gradient g, where the limit is reached and a step against g would pass it: g <- g - <g, h>/<h, h> h (Rosen, SIAM J. 1960).
  What is left of g is 0 on average exactly where dE[loss]/dlogits = -multiplier * h: the Karush-Kuhn-Tucker condition. Neither
  the scale of the loss nor that of the costs matters, nor which optimizer steps.
- Of the logits, after a step: logits <- logits - nu * costs with the least nu >= 0 that keeps the limit. Of all distributions
  within the limit that one has the smallest divergence KL(. || p) (Csiszar, Ann. Probab. 1975). It takes back what is left
  beyond the limit: curvature, momentum, and at the start of a search the whole excess.

A distribution at its limit may still mix two operations on one edge. :func:`best_paths` finds paths that are within the limit
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from advnas_ext.estimators import Estimator
from advnas_ext.estimators.base import through_softmax
from advnas_ext.knapsack import best_paths

# nu is looked for on a grid, which becomes finer between the last value that is too small and the first that is not.
GRID, REFINEMENTS = 64, 6


class PathCost:
    """What a path costs, additive over its edges: FLOPs, parameters, measured latencies.

    Attributes:
        costs: float64 [num_edges, num_ops], 0 where an edge has fewer operations.
        sizes: operations of each edge.
        constant: what every path costs besides.
        names: of the edges, or None.

    Args:
        costs: a row for each edge, with the cost of each operation in one unit; rows may differ in length. Or the rows by the
            names of decisions, for :class:`advnas_ext.Search`. Decisions that another one leaves out of a path count all the same.
        constant: cost of what every path runs.

    Raises:
        ValueError: there is no row, a row is empty, or a cost is not finite.
    """

    def __init__(
        self, costs: Tensor | Sequence[Sequence[float]] | Mapping[str, Sequence[float]], constant: float = 0.0
    ) -> None:
        self.names = tuple(costs) if isinstance(costs, Mapping) else None
        rows = _rows(costs.values() if isinstance(costs, Mapping) else costs)
        if not rows or not all(rows):
            raise ValueError(f"PathCost: costs must have a row for each edge, none of them empty, got {costs!r}")
        if not all(math.isfinite(value) for row in rows for value in [*row, constant]):
            raise ValueError(f"PathCost: costs and constant must be finite, got {costs!r} and {constant!r}")
        self.sizes = [len(row) for row in rows]
        self.costs = torch.zeros(len(rows), max(self.sizes), dtype=torch.float64, device="cpu")
        for edge, row in enumerate(rows):
            self.costs[edge, : len(row)] = torch.tensor(row, dtype=torch.float64, device="cpu")
        self.constant = float(constant)

    @property
    def least(self) -> float:
        """Of the cheapest path."""
        return self.constant + sum(row[:size].min().item() for row, size in zip(self.costs, self.sizes, strict=True))

    def of(self, ops: Tensor | Sequence[int]) -> Tensor:
        """Of paths.

        Args:
            ops: integers [..., num_edges].

        Returns:
            float64 [...].
        """
        picked = torch.as_tensor(ops).cpu()
        return self.constant + self.costs[torch.arange(len(self.costs), device="cpu"), picked].sum(-1)

    def expected(self, probabilities: Tensor) -> Tensor:
        """E[cost] for ``probabilities`` [..., num_edges, num_ops]: [...], of their dtype; autograd can follow it."""
        return self.constant + (probabilities * self.costs.to(probabilities)).sum((-2, -1))

    def gradient(self, probabilities: Tensor) -> Tensor:
        """dE[cost]/dlogits for ``probabilities`` = softmax(logits), in closed form: [num_edges, num_ops]."""
        return through_softmax(probabilities, self.costs.to(probabilities))

    def ordered(self, names: Sequence[str]) -> PathCost:
        """The same costs with the edges in another order, where they have names.

        Raises:
            ValueError: the names are others.
        """
        if self.names is None:
            return self
        if unknown := sorted(set(names) ^ set(self.names)):
            raise ValueError(f"PathCost: costs must name the decisions {list(names)}, differs in {unknown}")
        rows = {name: self.costs[edge, : self.sizes[edge]].tolist() for edge, name in enumerate(self.names)}
        return PathCost({name: rows[name] for name in names}, self.constant)


class Budget:
    """Keeps E[cost] of an estimator's paths within a limit; see the module for how.

    It remembers nothing, so that a checkpoint needs nothing of it. ::

        budget = advnas_ext.Budget(advnas_ext.PathCost(costs), limit)
        budget.project(est)                    # once, at the start
        ...
        est.assign_grad(path, loss)
        budget.project_grad(est)
        opt.step()
        est.after_step(path)
        budget.project(est)
        ...
        budget.best_path(est)                  # in place of est.argmax()

    :class:`advnas_ext.Search` does all that with ``budget=``.

    Args:
        cost: of paths.
        limit: in its unit.

    Raises:
        ValueError: no path is within the limit.
    """

    def __init__(self, cost: PathCost, limit: float) -> None:
        if not cost.least <= limit < math.inf:
            raise ValueError(
                f"Budget: limit must be a number that the cheapest path, {cost.least:g}, is within, got {limit!r}"
            )
        self.cost = cost
        self.limit = float(limit)

    @torch.no_grad()
    def project_grad(self, estimator: Estimator) -> None:
        """Take out of ``estimator.logits.grad`` what would lead beyond the limit; after ``assign_grad``, before the step.

        Raises:
            ValueError: the costs are not those of the estimator's edges and operations.
        """
        self._require_fit(estimator)
        gradient = estimator.logits.grad
        if gradient is None or self._excess(estimator.logits, estimator) < -self._tolerance:
            return
        normal = self.cost.gradient(estimator.probabilities())
        along, square = (gradient * normal).sum(), normal.square().sum()
        if along < 0 < square:
            gradient -= along / square * normal

    @torch.no_grad()
    def project(self, estimator: Estimator) -> None:
        """Bring the logits within the limit, by as little as that needs; at the start, and after every step.

        Raises:
            ValueError: the costs are not those of the estimator's edges and operations.
        """
        self._require_fit(estimator)
        # Without their mean the costs leave the sum of an edge's logits, which weight decay acts on, as it is.
        mean = self.cost.costs.sum(1, keepdim=True) / (~estimator.padding).sum(1, keepdim=True)
        costs = (self.cost.costs - mean).masked_fill(estimator.padding, 0)
        logits = estimator.logits.detach().clone()

        def moved(nus: Tensor) -> Tensor:
            return (logits.double() - nus[:, None, None] * costs).to(logits.dtype)

        if self._excess(logits, estimator) <= self._tolerance:
            return
        low, nus = 0.0, torch.logspace(-9, 10, GRID, dtype=torch.float64, device="cpu") / costs.abs().max()
        for _ in range(REFINEMENTS):
            first = int((self._excess(moved(nus), estimator) <= self._tolerance).int().argmax())
            low, high = float(nus[first - 1]) if first else low, float(nus[first])
            nus = torch.linspace(low, high, GRID + 1, dtype=torch.float64, device="cpu")[1:]
        estimator.logits.copy_(moved(nus[-1:])[0])

    def best_path(self, estimator: Estimator) -> Tensor:
        """The most probable path within the limit, int64 [num_edges]: exactly that, whatever the number of edges."""
        self._require_fit(estimator)
        logits = estimator.logits.detach().double().masked_fill(estimator.padding, -math.inf)
        scores = torch.log_softmax(logits, 1).masked_fill(estimator.padding, 0)
        return self.best_paths(scores)[0]

    def best_paths(self, scores: Tensor, count: int = 1) -> Tensor:
        """The ``count`` paths of the largest sum of scores [num_edges, num_ops] within the limit, best first; see
        :func:`advnas_ext.best_paths`."""
        return best_paths(scores, self.cost.costs, self.limit - self.cost.constant, count, self.cost.sizes)

    @property
    def _tolerance(self) -> float:
        """What logits in float32 can tell, and for costs that hardly differ what a double can."""
        largest = self.cost.costs.abs().amax(1).sum().item()
        return 1e-6 * (self.cost.costs.amax(1) - self.cost.costs.amin(1)).sum().item() + 1e-12 * largest

    def _excess(self, logits: Tensor, estimator: Estimator) -> Tensor:
        """Of logits [..., num_edges, num_ops] over the limit: [...]."""
        return self.cost.expected(estimator.policy(logits.double())) - self.limit

    def _require_fit(self, estimator: Estimator) -> None:
        if self.cost.sizes != estimator.sizes:
            raise ValueError(
                f"Budget: costs must be of {estimator.num_edges} edges with {estimator.sizes} operations, got {self.cost.sizes}"
            )
        if not estimator.learns:
            raise ValueError(
                f"Budget: {type(estimator).__name__} draws the same paths whatever the logits; take best_paths of scores of "
                "your own, or an estimator that learns"
            )


def _rows(costs: Tensor | Iterable[Sequence[float]]) -> list[list[float]]:
    return [[float(value) for value in row] for row in (costs.tolist() if isinstance(costs, Tensor) else costs)]
