"""A retraining as people start it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from advnas.config import RetrainConfig
from advnas.report.console import Progress
from advnas.retrain import RetrainState, retrain
from advnas.run.folder import RunFolder, decisive
from advnas.run.watch import Watch
from advnas.tasks import TASKS, Task, task_of


def settings_of(path: Path) -> RetrainConfig:
    """Retraining the cell that a search found, on its data.

    Raises:
        FileNotFoundError: the folder holds no finished search.
        ValueError: its files are damaged.
    """
    folder = RunFolder(path)
    arch, search = folder.result()["arch"], folder.config()
    same = ("space", "data", "data_dir", "threads")
    kind = TASKS[search.task].retrain_config
    return kind(arch=arch, out=path, **{name: getattr(search, name) for name in same})


def restore(path: Path) -> tuple[Task, RetrainState]:
    """A retraining as its checkpoint has it: for a finished one, the trained network.

    Raises:
        FileNotFoundError, ValueError: the folder holds no finished retraining, or its data or its checkpoint is not what it was.
    """
    folder = RunFolder(path)
    result = folder.retrained()
    defaults = TASKS[result["task"]].retrain_defaults()
    config = defaults.with_settings({name: result[name] for name in defaults.names()}, str(path))
    task = task_of(config)
    state = RetrainState(config, task)
    state.load_state_dict(folder.load(state.kind, decisive(config, task)))
    return task, state


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
        advnas.run.watch.Interrupted: someone asked to stop; the state is saved.
    """
    if config.arch is None:
        raise ValueError(
            'there is no cell to train: give the folder of a finished search, or --arch "|...|+|...|+|...|"'
        )
    return train(task_of(config), config, go_on, command, console)


def train(
    task: Task,
    config: RetrainConfig,
    go_on: bool = False,
    command: str = "the same command",
    console: Console | None = None,
) -> Path:
    """:func:`start` with a task at hand, such as one of your own."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    config = replace(config, threads=torch.get_num_threads(), device=str(task.placement.device))
    state = RetrainState(config, task)
    settings = decisive(config, task)
    name = f"{Path(config.data).name}-retrain-seed{config.seed}"
    if go_on and config.out is None:
        raise ValueError("resume: needs the folder of the retraining that was interrupted; add --out FOLDER")
    folder = RunFolder(config.out) if config.out else RunFolder.new(None, name)
    if config.out is None:
        command = f"{command} --out {shlex.quote(str(folder.path))}"
    if go_on:
        state.load_state_dict(folder.load(state.kind, settings))
    elif folder.has_retraining():
        raise FileExistsError(
            f"{folder.path}: holds a retraining already; choose another --out, or go on with: {command}"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    columns = {f"{part}_{metric}": form for part in ("train", "valid") for metric, form in task.shown.items()}
    progress = Progress("retraining", config.epochs, columns, console or Console())
    with Watch(state, progress, folder, settings, command) as watch:
        retrain(task, state, watch)
        with state.recipe.evaluating():
            tested = task.test(state.network)
        result = {**config.to_dict(), **tested, "seconds": round(state.seconds, 3)}
        folder.write_retrained(state.history, result)
    return folder.path
