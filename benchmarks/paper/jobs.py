"""What experiments of many runs share: each run is a process and a folder, those that are done are not done again, an interrupted
one goes on; and every estimator searches for the same time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from advnas.checkpoint import write_atomic, write_json
from advnas.config import SearchConfig, Settings
from advnas.report.console import Rounds, console
from advnas.run.folder import RunFolder
from advnas.run.watch import Interrupted
from advnas.search import architecture_step, weight_step
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.state import SearchState
from advnas.tables import Table
from advnas.tasks.image import ImageSearchConfig, ImageTask
from benchmarks.steps.sides import host_clock

# Of estimators, as the paper's code has them.
SETTINGS: Mapping[str, Mapping[str, str]] = {"gdas": {"unpicked": "sum"}}
MOVABLE = ("data_dir", "table", "latencies", "out")  # settings that say where something lies


@dataclass(frozen=True)
class Job:
    """A run folder, the command of advnas that makes it, and the file that says that it is done."""

    folder: Path
    command: tuple[str, ...]
    done: str = "result.json"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @classmethod
    def search(cls, folder: Path, *flags: str) -> Job:
        """A search with ``flags``, or what is left of it."""
        going_on = RunFolder(folder).checkpoint("search").exists()
        return cls(
            folder, ("search", "--resume", str(folder)) if going_on else ("search", *flags, "--out", str(folder))
        )

    def start(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.log").open("a") as log:
            command = [sys.executable, "-m", "advnas", *self.command]
            subprocess.run(command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


class WarmStarted:
    """Searches of one recipe that go on from a warm-up for each seed, as if it had been their own; random search but for the cells
    that it draws in one.

    Args:
        out: folder of the runs; gets recipe.yaml.
    """

    def __init__(self, out: Path, recipe: SearchConfig) -> None:
        self.out, self.recipe = out, recipe
        keep(out / "recipe.yaml", recipe)

    def warm_up(self, seed: int) -> Job:
        folder = self.out / f"seed-{seed}" / "warm-up"
        return Job.search(folder, *self._flags(seed, self.recipe.warmup_epochs))

    def search(self, seed: int, name: str, folder: str, epochs: int, *flags: str) -> Job:
        """That of an estimator, given by its name, in a folder of the seed's."""
        flags = (*self._flags(seed, epochs), "--estimator", name, *flags)
        flags += ("--warm-start", str(self.warm_up(seed).folder))
        for setting, value in SETTINGS.get(name, {}).items():
            flags += ("--estimator-settings", setting, value)
        return Job.search(self.out / f"seed-{seed}" / folder, *flags)

    def _flags(self, seed: int, epochs: int) -> tuple[str, ...]:
        return "--config", str(self.out / "recipe.yaml"), "--seed", str(seed), "--epochs", str(epochs)


def run(label: str, jobs: Sequence[Job], workers: int) -> None:
    """Do what of these is not done."""
    left = [job for job in jobs if not (job.folder / job.done).exists()]
    with Rounds(label, len(left), console()) as rounds, ThreadPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(Job.start, left):
                rounds.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def fast_recipe(settings: Any, **own: Any) -> ImageSearchConfig:
    """``--preset fast`` on an experiment's data, with the settings that are its own and those of its ``--set``."""
    preset = ImageSearchConfig().with_settings(ImageTask.presets["fast"], "preset fast")
    data = {"data": settings.data, "data_dir": settings.data_dir}
    return preset.with_settings({**data, **own, **parsed(settings.set)}, "recipe")


def keep(file: Path, recipe: Settings) -> None:
    """Write the settings of an experiment's runs beside them.

    Raises:
        ValueError: the runs there have others.
    """
    text = recipe.to_yaml()
    if file.exists():
        before, now = yaml.safe_load(file.read_text("utf-8")), yaml.safe_load(text)
        differing = [name for name in now if name not in MOVABLE and before.get(name) != now[name]]
        if differing:
            raise ValueError(f"{file}: the runs beside it have another {', '.join(differing)}; choose another --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)


def referee(path: Path, *columns: str) -> Table:
    """A table of all cells of NAS-Bench-201.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or lacks a cell or one of the columns besides the accuracy on CIFAR-10.
    """
    table = Table.load_whole(path, NASBENCH201)
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(f"{path}: must have a column {missing[0]}, got {', '.join(table.columns)}")
    return table


def parsed(settings: Mapping[str, str]) -> dict[str, Any]:
    """Values of the command line as YAML has them."""
    return {name: yaml.safe_load(value) for name, value in settings.items()}


def step_seconds(searches: Mapping[str, tuple[Any, SearchState]], pairs: int) -> dict[str, float]:
    """Seconds of a weight step and, where the method learns, an architecture step: medians of steps taken in turns.

    Args:
        searches: task and state of each.
    """

    def both(task: Any, state: SearchState) -> None:
        weight_step(task, state)
        if state.learns:
            architecture_step(task, state)

    took: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(pairs):
        for name, search in searches.items():
            took[name].append(host_clock(lambda: both(*search)))  # noqa: B023
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def equal_time(
    file: Path, recipe: Any, reference: str, names: Iterable[str], measure: Callable[[], dict[str, float]]
) -> dict[str, int]:
    """Epochs of each estimator, so that all learn for as long as ``reference`` does; measured once and kept in ``file``.

    Raises:
        ValueError: it was measured for other names, or for another reference.
    """
    if not file.exists():
        cost = measure()
        learning = recipe.epochs - recipe.warmup_epochs
        epochs = {
            name: recipe.warmup_epochs + max(1, round(learning * cost[reference] / took)) for name, took in cost.items()
        }
        write_json(file, {"reference": reference, "seconds_per_step": cost, "epochs": epochs})
    measured = json.loads(file.read_text())
    epochs = measured["epochs"]
    if (of := measured.get("reference", reference)) != reference:
        raise ValueError(f"{file}: the time is that of {of}, not of {reference}; choose another --out")
    if missing := [name for name in names if name not in epochs]:
        raise ValueError(f"{file}: was measured without {', '.join(missing)}; choose another --out")
    return epochs


def require_names(setting: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Before anything runs: raises ValueError where a name is unknown."""
    if unknown := [name for name in given if name not in set(known)]:
        raise ValueError(f"{setting}: must be among {', '.join(known)}, got {unknown[0]}")


def main(name: str, description: str | None, settings: type, go: Callable[[Any], None]) -> None:
    """An experiment as a command: what is wrong in one line."""
    try:
        go(tyro.cli(settings, description=description))
    except (ValueError, OSError, FloatingPointError, Interrupted) as error:
        sys.exit(f"{name}: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{name}: a run failed; see the .log beside its folder: {' '.join(error.cmd)}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped; the same command goes on")
