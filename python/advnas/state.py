"""Everything that a search changes as it goes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from advnas.config import SearchConfig
from advnas.limits import Limit
from advnas.tasks.base import Scores, Task
from advnas.training import Training, check_finite, endless, generators, seeded
from advnas_ext import ESTIMATORS, Estimator, Path

DRAWN = 10  # cells that a search without learning measures after an epoch
TRIES = 50  # for each of them, where there is a limit
LEAST_LOG = -1e4  # stands for the logarithm of 0


class SearchState(Training):
    """Made from the settings and the task of a search, and the limit on what cells may cost, if there is one.

    Raises:
        ValueError: ``config.estimator_settings`` are not settings of the estimator.
    """

    kind = "search"
    parts = (
        "network",
        "estimator",
        "weight_optimizer",
        "arch_optimizer",
        "schedule",
        "arch_schedule",
        "scaler",
        "weight_stream",
        "arch_stream",
        "scores",
    )
    values = (*Training.values, "logits", "best", "path_generator")

    def __init__(self, config: SearchConfig, task: Task, limit: Limit | None = None) -> None:
        self.limit = limit
        self.arch = task.arch
        self.config = config
        self.space, self.ops, self.shown = task.space, task.ops, task.shown
        zero = self.space.zero_op
        self.zero_op = self.ops.index(zero) if zero in self.ops else None
        init, self.path_generator, weight_order, arch_order, held_out_order, noise = generators(config.seed, 6)

        self.weight_stream, self.arch_stream = task.weight_stream(weight_order), task.arch_stream(arch_order)
        self.weight_batches, self.arch_batches = endless(self.weight_stream), endless(self.arch_stream)
        self.held_out = task.held_out(held_out_order)

        estimator = ESTIMATORS[config.estimator]
        self.steps_per_epoch = config.steps_per_epoch or len(self.weight_stream)
        steps = config.epochs * self.steps_per_epoch
        warmup_steps = min(config.warmup_epochs, config.epochs) * self.steps_per_epoch
        logit_steps = steps - warmup_steps if estimator.learns else 0
        super().__init__(total_work=steps + logit_steps)

        self.network = task.placement.place(seeded(init, task.supernet))
        self.weights = list(self.network.parameters())
        self.weight_optimizer = sgd(self.weights, config)
        planned = (config.schedule_epochs or config.epochs) * self.steps_per_epoch
        planned_logits = max(planned - warmup_steps, 0) if estimator.learns else 0
        self.schedule = constant_then_cosine(self.weight_optimizer, warmup_steps, planned, config.lr_min / config.lr)
        self.scaler = task.placement.scaler()
        self.estimator = self._estimator(estimator, planned_logits)
        self.estimator.logits.data.normal_(0, config.arch_init, generator=noise)
        self.keep_within_limit()
        self.arch_optimizer = torch.optim.Adam(
            [self.estimator.logits], config.arch_lr, config.arch_betas, weight_decay=config.arch_weight_decay
        )
        arch_lr_min = config.arch_lr if config.arch_lr_min is None else config.arch_lr_min
        self.arch_schedule = constant_then_cosine(self.arch_optimizer, 0, planned_logits, arch_lr_min / config.arch_lr)
        self.scores = Scores()  # of the weight steps of the current epoch
        self.best: list[Tensor] = []  # the best cell after the last epoch, int64 [num_edges]
        self.logits = [self.estimator.logits.tolist()]  # [num_edges, num_ops] at the start and after every epoch

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Of versions whose logits had one rate throughout.
        rates = {"arch_schedule": self.arch_schedule.state_dict()}
        super().load_state_dict({**state, "parts": {**rates, **state["parts"]}})

    def warm_start(self, state: dict[str, Any]) -> None:
        """Take over the warm-up of another search, given by its ``state_dict()``: all but what is learned about the logits."""
        logits = self.logits
        own = {name: getattr(self, name).state_dict() for name in ("estimator", "arch_optimizer", "arch_schedule")}
        self.load_state_dict({**state, "parts": {**state["parts"], **own}})
        self.logits = [logits[0]] * len(self.logits)

    @property
    def warming_up(self) -> bool:
        return self.epoch < self.config.warmup_epochs

    @property
    def learns(self) -> bool:
        """Whether the logits take steps now."""
        return not self.warming_up and self.estimator.learns

    def draw_path(self) -> Path:
        """From the estimator's distribution; in the warm-up uniformly."""
        if not self.warming_up:
            return self.estimator.sample(self.path_generator)
        return Path.from_ops(self.uniform_ops())

    def uniform_ops(self) -> Tensor:
        return torch.randint(len(self.ops), (self.space.num_edges,), generator=self.path_generator)

    def candidates(self) -> list[Tensor]:
        """Cells among which the best one is: the estimator's, or where it learns nothing the last best one and new ones."""
        if not self.estimator.learns:
            return [*self.best, *self._drawn()]
        if self.limit is None:
            return [self.space.derive(self.estimator, self.zero_op)]
        return list(self.limit.best(self.estimator.probabilities().double().log().clamp(min=LEAST_LOG)))

    def keep_within_limit(self) -> None:
        """What an architecture step does to the logits where there is a limit, after the optimizer."""
        if self.limit is not None and self.estimator.learns:
            self.limit.budget.project(self.estimator)

    def _drawn(self) -> list[Tensor]:
        """Cells within the limit, the cheapest one among them where it is tight."""
        if self.limit is None:
            paths = [self.uniform_ops() for _ in range(DRAWN)]
            return [self.space.completed(path, len(self.ops), self.zero_op, self.path_generator) for path in paths]
        drawn = torch.stack([self.uniform_ops() for _ in range(TRIES * DRAWN)])
        within = drawn[self.limit.allows(drawn)][:DRAWN]
        return list(within) if len(within) else list(self.limit.best(-self.limit.costs.path.costs))

    def finish_epoch(self, ops: Tensor, metrics: dict[str, float]) -> None:
        train_loss = self.scores.means()["loss"]
        check_finite("training loss", train_loss)
        self.epoch += 1
        self.best = [ops]
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                "train_loss": train_loss,
                **{f"valid_{name}": metrics[name] for name in self.shown},
                "entropy": self.estimator.entropy(),
                "arch": self.arch(ops),
            }
        )
        self.logits.append(self.estimator.logits.tolist())
        self.step = 0
        self.scores = Scores()

    def _estimator(self, kind: type[Estimator], steps: int) -> Estimator:
        settings = self.config.estimator_settings
        accepted = inspect.signature(kind).parameters.keys() - {"num_edges", "num_ops", "dtype"}
        if unknown := [name for name in settings if name not in accepted]:
            name, choices = self.config.estimator, ", ".join(sorted(accepted))
            raise ValueError(f"estimator_settings: must be settings of {name}, {choices}, got {unknown[0]!r}")
        known: dict[str, Any] = {"zero_op": self.zero_op, "total_steps": steps}
        try:
            return kind(self.space.num_edges, len(self.ops), **{**known, **settings})
        except TypeError as error:
            raise ValueError(f"estimator_settings: {error}") from None


def sgd(weights: Iterable[nn.Parameter], config: SearchConfig) -> torch.optim.Optimizer:
    """The optimizer of a search's weights."""
    return torch.optim.SGD(
        weights, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )


def constant_then_cosine(
    optimizer: torch.optim.Optimizer, constant: int, steps: int, least: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate stays for ``constant`` steps, then falls along a cosine to ``least`` of it at ``steps``.

    So a warm-up does not depend on what comes after it.
    """

    def factor(step: int) -> float:
        done = min(max(step - constant, 0) / max(steps - constant, 1), 1)
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
