"""The search (Sato, Sakuma & Akimoto, AAAI 2021): weights and logits take turns, each on a path and a batch of its own.

    repeat:  a ~ p(. ; theta);  w     <- w - lr * dL_train(w, a)/dw
             a ~ p(. ; theta);  theta <- theta - arch_lr * (an estimate of dE[L_valid(w, a)]/dtheta)

Everything around it is elsewhere: progress and checkpoints in :mod:`advnas.watch`, files in :mod:`advnas.run`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
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
    x, y = next(state.arch_batches)
    path = state.draw_path()
    with torch.set_grad_enabled(state.estimator.needs_gate_gradients):
        loss = cross_entropy(state.network(x, path), y)
    if loss.requires_grad:
        loss.backward(inputs=[path.gates] if path.offsets is None else [path.gates, path.offsets])
    state.estimator.assign_grad(path, loss)
    state.arch_optimizer.step()
    state.arch_optimizer.zero_grad()
    state.estimator.after_step(path)
    state.work += 1


def best_cell(state: SearchState) -> tuple[Tensor, float, float]:
    """The best cell so far, its loss and its accuracy: that of the largest logits, or else the best of some that are drawn."""
    return min(((ops, *evaluate(state, ops)) for ops in state.candidates()), key=lambda measured: measured[1])


@torch.no_grad()
def evaluate(state: SearchState, ops: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of a cell on held-out images, with the shared weights and batch statistics."""
    path = Path.from_ops(ops, requires_grad=False)
    loss, correct, count = 0.0, 0, 0
    for x, y in state.held_out_batches():
        output = state.network(x, path)
        loss += cross_entropy(output, y, reduction="sum").item()
        correct += int((output.argmax(1) == y).sum())
        count += len(y)
    return loss / count, correct / count


class SearchState(Training):
    """Everything that a search changes as it goes, made from its settings and its data.

    Raises:
        ValueError: ``config.estimator_settings`` are not settings of the estimator, or a half has no image.
    """

    kind = "search"
    parts = ("network", "estimator", "weight_optimizer", "arch_optimizer", "schedule", "weight_half", "arch_half")
    values = (*Training.values, "train_loss", "logits", "path_generator")

    def __init__(self, config: SearchConfig, images: ImageData) -> None:
        self.config = config
        self.images = images
        self.space = SPACES[config.space]
        init, self.path_generator, weight_order, arch_order, held_out_order, noise = generators(config.seed, 6)

        self.weight_index, self.arch_index = split_halves(images.train.labels, config.seed)
        self.weight_half = self._batches(self.weight_index, weight_order)
        self.arch_half = self._batches(self.arch_index, arch_order)
        self.weight_batches, self.arch_batches = endless(self.weight_half), endless(self.arch_half)
        shuffled = self.arch_index[torch.randperm(len(self.arch_index), generator=held_out_order)]
        self.held_out = shuffled[: config.valid_batches * config.batch_size]

        self.steps_per_epoch = config.steps_per_epoch or len(self.weight_half)
        steps = config.epochs * self.steps_per_epoch
        warmup_steps = min(config.warmup_epochs, config.epochs) * self.steps_per_epoch
        logit_steps = 0 if ESTIMATORS[config.estimator] is RandomEstimator else steps - warmup_steps
        super().__init__(total_work=steps + logit_steps)

        self.network = seeded(
            init,
            lambda: self.space.Network(config.channels, config.cells, images.in_channels, len(images.classes)),
        )
        self.weights = list(self.network.parameters())
        self.weight_optimizer = torch.optim.SGD(
            self.weights,
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.weight_optimizer, steps, config.lr_min)
        self.estimator = self._estimator(logit_steps)
        self.estimator.logits.data.normal_(0, config.arch_init, generator=noise)
        self.arch_optimizer = torch.optim.Adam(
            [self.estimator.logits], config.arch_lr, config.arch_betas, weight_decay=config.arch_weight_decay
        )
        self.train_loss = 0.0  # sum over the steps of the current epoch
        self.logits = [self.estimator.logits.tolist()]  # [num_edges, num_ops] at the start and after every epoch

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
        ops = torch.randint(len(self.space.OPS), (self.space.NUM_EDGES,), generator=self.path_generator)
        return Path.from_ops(ops)

    def candidates(self) -> list[Tensor]:
        """Cells among which the best one is: the estimator's, or for random search the last best one and new ones."""
        if not isinstance(self.estimator, RandomEstimator):
            return [self.estimator.argmax()]
        drawn = [self.estimator.sample(self.path_generator).ops[:, 0] for _ in range(DRAWN)]
        return [*(self.space.parse_arch(row["arch"]) for row in self.history[-1:]), *drawn]

    def finish_epoch(self, ops: Tensor, valid_loss: float, valid_accuracy: float) -> None:
        self.epoch += 1
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                "train_loss": self.train_loss / self.step,
                "valid_loss": valid_loss,
                "valid_accuracy": valid_accuracy,
                "entropy": self.estimator.entropy(),
                "arch": self.space.format_arch(ops),
            }
        )
        self.logits.append(self.estimator.logits.tolist())
        self.step = 0
        self.train_loss = 0.0

    def held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.images
        return evaluation_batches(images.train, self.held_out, self.config.batch_size, images.mean, images.std)

    def _batches(self, index: Tensor, order: torch.Generator) -> Batches:
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
        known = {"zero_op": self.space.ZERO_OP, "total_steps": steps}
        try:
            return ESTIMATORS[self.config.estimator](
                self.space.NUM_EDGES, len(self.space.OPS), **{**known, **self.config.estimator_settings}
            )
        except TypeError as error:
            raise ValueError(f"estimator_settings: {error}") from None
