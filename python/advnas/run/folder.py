"""The folder of a run: which files it has and what they hold. Whoever looks at a run reads them, never its live state."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from torch import Tensor

from advnas.checkpoint import load, save, write_atomic, write_json
from advnas.config import SearchConfig, Settings
from advnas.files import at_home
from advnas.report.numbers import number
from advnas.tasks import TASKS, Task

if TYPE_CHECKING:
    from advnas.training import Training

History = Sequence[Mapping[str, Any]]
# Where files lie, where it runs and what else is written does not change what a run does; the task has a fingerprint of the data.
NOT_DECISIVE = ("data", "data_dir", "table", "tensorboard", "out", "device")
CHECKPOINTS = "checkpoint"


@dataclass(frozen=True)
class Logits:
    """The logits of a search at its start and after every epoch.

    Attributes:
        edges, ops: their names.
        values: [epochs + 1][num_edges][num_ops].
    """

    edges: Sequence[str]
    ops: Sequence[str]
    values: Sequence[Sequence[Sequence[float]]]


def decisive(config: Settings, task: Task) -> dict[str, Any]:
    """What a checkpoint depends on."""
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_DECISIVE}
    return {**settings, **task.facts()}


class RunFolder:
    """A folder that holds a search, a retraining, or both.

    Files are rewritten whole each time: a few kilobytes, and at any time whole or not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = at_home(path)

    @classmethod
    def new(cls, out: Path | None, name: str) -> RunFolder:
        """Make an empty folder: ``out``, or else the first of runs/NAME, runs/NAME-2, ... that is free.

        Raises:
            FileExistsError: ``out`` is there and not empty, or is a file.
        """
        if out is not None:
            folder = cls(out)
            if folder.path.is_file() or (folder.path.is_dir() and any(folder.path.iterdir())):
                is_search = folder.checkpoint("search").exists()
                remedy = f", or go on with: advnas search --resume {shlex.quote(str(out))}" if is_search else ""
                raise FileExistsError(f"{out}: exists and is not an empty folder; choose another --out{remedy}")
        else:
            folder = cls(first_free(Path("runs") / name))
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def of(cls, path: Path) -> RunFolder:
        """The folder of a search, given itself or the checkpoint in it.

        Raises:
            ValueError: ``path`` is another file.
        """
        path = at_home(path)
        if not path.is_file():
            return cls(path)
        folder = cls(path.absolute().parent.parent)
        if path.absolute() != folder.checkpoint("search"):
            inside = Path(CHECKPOINTS) / "search.pt"
            raise ValueError(f"{path}: must be the run folder of a search or the {inside} in one")
        return folder

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    # --------------------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, kind: str) -> Path:
        """Of a search, its halving, or a retraining."""
        return self.path / CHECKPOINTS / f"{kind}.pt"

    def save(self, state: Training, settings: Mapping[str, Any]) -> None:
        file = self.checkpoint(state.kind)
        file.parent.mkdir(exist_ok=True)
        save(file, state.kind, settings, state.state_dict())

    def load(self, kind: str, settings: Mapping[str, Any], only: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The state of a checkpoint; raises as :func:`advnas.checkpoint.load`."""
        return load(self.checkpoint(kind), kind, settings, only)

    # ------------------------------------------------------------------------------------------------------ a search

    def config(self) -> SearchConfig:
        """The settings of the search.

        Raises:
            FileNotFoundError: the folder holds no search.
            ValueError: the file is damaged.
        """
        file = self / "config.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path}: not the folder of a search, there is no config.yaml in it")
        return TASKS[task_named_in(file) or "image"].search_defaults().with_file(file)

    def write_config(self, config: SearchConfig, split: Mapping[str, Tensor]) -> None:
        """Write config.yaml and, where the data was split at random, split.npz."""
        write_atomic(self / "config.yaml", config.to_yaml())
        if split:
            file = io.BytesIO()
            np.savez(file, **{name: index.numpy() for name, index in split.items()})  # type: ignore[arg-type]
            write_atomic(self / "split.npz", file.getvalue())

    def history(self) -> History:
        """Rows of history.csv, numbers as numbers."""
        return read_csv(self / "history.csv")

    def write_history(self, rows: History) -> None:
        write_csv(self / "history.csv", rows)

    def logits(self) -> Logits:
        """What logits.csv holds."""
        rows = read_csv(self / "logits.csv")
        edges, ops = (list(dict.fromkeys(row[name] for row in rows)) for name in ("edge", "op"))
        flat = iter([row["logit"] for row in rows])
        epochs = len(rows) // (len(edges) * len(ops))
        return Logits(edges, ops, [[[next(flat) for _ in ops] for _ in edges] for _ in range(epochs)])

    def write_logits(self, logits: Logits) -> None:
        rows = [
            {"epoch": epoch, "edge": logits.edges[edge], "op": logits.ops[op], "logit": value}
            for epoch, values in enumerate(logits.values)
            for edge, row in enumerate(values)
            for op, value in enumerate(row)
        ]
        write_csv(self / "logits.csv", rows)

    def write_halving(self, rows: History) -> None:
        """Write halving.csv, a row for each comparison."""
        write_csv(self / "halving.csv", rows)

    def front(self) -> History:
        """Rows of front.csv, numbers as numbers."""
        return read_csv(self / "front.csv")

    def write_front(self, rows: History) -> None:
        """Write front.csv, a row for each limit."""
        write_csv(self / "front.csv", rows)

    def result(self) -> dict[str, Any]:
        """What result.json holds.

        Raises:
            FileNotFoundError: the folder holds no finished search.
            ValueError: the file is damaged.
        """
        try:
            result = json.loads((self / "result.json").read_text("utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.path}: there is no result.json; give the folder of a finished search"
            ) from None
        except ValueError:
            result = None
        if not isinstance(result, dict) or not isinstance(result.get("arch"), str):
            raise ValueError(f"{self / 'result.json'}: not the result of a search; search again")
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self / "result.json", result)

    def write_figure(self, name: str, content: bytes | str) -> None:
        write_atomic(self / name, content)

    @contextlib.contextmanager
    def events(self, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A function that adds a row of the history to an event file of TensorBoard's; where none is wanted it does nothing."""
        if not wanted:
            yield lambda row: None
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self / "tensorboard")) as writer:

            def add(row: Mapping[str, Any]) -> None:
                for name, value in row.items():
                    if isinstance(value, float):
                        writer.add_scalar(name, value, row["epoch"])
                writer.flush()

            yield add

    # -------------------------------------------------------------------------------------------------- a retraining

    def has_retraining(self) -> bool:
        return self.checkpoint("retrain").exists() or (self / "retrain.json").exists()

    def retrained(self) -> dict[str, Any]:
        """What retrain.json holds."""
        return json.loads((self / "retrain.json").read_text("utf-8"))

    def write_retrained(self, history: History, result: Mapping[str, Any]) -> None:
        """Write retrain.csv and retrain.json."""
        write_csv(self / "retrain.csv", history)
        write_json(self / "retrain.json", result)


def first_free(wanted: Path) -> Path:
    """Make the first folder PATH, PATH-2, PATH-3, ... that nobody else has made, others that start at once included."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    paths = numbered(wanted)
    while True:
        path = next(paths)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def numbered(wanted: Path) -> Iterator[Path]:
    """PATH, PATH-2, PATH-3, ..."""
    yield wanted
    for count in itertools.count(2):
        yield wanted.with_name(f"{wanted.name}-{count}")


def task_named_in(file: Path) -> str | None:
    """The task that a YAML file of settings names, if it is such a file and names one."""
    try:
        settings = yaml.safe_load(at_home(file).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # whoever reads the settings says what is wrong
    task = settings.get("task") if isinstance(settings, dict) else None
    return task if isinstance(task, str) and task in TASKS else None


def write_csv(path: Path, rows: History) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, with integers and other numbers as such."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: number(value) for name, value in row.items()} for row in csv.DictReader(file)]
