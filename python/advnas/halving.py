"""The end of a search: the best cell and its neighbours, each trained for a while in a network of its own.

Shared weights know what an operation is worth on average over the cells that they were trained with. They know little of how one
change to the best cell works together with the rest of it, and a shallow supernet cannot know what only depth brings out, such as
a skip connection from the input to the output of every cell. So the cells that differ from the best one on a single edge are
trained beside it, in deeper networks, on the same batches from the same initial weights, by successive halving (Jamieson &
Talwalkar, AISTATS 2016): each comparison on held-out images leaves the better half, which trains until it has twice the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from advnas.search import SearchState, measure
from advnas.training import Training, endless, finite, generators, seeded
from advnas.watch import Watch
from advnas_ext import Path


def judge(state: Judging, watch: Watch) -> None:
    """Train and halve until one cell is left, from wherever ``state`` is.

    Raises:
        FloatingPointError: a loss is not finite.
        advnas.watch.Interrupted: someone asked to stop; the state is saved.
    """
    while len(state.left) > 1:
        while state.step < state.steps:
            train_step(state)
            state.step += 1
            watch.after_step()
        state.halve()
        watch.after_epoch()


def train_step(state: Judging) -> None:
    """A step of every network that is left, all on the same batch."""
    x, y = next(state.endless)
    for place in state.left:
        network = state.networks[place]
        loss = cross_entropy(network(x, state.paths[place]), y)
        finite(f"training loss of {state.archs[place]}", loss)
        loss.backward()
        clip_grad_norm_(network.parameters(), state.config.grad_clip)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.schedule.step()
    state.work += len(state.left)


def neighbourhood(ops: Tensor, num_ops: int) -> Tensor:
    """A cell (int64 [num_edges]) and all that differ from it on one edge: [1 + num_edges * (num_ops - 1), num_edges]."""
    cells = [ops]
    for edge in range(len(ops)):
        for op in range(num_ops):
            if op != ops[edge]:
                cells.append(ops.clone())
                cells[-1][edge] = op
    return torch.stack(cells)


class Judging(Training):
    """The networks of the cells that are compared.

    Attributes:
        archs: the cells' strings, the best one of the search first.
        left: places in ``archs`` that are still in, best first.
        epoch: comparisons so far.
    """

    kind = "judge"
    unit = "comparison"
    parts = ("networks", "optimizer", "schedule", "batches")
    values = (*Training.values, "left")

    def __init__(self, search: SearchState) -> None:
        config = self.config = search.config
        self.search = search
        cells = neighbourhood(search.best[0], len(search.ops))
        self.archs = [search.arch(ops) for ops in cells]
        self.paths = [Path.from_ops(ops, requires_grad=False) for ops in cells]
        self.left = list(range(len(cells)))
        # Each comparison comes after twice the steps: the last one after total.
        total = config.judge_steps << (self.rounds - 1)
        work = sum((len(cells) >> done) * self.steps_of(done) for done in range(self.rounds))
        super().__init__(total_work=work)
        init, order = generators(config.seed + 1, 2)
        self.networks = nn.ModuleList(seeded(init, lambda: search.make_network(config.judge_cells)) for _ in cells)
        for network, ops in zip(self.networks, cells, strict=True):
            network.keep_only(ops)  # type: ignore[operator]
        self.optimizer = search.make_optimizer(self.networks.parameters())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total, config.lr_min)
        self.batches = search.make_batches(search.weight_index, order)
        self.endless = endless(self.batches)

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
        return self.config.judge_steps << max(round - 1, 0)

    def halve(self) -> None:
        """Compare on held-out images, and keep the better half."""
        batches = self.config.valid_batches
        losses = {
            p: measure(self.networks[p], self.paths[p], self.search.held_out_batches(batches))[0] for p in self.left
        }
        ranked = sorted(self.left, key=lambda place: losses[place])
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
