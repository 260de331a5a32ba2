"""The front of a search: the best cell within each of several limits on what a cell costs, all from one supernet.

The supernet is trained on uniform paths, so that it serves every limit. Its losses of many random cells give what each operation
is worth on each edge, on average over the rest of the cell: the additive function of a cell's operations that is closest to them.
Within each limit the cells of the best sums are known exactly (:mod:`advnas_ext.knapsack`); those that are different networks go
into one pool, where all are trained from scratch beside each other by successive halving. After each comparison the better half of
the cells within a limit stays in for it, whichever limit brought them in; a cell is trained as long as it is in for any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from advnas.halving import Halving
from advnas.limits import Limit, additive_fit
from advnas.state import SearchState
from advnas.tasks.base import Task
from advnas.training import check_finite
from advnas_ext import Path

PATHS = 1500  # random cells by whose losses operations are judged
BATCHES = 4  # held-out batches on which each is measured
ENTRANTS = 12  # networks that each limit brings into the pool
TRIED = 40  # cells for each of them, among which different networks are looked for


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


def entrants(task: Task, limits: Sequence[Limit], scores: Tensor) -> Tensor:
    """The cells of the pool, int64 [count, num_edges]: for each limit the ``ENTRANTS`` of the largest sums of scores within it that
    are different networks."""
    chosen: dict[str, Tensor] = {}
    for limit in limits:
        best: dict[str, Tensor] = {}
        for ops in limit.best(scores, TRIED * ENTRANTS):
            best.setdefault(task.identity(ops), ops)
            if len(best) == ENTRANTS:
                break
        # A network that is in the pool already may have come in as a dearer cell.
        chosen |= {
            name: ops
            for name, ops in best.items()
            if name not in chosen or limit.costs.of(ops) < limit.costs.of(chosen[name])
        }
    return torch.stack(list(chosen.values()))


class Pool(Halving):
    """The networks of all limits.

    Attributes:
        contenders: for each limit the places in ``archs`` that are still in for it, best first.
        losses: of the last comparison of each cell, by its place.
    """

    kind = "front"
    values = (*Halving.values, "contenders", "losses")

    def __init__(self, search: SearchState, task: Task, cells: Tensor, limits: Sequence[Limit]) -> None:
        self.contenders = [limit.allows(cells).nonzero().flatten().tolist() for limit in limits]
        self.losses: dict[int, float] = {}
        super().__init__(search, task, cells)

    @property
    def finished(self) -> bool:
        return all(len(places) == 1 for places in self.contenders)

    @property
    def rounds(self) -> int:
        return max(len(places) for places in self.contenders).bit_length() - 1

    def keep_better_half(self, losses: dict[int, float]) -> None:
        super().keep_better_half(losses)
        self.losses |= losses
        halved = [sorted(places, key=lambda place: losses[place]) for places in self.contenders]
        self.contenders = [places[: max(1, len(places) // 2)] for places in halved]
        self.left = sorted({place for places in self.contenders for place in places}, key=lambda place: losses[place])

    def found(self) -> list[dict[str, Any]]:
        """The cell of each limit, with its loss in the last comparison that it was in."""
        return [{"arch": self.archs[places[0]], "valid_loss": self.losses.get(places[0])} for places in self.contenders]
