"""Retraining: a cell from scratch, on the whole training set, with NAS-Bench-201's settings, and its test accuracy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from advnas import data, report
from advnas.checkpoint import load, write_atomic
from advnas.config import RetrainConfig, SearchConfig
from advnas.data import Batches, ImageData, evaluation_batches
from advnas.run import new_folder
from advnas.spaces import SPACES
from advnas.training import Training, endless, finite, generators, seeded
from advnas.watch import Watch

CHECKPOINT = Path("checkpoint") / "retrain.pt"
RESULT = "retrain.json"
NOT_DECISIVE = ("data_dir", "out")
SHOWN = {"train_loss": ".3f", "train_accuracy": ".1%"}


def retrain(state: RetrainState, watch: Watch) -> None:
    """Train from wherever ``state`` is to its end.

    Raises:
        FloatingPointError: the loss is not finite.
        advnas.watch.Interrupted: someone asked to stop; the state is saved.
    """
    state.network.train()
    while state.epoch < state.config.epochs:
        while state.step < state.steps_per_epoch:
            x, y = next(state.batches)
            output = state.network(x)
            loss = cross_entropy(output, y)
            state.loss += finite("loss", loss) * len(y)
            state.correct += int((output.argmax(1) == y).sum())
            state.count += len(y)
            loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.schedule.step()
            state.step += 1
            state.work += 1
            watch.after_step()
        state.finish_epoch()
        watch.after_epoch()


@torch.no_grad()
def test(state: RetrainState) -> tuple[int, int]:
    """Correct answers on the test set, and how many there are."""
    images = state.images
    everything = torch.arange(len(images.test))
    state.network.eval()
    correct = 0
    for x, y in evaluation_batches(images.test, everything, state.config.batch_size, images.mean, images.std):
        correct += int((state.network(x).argmax(1) == y).sum())
    return correct, len(everything)


class RetrainState(Training):
    """Everything that a retraining changes as it goes.

    Raises:
        ValueError: ``config.arch`` is not a cell of the space.
    """

    kind = "retrain"
    parts = ("network", "optimizer", "schedule", "source")
    values = (*Training.values, "loss", "correct", "count")

    def __init__(self, config: RetrainConfig, images: ImageData) -> None:
        space = SPACES[config.space]
        init, order = generators(config.seed, 2)
        self.config = config
        self.images = images
        everything = torch.arange(len(images.train))
        self.source = Batches(
            images.train,
            everything,
            config.batch_size,
            generator=order,
            augment=images.augment,
            mean=images.mean,
            std=images.std,
        )
        self.batches = endless(self.source)
        self.steps_per_epoch = len(self.source)
        super().__init__(total_work=config.epochs * self.steps_per_epoch)
        self.network = seeded(
            init,
            lambda: space.FixedNetwork(
                config.arch, config.channels, config.cells, images.in_channels, len(images.classes)
            ),
        )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.total_work)
        self.loss, self.correct, self.count = 0.0, 0, 0

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.step = 0
        self.history.append(
            {
                "epoch": self.epoch,
                "seconds": round(self.seconds, 3),
                "train_loss": self.loss / self.count,
                "train_accuracy": self.correct / self.count,
            }
        )
        self.loss, self.correct, self.count = 0.0, 0, 0


def result(state: RetrainState) -> dict[str, Any]:
    """What retrain.json holds: test accuracy with its 95% confidence interval, and the cost of the network."""
    config, images = state.config, state.images
    assert config.arch is not None
    correct, count = test(state)
    cost = SPACES[config.space].cost(
        config.arch, config.channels, config.cells, images.image_size, images.in_channels, len(images.classes)
    )
    return {
        **config.to_dict(),
        "test_accuracy": correct / count,
        "test_accuracy_95": list(report.wilson(correct, count)),
        "test_images": count,
        "params": cost.params,
        "flops": cost.flops,
        "seconds": round(state.seconds, 3),
    }


def settings_of(run: Path) -> RetrainConfig:
    """Retraining the cell that a search found, on its data.

    Raises:
        FileNotFoundError: the folder holds no finished search.
        ValueError: its files are damaged.
    """
    try:
        found = json.loads((run / "result.json").read_text())["arch"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{run}: there is no result.json; give the folder of a finished search") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{run / 'result.json'}: not the result of a search; search again") from None
    search = SearchConfig().with_file(run / "config.yaml")
    same = ("space", "data", "data_dir", "threads")
    return RetrainConfig(arch=found, out=run, **{name: getattr(search, name) for name in same})


def start(
    config: RetrainConfig, go_on: bool = False, command: str = "the same command", console: Console | None = None
) -> Path:
    """Train the cell ``config.arch``, write retrain.json and return the folder that holds it.

    Args:
        config: its ``out`` may be the folder of the search.
        go_on: whether to go on with a retraining that was interrupted.
        command: the command that goes on, for messages.

    Raises:
        ValueError: there is no cell, or the data or the checkpoint is not what it should be.
        FileExistsError: the folder holds a retraining already.
        FileNotFoundError: the data is missing.
        FloatingPointError: the loss is not finite.
        OSError: a file cannot be written.
        advnas.watch.Interrupted: someone asked to stop; the state is saved.
    """
    if config.arch is None:
        raise ValueError(
            'there is no cell to train: give the folder of a finished search, or --arch "|...|+|...|+|...|"'
        )
    torch.set_num_threads(config.threads or torch.get_num_threads())
    config = replace(config, threads=torch.get_num_threads())
    state = RetrainState(config, data.load(config.data, config.data_dir))
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_DECISIVE}
    folder = config.out or new_folder(None, f"{Path(config.data).name}-retrain-seed{config.seed}")
    file = folder / CHECKPOINT
    if go_on:
        state.load_state_dict(load(file, state.kind, settings))
    elif file.exists() or (folder / RESULT).exists():
        raise FileExistsError(f"{folder}: holds a retraining already; choose another --out, or go on with: {command}")
    file.parent.mkdir(parents=True, exist_ok=True)
    progress = report.Progress("retraining", config.epochs, SHOWN, console or Console())
    with Watch(state, progress, file, settings, command) as watch:
        retrain(state, watch)
        write_atomic(folder / RESULT, json.dumps(result(state), indent=2) + "\n")
    return folder
