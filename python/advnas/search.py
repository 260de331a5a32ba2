"""The search (Sato, Sakuma & Akimoto, AAAI 2021): weights and logits take turns, each on a path and a batch of its own.

    repeat:  a ~ p(. ; theta);  w     <- w - lr * dL_train(w, a)/dw
             a ~ p(. ; theta);  theta <- theta - arch_lr * (an estimate of dE[L_valid(w, a)]/dtheta)

What L is the task knows (:mod:`advnas.tasks`); what changes is in :mod:`advnas.state`; progress, checkpoints and files are in
:mod:`advnas.run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from advnas.device import HOST, Placement
from advnas.run.watch import Watch
from advnas.state import SearchState
from advnas.tasks.base import Task
from advnas.training import check_finite, descend
from advnas_ext import Estimator, Path


def search(task: Task, state: SearchState, watch: Watch) -> None:
    """Search from wherever ``state`` is to the end.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
        advnas.run.watch.Interrupted: someone asked to stop; the state is saved.
    """
    while state.epoch < state.config.epochs:
        while state.step < state.steps_per_epoch:
            weight_step(task, state)
            if state.learns:
                architecture_step(task, state)
            state.schedule.step()
            state.step += 1
            watch.after_step()
        state.finish_epoch(*best_cell(task, state))
        watch.after_epoch()


def weight_step(task: Task, state: SearchState) -> None:
    """A step of the weights, on a batch of their stream. Gradients of the gates are not computed."""
    score = task.score(state.network, next(state.weight_batches), state.draw_path().detach())
    check_finite("training loss", score.loss)
    state.scores.add(score)
    descend(score.loss, state.weights, state.weight_optimizer, state.scaler, state.config.grad_clip)
    state.work += 1


def architecture_step(task: Task, state: SearchState) -> None:
    """A step of the logits, on a batch of their stream. Gradients of the weights are not computed."""
    loss_of = partial(task.loss, state.network, next(state.arch_batches))
    path = estimate(loss_of, state.estimator, state.path_generator, task.placement)
    if state.limit is not None:
        state.limit.budget.project_grad(state.estimator)
    if state.config.arch_grad_clip is not None:
        clip_grad_norm_(state.estimator.logits, state.config.arch_grad_clip)
    state.arch_optimizer.step()
    state.arch_schedule.step()
    state.arch_optimizer.zero_grad()
    state.estimator.after_step(path)
    state.keep_within_limit()
    state.work += 1


def estimate(
    loss_of: Callable[[Path], Tensor], estimator: Estimator, generator: torch.Generator, placement: Placement = HOST
) -> Path:
    """Measure the estimator's paths, all on one batch, which fills ``logits.grad``, and return the last path.

    An estimator that wants more batches for a gradient leaves ``logits.grad`` at None until it has them.

    Args:
        loss_of: the loss of a path on the batch, a number.
        placement: where it is computed.
    """
    for _ in range(estimator.paths_per_batch):
        path = estimator.sample(generator)
        with torch.set_grad_enabled(estimator.needs_gate_gradients):
            loss = loss_of(path)
        if loss.requires_grad:
            placement.backward(loss, path.leaves)
        estimator.assign_grad(path, loss)
    return path


def best_cell(task: Task, state: SearchState) -> tuple[Tensor, dict[str, float]]:
    """The best cell so far and its metrics: that of the largest logits, or else the best of some that are drawn."""
    measured = [(ops, evaluate(task, state, ops, state.config.valid_batches)) for ops in state.candidates()]
    return min(measured, key=lambda cell: loss if math.isfinite(loss := cell[1]["loss"]) else math.inf)


def evaluate(task: Task, state: SearchState, ops: Tensor, batches: int) -> dict[str, float]:
    """Metrics of a cell on held-out data, with the shared weights."""
    return task.measure(state.network, Path.from_ops(ops, requires_grad=False), state.held_out(batches))
