"""The front of a search: the best cell within each of several limits on what a cell costs, all from one search.

One supernet, trained on uniform paths, serves every limit. Its losses of many random cells give what each operation is worth on
each edge, on average over the rest of the cell. Such averages know the good half of the cells, and do not see what only depth or
the rest of the cell brings out (:mod:`advnas.halving`). So they choose what is tried, and trials decide: networks of single cells,
trained from scratch on the same batches from the same initial weights.

1. Scouting, in waves of short trainings. The first one has, for each limit, cells drawn from the better half of those *near* it;
   the others have neighbours of the best cells so far, whichever limit these were found for. Near a limit is the dearest quarter of
   the networks within it: a short training ranks cells of like size well, and large ones too low among small ones.
2. Successive halving for each limit among the best of its scouts, in one pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from advnas.halving import Contest, neighbourhood
from advnas.limits import Limit, additive_fit, every_cell, sums
from advnas.state import SearchState
from advnas.tasks.base import Task
from advnas.training import check_finite, generators
from advnas_ext import Path

PATHS = 1500  # random cells by whose losses operations are judged
BATCHES = 4  # held-out batches on which each is measured
KNOWN = 20_000  # cells among which networks are looked for; all of a space that has no more
NEAR = 0.25  # of the networks within a limit, the dearest
ENTRANTS = (24, 12, 12)  # that each limit has in each wave, at most
PARENTS = 2  # of each limit, whose neighbours are scouted
FINALISTS = 8  # of each limit


@torch.no_grad()
def main_effects(task: Task, state: SearchState, advance: Callable[[], None] = lambda: None) -> Tensor:
    """What each operation adds to the loss on each edge, on average over the rest of the cell: float64 [num_edges, num_ops].

    Args:
        state: whose weights and held-out data are used.
        advance: called after each of ``PATHS`` cells.
    """
    batches = list(state.held_out(BATCHES))
    cells = torch.stack([state.uniform_ops() for _ in range(PATHS)])
    losses = []
    for ops in cells:
        losses.append(task.measure(state.network, Path.from_ops(ops, requires_grad=False), batches)["loss"])
        check_finite(f"loss of {state.arch(ops)}", losses[-1])
        advance()
    return additive_fit(cells, torch.tensor(losses), len(state.ops)).costs


class Field:
    """The networks that are known, each as the cheapest cell that computes it, and what was found of them.

    Args:
        task: of the search.
        limits: ascending.
        effects: of :func:`main_effects`.
        seed: of what is drawn.

    Attributes:
        losses: after scouting, by cell.
    """

    def __init__(self, task: Task, limits: Sequence[Limit], effects: Tensor, seed: int) -> None:
        self.task, self.limits, self.effects = task, limits, effects
        (self.generator,) = generators(seed + 2, 1)
        self.losses: dict[tuple[int, ...], float] = {}
        count, edges = len(task.ops), task.space.num_edges
        if count**edges <= KNOWN:
            cells = every_cell(task.space, task.ops)
        else:
            cells = torch.randint(count, (KNOWN, edges), generator=self.generator)
        costs = limits[0].costs.of(cells)
        self.cheapest: dict[str, tuple[int, ...]] = {}
        for place in costs.argsort(stable=True).tolist():
            self.cheapest.setdefault(task.identity(cells[place]), tuple(cells[place].tolist()))
        self.least = [self._least_near(limit) for limit in limits]

    def near(self, number: int, cells: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those of the cells that are near a limit, given by its place."""
        known = list(cells)
        if not known:
            return []
        limit, tensor = self.limits[number], torch.tensor(known)
        holds = limit.allows(tensor) & (limit.costs.of(tensor) >= self.least[number])
        return [ops for ops, is_near in zip(known, holds.tolist(), strict=True) if is_near]

    def entrants(self, wave: int) -> Tensor:
        """The cells to scout next, int64 [count, num_edges]; there may be none."""
        chosen: dict[tuple[int, ...], None] = {}
        nearby = self.neighbours() if wave else list(self.cheapest.values())
        for number in range(len(self.limits)):
            new = [ops for ops in self.near(number, nearby) if ops not in self.losses and ops not in chosen]
            new.sort(key=lambda ops: sums(self.effects, torch.tensor(ops)).item())
            if wave == 0:
                better = new[: max(ENTRANTS[0], math.ceil(len(new) / 2))]
                new = [better[place] for place in torch.randperm(len(better), generator=self.generator).tolist()]
            chosen |= dict.fromkeys(new[: ENTRANTS[wave]])
        return torch.tensor(list(chosen)).reshape(-1, self.task.space.num_edges)

    def neighbours(self) -> list[tuple[int, ...]]:
        """Of the best cells of every limit, within the largest of the limits."""
        found: dict[tuple[int, ...], None] = {}
        for number in range(len(self.limits)):
            for parent in self.best(number)[:PARENTS]:
                for ops in neighbourhood(torch.tensor(parent), len(self.task.ops), self.limits[-1]):
                    cell = tuple(ops.tolist())
                    found[self.cheapest.setdefault(self.task.identity(ops), cell)] = None
        return list(found)

    def best(self, number: int) -> list[tuple[int, ...]]:
        """The scouts of a limit, best first."""
        return sorted(self.near(number, self.losses), key=lambda ops: self.losses[ops])

    def finalists(self) -> tuple[Tensor, list[list[int]]]:
        """The cells of the pool, int64 [count, num_edges], and for each limit the places of its own among them."""
        best = [self.best(number)[:FINALISTS] for number in range(len(self.limits))]
        cells = list(dict.fromkeys(ops for of_limit in best for ops in of_limit))
        return torch.tensor(cells), [[cells.index(ops) for ops in of_limit] for of_limit in best]

    def _least_near(self, limit: Limit) -> float:
        """The cost from which on a cell within a limit is near it: a quarter of the networks is, and as many as may enter."""
        costs = limit.costs.of(torch.tensor(list(self.cheapest.values())))
        within = costs[costs <= limit.value * (1 + 1e-9)].sort(descending=True).values
        count = max(math.ceil(NEAR * len(within)), ENTRANTS[0])
        return within[min(count, len(within)) - 1].item()


class Scouts(Contest):
    """The networks of a wave: a single comparison, after half of the steps that the first one of a pool has.

    Attributes:
        losses: in that comparison, by place.
    """

    values = (*Contest.values, "losses")

    def __init__(self, search: SearchState, task: Task, cells: Tensor, wave: int) -> None:
        self.kind = f"scouts-{wave + 1}"  # type: ignore[misc]  # each wave has its own checkpoint
        self.losses: dict[int, float] = {}
        super().__init__(search, task, cells)

    @property
    def finished(self) -> bool:
        return self.epoch == 1

    @property
    def rounds(self) -> int:
        return 1

    def steps_after(self, round: int) -> int:
        return max(1, self.config.halving_steps // 2)

    def staying(self, ranked: list[int], losses: dict[int, float]) -> list[int]:
        self.losses = losses
        return ranked[:1]


class Pool(Contest):
    """The networks of all limits.

    Attributes:
        contenders: for each limit the places in ``archs`` that are still in for it, best first.
        losses: of the last comparison of each cell, by its place.
    """

    kind = "front"
    values = (*Contest.values, "contenders", "losses")

    def __init__(self, search: SearchState, task: Task, cells: Tensor, contenders: list[list[int]]) -> None:
        self.contenders = contenders
        self.losses: dict[int, float] = {}
        super().__init__(search, task, cells)

    @property
    def finished(self) -> bool:
        return all(len(places) == 1 for places in self.contenders) and bool(self.losses)

    @property
    def rounds(self) -> int:
        return max(1, max(len(places) for places in self.contenders).bit_length() - 1)

    def staying(self, ranked: list[int], losses: dict[int, float]) -> list[int]:
        self.losses |= losses
        by_limit = [sorted(places, key=lambda place: losses[place]) for places in self.contenders]
        self.contenders = [places[: max(1, len(places) // 2)] for places in by_limit]
        still_in = {place for places in self.contenders for place in places}
        return [place for place in ranked if place in still_in]

    def front(self) -> list[dict[str, Any]]:
        """The cell of each limit, with its loss in the last comparison that it was in."""
        return [{"arch": self.archs[places[0]], "valid_loss": self.losses[places[0]]} for places in self.contenders]
