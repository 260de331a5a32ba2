"""A search as people start it: its run folder, its files, how it goes on."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from advnas import data, report
from advnas.checkpoint import load, write_atomic
from advnas.config import SearchConfig
from advnas.draw import cell_svg
from advnas.judge import Judging, judge
from advnas.search import SearchState, search
from advnas.spaces import SPACES
from advnas.tables.nasbench201 import Table
from advnas.watch import Watch

CHECKPOINT = Path("checkpoint") / "search.pt"
JUDGED = CHECKPOINT.with_name("judge.pt")
SHOWN = {"train_loss": ".3f", "valid_loss": ".3f", "valid_accuracy": ".1%", "entropy": ".3f", "cifar10_test_200": ".2f"}
# Where files lie and what else is written does not change what the search does.
NOT_DECISIVE = ("data_dir", "table", "tensorboard", "out")
# What a search may have otherwise than the one whose warm-up it takes over.
NOT_OF_WARM_UP = (
    "epochs",
    "estimator",
    "estimator_settings",
    "warm_start",
    "valid_batches",
    "judge_cells",
    "judge_steps",
)


def start(config: SearchConfig, console: Console | None = None) -> Path:
    """Search in a new run folder, and return it.

    Raises:
        ValueError, FileNotFoundError: the data, the table or an estimator's setting is not what it should be.
        FileExistsError: ``config.out`` is not empty.
        FloatingPointError: a loss or a gradient is not finite.
        OSError: a file cannot be written.
        advnas.watch.Interrupted: someone asked to stop; the state is saved.
    """
    state, table = _prepare(config)
    if config.warm_start is not None:
        state.warm_start(_warm_up(state, config.warm_start))
    folder = new_folder(config.out, f"{Path(config.data).name}-{config.estimator}-seed{config.seed}")
    (folder / CHECKPOINT).parent.mkdir()
    write_atomic(folder / "config.yaml", state.config.to_yaml())
    split = io.BytesIO()
    np.savez(split, weights=state.weight_index.numpy(), architecture=state.arch_index.numpy())
    write_atomic(folder / "split.npz", split.getvalue())
    return _go(state, table, folder, console or Console())


def resume(folder: Path, console: Console | None = None) -> Path:
    """Go on with an interrupted search as if it had not stopped.

    Raises:
        FileNotFoundError: the folder holds no search.
        ValueError: its checkpoint is damaged or does not fit its settings or its data.
        Otherwise as :func:`start`.
    """
    state, table = restore(folder)
    return _go(state, table, folder, console or Console())


def restore(folder: Path, with_table: bool = True) -> tuple[SearchState, Table | None]:
    """The state that the checkpoint of a run folder holds, and its table if that is wanted; raises as :func:`resume`."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder}: not the folder of a search, there is no config.yaml in it")
    config = SearchConfig().with_file(folder / "config.yaml")
    state, table = _prepare(config if with_table else replace(config, table=None))
    state.load_state_dict(load(folder / CHECKPOINT, state.kind, _decisive(state)))
    return state, table


def new_folder(out: Path | None, name: str) -> Path:
    """Make an empty folder: ``out``, or else the first of runs/NAME, runs/NAME-2, ... that is free.

    Raises:
        FileExistsError: ``out`` is there and not empty, or is a file.
    """
    if out is not None:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            remedy = f", or go on with: advnas search --resume {out}" if (out / CHECKPOINT).exists() else ""
            raise FileExistsError(f"{out}: exists and is not an empty folder; choose another --out{remedy}")
        out.mkdir(parents=True, exist_ok=True)
        return out
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folder = next(path for path in map(Path("runs").joinpath, names) if not path.exists())
    folder.mkdir(parents=True)
    return folder


def _prepare(config: SearchConfig) -> tuple[SearchState, Table | None]:
    torch.set_num_threads(config.threads or torch.get_num_threads())
    images = data.load(config.data, config.data_dir)
    table = None if config.table is None else Table.load(config.table)
    space = SPACES[config.space]
    if table is not None and len(table.rows) < len(space.OPS) ** space.NUM_EDGES:
        raise ValueError(
            f"{config.table}: must hold every cell of the space, got {len(table.rows)}; it may be truncated"
        )
    return SearchState(replace(config, threads=torch.get_num_threads()), images), table


def _warm_up(state: SearchState, folder: Path) -> dict[str, Any]:
    """The state at the end of the warm-up in another run folder."""
    own = {k: v for k, v in _decisive(state).items() if k not in NOT_OF_WARM_UP and not k.startswith("arch_")}
    found = load(folder / CHECKPOINT, state.kind, own, only=own)
    if found["values"]["epoch"] != state.config.warmup_epochs or found["values"]["step"] != 0:
        raise ValueError(
            f"warm_start: {folder} must have stopped after {state.config.warmup_epochs} epochs of warm-up, got "
            f"{found['values']['epoch']}; run it with --epochs {state.config.warmup_epochs}"
        )
    return found


def _decisive(state: SearchState) -> dict[str, Any]:
    settings = {name: value for name, value in state.config.to_dict().items() if name not in NOT_DECISIVE}
    return {**settings, "images": len(state.images.train), "classes": list(state.images.classes)}


def _go(state: SearchState, table: Table | None, folder: Path, console: Console) -> Path:
    if state.config.warmup_epochs >= state.config.epochs:
        console.print("note: every epoch is a warm-up epoch, so that the logits stay at 0 and no cell is found")
    files = Files(state, table, folder)
    progress = report.Progress("searching", state.config.epochs, SHOWN, console)
    go_on = f"advnas search --resume {shlex.quote(str(folder))}"
    with Watch(state, progress, folder / CHECKPOINT, _decisive(state), go_on, files.write_history) as watch:
        search(state, watch)
    if not state.config.judge_cells:
        files.write_result(state.history[-1]["arch"], state.history[-1]["seconds"])
        return folder

    judging, file = Judging(state), folder / JUDGED
    if file.exists():
        judging.load_state_dict(load(file, judging.kind, _decisive(state)))
    console.print(f"comparing the best cell with the {len(judging.archs) - 1} that differ from it on one edge")
    progress = report.Progress("comparing", judging.rounds, SHOWN, console)
    with Watch(judging, progress, file, _decisive(state), go_on, lambda: files.write_judged(judging)) as watch:
        judge(judging, watch)
    files.write_result(judging.archs[judging.left[0]], state.history[-1]["seconds"] + judging.seconds)
    return folder


class Files:
    """What a search leaves in its folder, rewritten whole each time: a few kilobytes."""

    def __init__(self, state: SearchState, table: Table | None, folder: Path) -> None:
        self.state = state
        self.table = table
        self.folder = folder

    def rows(self) -> list[dict[str, Any]]:
        """The history, and what the table says of each epoch's best cell. The search itself never sees the table."""
        return self._looked_up(self.state.history)

    def names(self) -> tuple[list[str], list[str]]:
        """Of the edges and of the operations."""
        return [f"{target}<-{source}" for target, source in self.state.space.EDGES], list(self.state.ops)

    def write_history(self) -> Mapping[str, Any]:
        """Write history.csv and logits.csv; the last row."""
        rows = self.rows()
        write_csv(self.folder / "history.csv", rows)
        edges, ops = self.names()
        write_csv(
            self.folder / "logits.csv",
            [
                {"epoch": epoch, "edge": edges[edge], "op": ops[op], "logit": value}
                for epoch, logits in enumerate(self.state.logits)
                for edge, row in enumerate(logits)
                for op, value in enumerate(row)
            ],
        )
        if self.state.config.tensorboard:
            self.write_events(rows[-1])
        return rows[-1]

    def write_events(self, row: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder / "tensorboard")) as writer:
            for name, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, row["epoch"])

    def write_judged(self, judging: Judging) -> Mapping[str, Any]:
        """Write judged.csv, a row for each comparison; the last row."""
        rows = self._looked_up(judging.history)
        write_csv(self.folder / "judged.csv", rows)
        return rows[-1]

    def _looked_up(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        look_up = self.table.lookup if self.table is not None else lambda arch: {}
        return [{**row, **look_up(row["arch"])} for row in history]

    def write_result(self, arch: str, seconds: float) -> None:
        """Write result.json and the figures."""
        state, rows = self.state, self.rows()
        result = {
            "arch": arch,
            "estimator": state.config.estimator,
            "seed": state.config.seed,
            "seconds": round(seconds, 3),
            "steps": state.config.epochs * state.steps_per_epoch,
            "table": None if self.table is None else self.table.lookup(arch),
        }
        write_atomic(self.folder / "cell.svg", cell_svg(arch))
        write_atomic(self.folder / "curves.png", report.curves(rows, state.logits, *self.names()))
        write_atomic(self.folder / "result.json", json.dumps(result, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
