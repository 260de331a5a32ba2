"""The end of a search: successive halving among the best cell and its neighbours, each trained in a network of its own.

Shared weights know what an operation is worth on average over the cells that they were trained with. They know little of how one
change to the best cell works together with the rest of it, and a shallow supernet cannot know what only depth brings out, such as
a skip connection from the input to the output of every cell. So the cells that differ from the best one on a single edge are
trained beside it, in deeper networks, on the same batches from the same initial weights, by successive halving (Jamieson &
Talwalkar, AISTATS 2016): each comparison leaves the better half, which trains until it has twice the steps.

What is compared is the mean loss of the later half of a cell's training steps (Ru et al., Speedy Performance Estimation for Neural
Architecture Search, NeurIPS 2021). All cells see the same batches, and within the first epoch none of these was seen before, so
that this is a loss on new data, averaged over the weights of many steps. Those of a single step are noisy, for their rate is still
high when cells are compared.

The neighbourhood stays where it is. Where a winner could bring its own neighbours, comparisons after few steps led from one shallow
cell, which learns fast, to a shallower one (docs/search.md).
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any, ClassVar

import torch
from torch import Tensor

from advnas.config import SearchConfig
from advnas.limits import Limit
from advnas.run.watch import Watch
from advnas.state import SearchState, sgd
from advnas.tasks.base import Task
from advnas.training import Training, check_finite, descend, endless, generators, seeded
from advnas_ext import Path


def halve(task: Task, state: Contest, watch: Watch) -> None:
    """Train, compare and leave the better ones until it is finished, from wherever ``state`` is.

    Raises:
        FloatingPointError: a loss is not finite.
        advnas.run.watch.Interrupted: someone asked to stop; the state is saved.
    """
    while not state.finished:
        train(task, state, watch)
        state.keep_better({place: state.contestants[place].loss for place in state.left})
        watch.after_epoch()


def train(task: Task, state: Contest, watch: Watch) -> None:
    """Every cell that is left, up to the steps of the round."""
    for place in state.left:
        contestant = state.contestants[place]
        while contestant.steps < state.steps:
            contestant.train_step(task)
            state.step = contestant.steps
            state.work += 1
            watch.after_step()


def neighbourhood(ops: Tensor, num_ops: int, limit: Limit | None = None) -> Tensor:
    """A cell (int64 [num_edges]) and all that differ from it on one edge: [1 + num_edges * (num_ops - 1), num_edges].

    With a limit: those within it, and besides them those in which two edges have changed places, for a change of one edge alone may
    cost too much wherever it leads.
    """
    cells = [ops]
    for edge in range(len(ops)):
        for op in range(num_ops):
            if op != ops[edge]:
                cells.append(ops.clone())
                cells[-1][edge] = op
    if limit is None:
        return torch.stack(cells)
    for first, second in itertools.combinations(range(len(ops)), 2):
        if ops[first] != ops[second]:
            cells.append(ops.clone())
            cells[-1][[first, second]] = ops[[second, first]]
    found = torch.stack(cells)
    return found[limit.allows(found)]


class Contestant:
    """A cell in a network of its own, and what trains it. All see the same batches from the same initial weights.

    Attributes:
        steps: done.
        arch: the cell's string.
        losses: of the training steps, where the device has them until somebody asks.
    """

    parts: ClassVar = ("network", "optimizer", "schedule", "scaler", "stream")

    def __init__(self, task: Task, config: SearchConfig, ops: Tensor, arch: str, total_steps: int) -> None:
        init, order = generators(config.seed + 1, 2)
        self.arch = arch
        self.steps = 0
        self.losses: list[Tensor | float] = []
        self.grad_clip = config.grad_clip
        self.path = Path.from_ops(ops, requires_grad=False)
        self.network = task.placement.place(seeded(init, lambda: task.supernet(config.halving_cells)).fix(ops))  # type: ignore[operator]
        self.optimizer = sgd(self.network.parameters(), config)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total_steps, config.lr_min)
        self.scaler = task.placement.scaler()
        self.stream = task.weight_stream(order)
        self.batches = endless(self.stream)

    def train_step(self, task: Task) -> None:
        loss = task.loss(self.network, next(self.batches), self.path)
        check_finite(f"training loss of {self.arch}", loss)
        descend(loss, self.network.parameters(), self.optimizer, self.scaler, self.grad_clip)
        self.schedule.step()
        self.losses.append(loss.detach())
        self.steps += 1

    @property
    def loss(self) -> float:
        """The mean of the later half of the training steps.

        Raises:
            FloatingPointError: it is infinite or not a number.
        """
        loss = statistics.mean(map(float, self.losses[self.steps // 2 :]))
        check_finite(f"loss of {self.arch}", loss)
        return loss

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in self.parts}
        return {"steps": self.steps, "losses": list(map(float, self.losses)), "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.losses = state["steps"], state["losses"]
        for name in self.parts:
            getattr(self, name).load_state_dict(state["parts"][name])


class Contest(Training):
    """Cells that are trained and compared, round by round.

    Attributes:
        share: a comparison leaves one cell in so many, which trains until it has so many times the steps.
        cells: int64 [num_edges] each.
        contestants: by places in ``cells``, of those that are left.
        left: places in ``cells`` that are still in, best first.
        epoch: rounds that are over.
    """

    share: ClassVar[int] = 2
    kind = "halving"
    unit = "comparison"
    parts = ()
    values = (*Training.values, "cells", "left")

    def __init__(self, search: SearchState, task: Task, cells: Tensor) -> None:
        self.config, self.task, self.search = search.config, task, search
        self.cells = list(cells)
        self.size = len(cells)
        steps = [0, *self.plan]
        more = [after - before for before, after in itertools.pairwise(steps)]
        super().__init__(total_work=sum(self.left_after(done) * count for done, count in enumerate(more)))
        self.left = list(range(self.size))
        self.contestants = {place: self._contestant(place) for place in self.left}

    @property
    def finished(self) -> bool:
        return len(self.left) == 1

    @property
    def rounds(self) -> int:
        """Comparisons until one cell is left."""
        return self.rounds_of(self.size)

    def rounds_of(self, cells: int) -> int:
        """Comparisons until one of so many is left."""
        return next(count for count in itertools.count() if cells // self.share**count <= 1)

    @property
    def first_steps(self) -> int:
        """Of each contestant at the first comparison."""
        return self.config.halving_steps

    def left_after(self, rounds: int) -> int:
        """Cells that stay after so many comparisons; about so many where there are several limits."""
        return max(1, self.size // self.share**rounds)

    @property
    def plan(self) -> list[int]:
        """Steps of a contestant at each comparison."""
        return [self.steps_after(round) for round in range(self.rounds)]

    @property
    def steps(self) -> int:
        """Of each contestant at the next comparison."""
        return self.steps_after(self.epoch)

    def steps_after(self, round: int) -> int:
        """Of each contestant at the comparison of a round."""
        return self.first_steps * self.share**round

    def arch(self, place: int) -> str:
        """The string of a cell."""
        return self.search.arch(self.cells[place])

    @property
    def found(self) -> str:
        """The string of the best cell."""
        return self.arch(self.left[0])

    def keep_better(self, losses: dict[int, float]) -> None:
        """End the round."""
        ranked = sorted(self.left, key=lambda place: losses[place])
        self.epoch += 1
        self.step = 0
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                "cells": len(ranked),
                "loss": losses[ranked[0]],
                "arch": self.arch(ranked[0]),
            }
        )
        self.left = self.staying(ranked, losses)
        self.contestants = {place: self.contestants[place] for place in self.left}

    def staying(self, ranked: list[int], losses: dict[int, float]) -> list[int]:
        """Those that are in the next round, best first."""
        return ranked[: self.left_after(self.epoch)]

    def state_dict(self) -> dict[str, Any]:
        saved = {place: contestant.state_dict() for place, contestant in self.contestants.items()}
        return {**super().state_dict(), "plan": self.plan, "contestants": saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: an earlier version has made it, which compared in another way.
        """
        if state.get("plan") != self.plan:
            raise ValueError(
                f"the comparison was begun by an earlier version; remove checkpoint/{self.kind}.pt to begin it anew"
            )
        super().load_state_dict(state)
        self.contestants = {place: self._contestant(place) for place in state["contestants"]}
        for place, saved in state["contestants"].items():
            self.contestants[place].load_state_dict(saved)

    def _contestant(self, place: int) -> Contestant:
        last = self.steps_after(max(self.rounds, 1) - 1)
        return Contestant(self.task, self.config, self.cells[place], self.arch(place), last)


class Halving(Contest):
    """The best cell of the search and its neighbours."""

    def __init__(self, search: SearchState, task: Task) -> None:
        super().__init__(search, task, neighbourhood(search.best[0], len(search.ops), search.limit))
