"""The end of a search: successive halving among the best cell and its neighbours, each trained in a network of its own.

Shared weights know what an operation is worth on average over the cells that they were trained with. They know little of how one
change to the best cell works together with the rest of it, and a shallow supernet cannot know what only depth brings out, such as
a skip connection from the input to the output of every cell. So the cells that differ from the best one on a single edge are
trained beside it, in deeper networks, on the same batches from the same initial weights, by successive halving (Jamieson &
Talwalkar, AISTATS 2016): each comparison on held-out data leaves the better half, which trains until it has twice the steps.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from advnas.limits import Limit
from advnas.run.watch import Watch
from advnas.state import SearchState, sgd
from advnas.tasks.base import Task
from advnas.training import Training, check_finite, endless, generators, seeded
from advnas_ext import Path


def halve(task: Task, state: Halving, watch: Watch) -> None:
    """Train and halve until one cell is left, from wherever ``state`` is.

    Raises:
        FloatingPointError: a loss is not finite.
        advnas.run.watch.Interrupted: someone asked to stop; the state is saved.
    """
    while not state.finished:
        while state.step < state.steps:
            train_step(task, state)
            state.step += 1
            watch.after_step()
        state.keep_better_half(compare(task, state))
        watch.after_epoch()


def train_step(task: Task, state: Halving) -> None:
    """A step of every network that is left, all on the same batch."""
    batch = next(state.batches)
    for place in state.left:
        network = state.networks[place]
        loss = task.loss(network, batch, state.paths[place])
        check_finite(f"training loss of {state.archs[place]}", loss)
        state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    for place in state.left:
        clip_grad_norm_(state.networks[place].parameters(), state.config.grad_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.schedule.step()
    state.work += len(state.left)


def compare(task: Task, state: Halving) -> dict[int, float]:
    """The loss of every cell that is left, on the same held-out data."""
    batches = state.config.valid_batches
    return {
        place: task.measure(state.networks[place], state.paths[place], state.held_out(batches))["loss"]
        for place in state.left
    }


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


class Halving(Training):
    """The networks of the cells that are compared: those given, or else the best cell of the search and its neighbours.

    Attributes:
        archs: the cells' strings, the best one of the search first.
        left: places in ``archs`` that are still in, best first.
        epoch: comparisons so far.
    """

    kind = "halving"
    unit = "comparison"
    parts = ("networks", "optimizer", "schedule", "scaler", "stream")
    values = (*Training.values, "left")

    def __init__(self, search: SearchState, task: Task, cells: Tensor | None = None) -> None:
        config = self.config = search.config
        if cells is None:
            cells = neighbourhood(search.best[0], len(search.ops), search.limit)
        self.archs = [search.arch(ops) for ops in cells]
        self.paths = [Path.from_ops(ops, requires_grad=False) for ops in cells]
        self.left = list(range(len(cells)))
        # Each comparison comes after twice the steps: the last one after total.
        total = config.halving_steps << (self.rounds - 1)
        work = sum(max(1, len(cells) >> done) * self.steps_of(done) for done in range(self.rounds))
        super().__init__(total_work=work)
        init, order = generators(config.seed + 1, 2)
        self.networks = nn.ModuleList(
            seeded(init, lambda: task.supernet(config.halving_cells)).fix(ops)  # type: ignore[operator]
            for ops in cells
        )
        task.placement.place(self.networks)
        self.optimizer = sgd(self.networks.parameters(), config)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total, config.lr_min)
        self.scaler = task.placement.scaler()
        self.stream = task.weight_stream(order)
        self.batches = endless(self.stream)
        self.held_out = search.held_out

    @property
    def finished(self) -> bool:
        return len(self.left) == 1

    @property
    def rounds(self) -> int:
        """Comparisons until one cell is left."""
        return len(self.archs).bit_length() - 1

    @property
    def steps(self) -> int:
        """Of the current round."""
        return self.steps_of(self.epoch)

    def steps_of(self, round: int) -> int:
        """As many as before it; in the first one those of the settings."""
        return self.config.halving_steps << max(round - 1, 0)

    def keep_better_half(self, losses: dict[int, float]) -> None:
        ranked = sorted(self.left, key=lambda place: losses[place])
        check_finite(f"loss of {self.archs[ranked[0]]}", losses[ranked[0]])
        self.epoch += 1
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                "cells": len(ranked),
                "valid_loss": losses[ranked[0]],
                "arch": self.archs[ranked[0]],
            }
        )
        self.left = ranked[: len(ranked) // 2]
        self.step = 0
