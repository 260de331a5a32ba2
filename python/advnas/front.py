"""The front of a search: the best cell within each of several limits on what a cell costs, all from one search.

Shared weights know the good half of all cells, and little of the order of those that cost alike, which is what a limit asks for
(docs/budgets.md has figures). So a front trains no supernet. For each limit it draws networks near it, ranks them by what they
promise at their initial weights (:mod:`advnas.untrained`), and trains the first ones from scratch, on the same batches from the
same initial weights, by successive halving (:mod:`advnas.halving`), in one pool for all limits. There are many and their
trainings are short, so that each is ranked by what the losses of all of them tell of it (:mod:`advnas.surrogate`). Near a limit is
the dearest quarter of the networks within it: a short training ranks networks of like size well, and large ones too low among
small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from advnas.halving import Contest
from advnas.limits import Limit, every_cell
from advnas.state import SearchState
from advnas.surrogate import smoothed
from advnas.tasks.base import Task
from advnas.training import generators, seeded
from advnas.untrained import ranks
from advnas_ext import Path

KNOWN = 20_000  # cells among which networks are looked for; all of a space that has no more
NEAR = 0.25  # of the networks within a limit, the dearest
DRAWN = 150  # networks near each limit that are ranked
FINALISTS = 48  # of each limit, that are trained


class Field:
    """Different networks, each as the cheapest cell that computes it, and what they promise.

    Args:
        task: of the search.
        limits: ascending.
        seed: of what is drawn.

    Attributes:
        networks: cells as tuples, the cheapest first.
        promises: of those that were looked at, by cell.
    """

    def __init__(self, task: Task, limits: Sequence[Limit], seed: int) -> None:
        self.task, self.limits = task, limits
        self.init, self.draws = generators(seed + 2, 2)
        self.promises: dict[tuple[int, ...], tuple[float, ...]] = {}
        count, edges = len(task.ops), task.space.num_edges
        if count**edges <= KNOWN:
            cells = every_cell(task.space, task.ops)
        else:
            cells = torch.randint(count, (KNOWN, edges), generator=self.draws)
        cheapest: dict[str, tuple[int, ...]] = {}
        for place in limits[0].costs.of(cells).argsort(stable=True).tolist():
            cheapest.setdefault(task.identity(cells[place]), tuple(cells[place].tolist()))
        self.networks = list(cheapest.values())
        self._least = [self._least_near(limit) for limit in limits]

    def near(self, number: int, cells: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those of the cells that are near a limit, given by its place."""
        known = list(cells)
        if not known:
            return []
        limit, tensor = self.limits[number], torch.tensor(known)
        holds = limit.allows(tensor) & (limit.costs.of(tensor) >= self._least[number])
        return [ops for ops, is_near in zip(known, holds.tolist(), strict=True) if is_near]

    def drawn(self) -> list[tuple[int, ...]]:
        """``DRAWN`` networks near each limit, none twice."""
        chosen: dict[tuple[int, ...], None] = {}
        for number in range(len(self.limits)):
            nearby = self.near(number, self.networks)
            order = torch.randperm(len(nearby), generator=self.draws)[:DRAWN]
            chosen |= dict.fromkeys(nearby[place] for place in order.tolist())
        return list(chosen)

    def look(self, search: SearchState, advance: Callable[[], None] = lambda: None) -> None:
        """Find out what the networks of :meth:`drawn` promise, on a batch of training data.

        Args:
            advance: called after each of them.
        """
        batch = next(iter(self.task.weight_stream(torch.Generator().manual_seed(self.init.initial_seed()))))
        supernet = seeded(self.init, lambda: self.task.supernet(search.config.halving_cells))
        supernet = self.task.placement.place(supernet)
        for ops in self.drawn():
            path = Path.from_ops(torch.tensor(ops), requires_grad=False)
            self.promises[ops] = self.task.promises(supernet, batch, path)
            advance()

    def finalists(self) -> tuple[Tensor, list[list[int]]]:
        """The cells of the pool, int64 [count, num_edges], and for each limit the places of its own among them."""
        best = []
        for number in range(len(self.limits)):
            near = self.near(number, self.promises)
            order = ranks(torch.tensor([self.promises[ops] for ops in near])).argsort(descending=True, stable=True)
            best.append([near[place] for place in order[:FINALISTS].tolist()])
        cells = list(dict.fromkeys(ops for of_limit in best for ops in of_limit))
        return torch.tensor(cells), [[cells.index(ops) for ops in of_limit] for of_limit in best]

    def _least_near(self, limit: Limit) -> float:
        """The cost from which on a cell within a limit is near it: a quarter of the networks is, and enough of them."""
        costs = limit.costs.of(torch.tensor(self.networks))
        within = costs[costs <= limit.value * (1 + 1e-9)].sort(descending=True).values
        if not len(within):
            raise ValueError(f"front: of {len(costs):,} cells none is within {limit}; give a larger limit")
        count = max(math.ceil(NEAR * len(within)), FINALISTS)
        return within[min(count, len(within)) - 1].item()


class Pool(Contest):
    """The networks of all limits.

    Attributes:
        contenders: for each limit the places in ``cells`` that are still in for it, best first.
        most: contenders that a limit has at the start.
        last: losses of the last comparison of each cell, by its place.
    """

    share = 4
    kind = "front"
    values = (*Contest.values, "contenders", "last")

    def __init__(self, search: SearchState, task: Task, cells: Tensor, contenders: list[list[int]]) -> None:
        self.contenders = contenders
        self.most = max(map(len, contenders))
        self.last: dict[int, float] = {}
        super().__init__(search, task, cells)

    @property
    def finished(self) -> bool:
        return all(len(places) == 1 for places in self.contenders) and bool(self.last)

    @property
    def rounds(self) -> int:
        """Comparisons until each limit has one cell left; one at least."""
        return max(1, self.rounds_of(self.most))

    @property
    def first_steps(self) -> int:
        """There are many, and they tell of each other: half of what others have."""
        return max(1, self.config.halving_steps // 2)

    def staying(self, ranked: list[int], losses: dict[int, float]) -> list[int]:
        self.last |= losses
        known = smoothed(
            torch.stack([self.cells[place] for place in ranked]), torch.tensor([losses[p] for p in ranked])
        )
        told = dict(zip(ranked, known.tolist(), strict=True))
        by_limit = [sorted(places, key=lambda place: told[place]) for places in self.contenders]
        self.contenders = [places[: max(1, len(places) // self.share)] for places in by_limit]
        still_in = {place for places in self.contenders for place in places}
        return [place for place in ranked if place in still_in]

    def front(self) -> list[dict[str, Any]]:
        """The cell of each limit, with its loss in the last comparison that it was in."""
        return [{"arch": self.arch(places[0]), "loss": self.last[places[0]]} for places in self.contenders]
