"""Retraining: a cell from scratch on the whole training set, by its task's recipe."""

from __future__ import annotations

from advnas.config import RetrainConfig
from advnas.run.watch import Watch
from advnas.tasks.base import Scores, Task
from advnas.training import Training, check_finite, endless, generators, seeded


def retrain(task: Task, state: RetrainState, watch: Watch) -> None:
    """Train from wherever ``state`` is to its end.

    Raises:
        FloatingPointError: the loss is not finite.
        advnas.run.watch.Interrupted: someone asked to stop; the state is saved.
    """
    while state.epoch < state.config.epochs:
        state.network.train()
        while state.step < state.steps_per_epoch:
            score = task.score(state.network, next(state.batches), None)
            check_finite("loss", score.loss)
            state.scores.add(score)
            state.scaler.scale(score.loss).backward()
            state.recipe.step(state.scaler)
            state.step += 1
            state.work += 1
            watch.after_step()
        with state.recipe.evaluating():
            valid = task.validate(state.network)
        state.finish_epoch(task.metrics(state.scores), valid)
        watch.after_epoch()


class RetrainState(Training):
    """Everything that a retraining changes as it goes.

    Raises:
        ValueError: ``config.arch`` is not a cell of the space.
    """

    kind = "retrain"
    parts = ("network", "recipe", "scaler", "stream", "scores")

    def __init__(self, config: RetrainConfig, task: Task) -> None:
        assert config.arch is not None
        init, order = generators(config.seed, 2)
        arch = config.arch
        self.config = config
        self.shown = task.shown
        self.stream = task.training(order)
        self.batches = endless(self.stream)
        self.steps_per_epoch = len(self.stream)
        super().__init__(total_work=config.epochs * self.steps_per_epoch)
        self.network = task.placement.place(seeded(init, lambda: task.network(arch)))
        self.recipe = task.recipe(self.network, self.total_work)
        self.scaler = task.placement.scaler()
        self.scores = Scores()

    def finish_epoch(self, train: dict[str, float], valid: dict[str, float]) -> None:
        check_finite("loss", train["loss"])
        self.epoch += 1
        self.step = 0
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                **{f"train_{name}": train[name] for name in self.shown},
                **{f"valid_{name}": valid[name] for name in self.shown if name in valid},
            }
        )
        self.recipe.after_epoch(valid)
        self.scores = Scores()
