"""The search (Sato, Sakuma & Akimoto, AAAI 2021): weights and logits take turns, each on a path and a batch of its own.

    repeat:  a ~ p(. ; theta);  w     <- w - lr * dL_train(w, a)/dw
             a ~ p(. ; theta);  theta <- theta - arch_lr * (an estimate of dE[L_valid(w, a)]/dtheta)

Everything around it is elsewhere: progress and checkpoints in :mod:`advnas.watch`, files in :mod:`advnas.run`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from advnas.config import SearchConfig
from advnas.data import Batches, ImageData, evaluation_batches, split_halves
from advnas.spaces import SPACES
from advnas.training import Training, endless, finite, generators, seeded
from advnas.watch import Watch
from advnas_ext import ESTIMATORS, Estimator, Path, RandomEstimator

DRAWN = 10  # cells that random search measures after an epoch


def search(state: SearchState, watch: Watch) -> None:
    """Search from wherever ``state`` is to the end.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
        advnas.watch.Interrupted: someone asked to stop; the state is saved.
    """
    while state.epoch < state.config.epochs:
        while state.step < state.steps_per_epoch:
            weight_step(state)
            if state.learns:
                architecture_step(state)
            state.schedule.step()
            state.step += 1
            watch.after_step()
        state.finish_epoch(*best_cell(state))
        watch.after_epoch()


def weight_step(state: SearchState) -> None:
    """A step of the weights, on a batch of their half. Gradients of the gates are not computed."""
    x, y = next(state.weight_batches)
    path = state.draw_path().detach()
    loss = cross_entropy(state.network(x, path), y)
    state.train_loss += finite("training loss", loss)
    loss.backward()
    finite("norm of the weights' gradient", clip_grad_norm_(state.weights, state.config.grad_clip))
    state.weight_optimizer.step()
    state.weight_optimizer.zero_grad()
    state.work += 1


def architecture_step(state: SearchState) -> None:
    """A step of the logits, on a batch of the other half. Gradients of the weights are not computed."""
    path = estimate(state.network, state.estimator, next(state.arch_batches), state.path_generator)
    state.arch_optimizer.step()
    state.arch_optimizer.zero_grad()
    state.estimator.after_step(path)
    state.work += 1


def estimate(
    network: nn.Module, estimator: Estimator, batch: tuple[Tensor, Tensor], generator: torch.Generator
) -> Path:
    """Measure the estimator's paths on one batch, which fills ``logits.grad``, and return the last path.

    An estimator that wants more batches for a gradient leaves ``logits.grad`` at None until it has them.
    """
    x, y = batch
    for _ in range(estimator.paths_per_batch):
        path = estimator.sample(generator)
        with torch.set_grad_enabled(estimator.needs_gate_gradients):
            loss = cross_entropy(network(x, path), y)
        if loss.requires_grad:
            loss.backward(inputs=[path.gates] if path.offsets is None else [path.gates, path.offsets])
        estimator.assign_grad(path, loss)
    return path


def best_cell(state: SearchState) -> tuple[Tensor, float, float]:
    """The best cell so far, its loss and its accuracy: that of the largest logits, or else the best of some that are drawn."""
    batches = state.config.valid_batches
    return min(((ops, *evaluate(state, ops, batches)) for ops in state.candidates()), key=lambda measured: measured[1])


def evaluate(state: SearchState, ops: Tensor, batches: int) -> tuple[float, float]:
    """Mean loss and accuracy of a cell on held-out images, with the shared weights and batch statistics."""
    return measure(state.network, Path.from_ops(ops, requires_grad=False), state.held_out_batches(batches))


@torch.no_grad()
def measure(network: nn.Module, path: Path, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean loss and accuracy of a path."""
    loss, correct, count = 0.0, 0, 0
    for x, y in batches:
        output = network(x, path)
        loss += cross_entropy(output, y, reduction="sum").item()
        correct += int((output.argmax(1) == y).sum())
        count += len(y)
    return loss / count, correct / count


def constant_then_cosine(
    optimizer: torch.optim.Optimizer, constant: int, steps: int, least: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate stays for ``constant`` steps, then falls along a cosine to ``least`` of it at ``steps``.

    So a warm-up does not depend on what comes after it.
    """

    def factor(step: int) -> float:
        done = max(step - constant, 0) / max(steps - constant, 1)
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def kept(ops: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """The operations that are searched.

    Raises:
        ValueError: one that is left out is none of the space, or fewer than two remain.
    """
    if unknown := [op for op in without if op not in ops]:
        raise ValueError(f"without: must be operations among {', '.join(ops)}, got {unknown[0]!r}")
    remaining = tuple(op for op in ops if op not in without)
    if len(remaining) < 2:
        raise ValueError(f"without: must leave at least two operations, got {list(without)}")
    return remaining


class SearchState(Training):
    """Everything that a search changes as it goes, made from its settings and its data.

    Raises:
        ValueError: ``config.estimator_settings`` are not settings of the estimator, ``config.without`` leaves too little,
            or a half has no image.
    """

    kind = "search"
    parts = ("network", "estimator", "weight_optimizer", "arch_optimizer", "schedule", "weight_half", "arch_half")
    values = (*Training.values, "train_loss", "logits", "best", "path_generator")

    def __init__(self, config: SearchConfig, images: ImageData) -> None:
        self.config = config
        self.images = images = images.resized(min(config.image_size or images.image_size, images.image_size))
        self.space = SPACES[config.space]
        self.ops = kept(self.space.OPS, config.without)
        init, self.path_generator, weight_order, arch_order, held_out_order, noise = generators(config.seed, 6)

        self.weight_index, self.arch_index = split_halves(images.train.labels, config.seed)
        self.weight_half = self.make_batches(self.weight_index, weight_order)
        self.arch_half = self.make_batches(self.arch_index, arch_order)
        self.weight_batches, self.arch_batches = endless(self.weight_half), endless(self.arch_half)
        self.held_out = self.arch_index[torch.randperm(len(self.arch_index), generator=held_out_order)]

        self.steps_per_epoch = config.steps_per_epoch or len(self.weight_half)
        steps = config.epochs * self.steps_per_epoch
        warmup_steps = min(config.warmup_epochs, config.epochs) * self.steps_per_epoch
        logit_steps = 0 if ESTIMATORS[config.estimator] is RandomEstimator else steps - warmup_steps
        super().__init__(total_work=steps + logit_steps)

        self.network = seeded(init, lambda: self.make_network(config.cells))
        self.weights = list(self.network.parameters())
        self.weight_optimizer = self.make_optimizer(self.weights)
        self.schedule = constant_then_cosine(self.weight_optimizer, warmup_steps, steps, config.lr_min / config.lr)
        self.estimator = self._estimator(logit_steps)
        self.estimator.logits.data.normal_(0, config.arch_init, generator=noise)
        self.arch_optimizer = torch.optim.Adam(
            [self.estimator.logits], config.arch_lr, config.arch_betas, weight_decay=config.arch_weight_decay
        )
        self.best: list[Tensor] = []  # the best cell after the last epoch, int64 [num_edges]
        self.train_loss = 0.0  # sum over the steps of the current epoch
        self.logits = [self.estimator.logits.tolist()]  # [num_edges, num_ops] at the start and after every epoch

    def warm_start(self, state: dict[str, Any]) -> None:
        """Take over the warm-up of another search, given by its ``state_dict()``: all but what is learned about the logits."""
        logits = self.logits
        own = {name: getattr(self, name).state_dict() for name in ("estimator", "arch_optimizer")}
        self.load_state_dict({**state, "parts": {**state["parts"], **own}})
        self.logits = [logits[0]] * len(self.logits)

    @property
    def warming_up(self) -> bool:
        return self.epoch < self.config.warmup_epochs

    @property
    def learns(self) -> bool:
        """Whether the logits take steps now."""
        return not self.warming_up and not isinstance(self.estimator, RandomEstimator)

    def draw_path(self) -> Path:
        """From the estimator's distribution; in the warm-up uniformly."""
        if not self.warming_up:
            return self.estimator.sample(self.path_generator)
        return Path.from_ops(self.uniform_ops())

    def uniform_ops(self) -> Tensor:
        return torch.randint(len(self.ops), (self.space.NUM_EDGES,), generator=self.path_generator)

    def arch(self, ops: Tensor) -> str:
        """The string of a cell, given by places in ``ops``."""
        return self.space.format_arch(torch.tensor([self.space.OPS.index(self.ops[op]) for op in ops.tolist()]))

    def candidates(self) -> list[Tensor]:
        """Cells among which the best one is: the estimator's, or for random search the last best one and new ones."""
        if not isinstance(self.estimator, RandomEstimator):
            return [self.estimator.argmax()]
        return [*self.best, *(self.uniform_ops() for _ in range(DRAWN))]

    def finish_epoch(self, ops: Tensor, valid_loss: float, valid_accuracy: float) -> None:
        self.epoch += 1
        self.best = [ops]
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                "train_loss": self.train_loss / self.step,
                "valid_loss": valid_loss,
                "valid_accuracy": valid_accuracy,
                "entropy": self.estimator.entropy(),
                "arch": self.arch(ops),
            }
        )
        self.logits.append(self.estimator.logits.tolist())
        self.step = 0
        self.train_loss = 0.0

    def held_out_batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first ``count`` batches of the architecture's half, always the same ones; all of them where it has fewer."""
        images, size = self.images, self.config.batch_size
        return evaluation_batches(images.train, self.held_out[: count * size], size, images.mean, images.std)

    def make_network(self, cells: int) -> nn.Module:
        """A new supernet, with that many cells in each stage."""
        config, images = self.config, self.images
        sizes = (config.channels, cells, images.in_channels, len(images.classes))
        return self.space.Network(*sizes, ops=self.ops, reduction=config.reduction)

    def make_optimizer(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.SGD(
            weights, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )

    def make_batches(self, index: Tensor, order: torch.Generator) -> Batches:
        images = self.images
        return Batches(
            images.train,
            index,
            self.config.batch_size,
            generator=order,
            augment=images.augment,
            mean=images.mean,
            std=images.std,
        )

    def _estimator(self, steps: int) -> Estimator:
        zero = self.space.OPS[self.space.ZERO_OP]
        known: dict[str, Any] = {"zero_op": self.ops.index(zero) if zero in self.ops else None, "total_steps": steps}
        try:
            return ESTIMATORS[self.config.estimator](
                self.space.NUM_EDGES, len(self.ops), **{**known, **self.config.estimator_settings}
            )
        except TypeError as error:
            raise ValueError(f"estimator_settings: {error}") from None
