"""A search as people start it: a folder, its files, how it goes on."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from advnas import front
from advnas.config import SearchConfig
from advnas.halving import Contest, Halving, halve
from advnas.limits import limits_of
from advnas.report import front as report
from advnas.report.cell import cell_svg
from advnas.report.console import Progress, Rounds, table
from advnas.report.curves import curves
from advnas.run.folder import Logits, RunFolder, decisive
from advnas.run.watch import Interrupted, Watch
from advnas.search import search
from advnas.state import SearchState
from advnas.tables import Table
from advnas.tasks import Task, task_of

# What a search may have otherwise than the one whose warm-up it takes over.
NOT_OF_WARM_UP = (
    "epochs",
    "schedule_epochs",
    "estimator",
    "estimator_settings",
    "arch_init",
    "arch_lr",
    "arch_lr_min",
    "arch_betas",
    "arch_weight_decay",
    "arch_grad_clip",
    "gate_baseline",
    "warm_start",
    "valid_batches",
    "halving_cells",
    "halving_steps",
    "max_flops",
    "max_params",
    "max_latency",
    "latencies",
    "front",
)


def start(config: SearchConfig, console: Console | None = None) -> Path:
    """Search in a new run folder, and return it.

    Raises:
        ValueError, FileNotFoundError: the data, the table or an estimator's setting is not what it should be.
        FileExistsError: ``config.out`` is not empty.
        FloatingPointError: a loss or a gradient is not finite.
        OSError: a file cannot be written.
        advnas.run.watch.Interrupted: someone asked to stop; the state is saved.
    """
    run = Search(config)
    if config.warm_start is not None:
        run.state.warm_start(run.warm_up(RunFolder(config.warm_start)))
    folder = RunFolder.new(config.out, f"{Path(config.data).name}-{config.estimator}-seed{config.seed}")
    folder.write_config(run.config, run.task.split())
    return run.go(folder, console or Console())


def resume(path: Path, console: Console | None = None, moved: Mapping[str, Any] | None = None) -> Path:
    """Go on with an interrupted search as if it had not stopped.

    Args:
        moved: settings ``data`` and ``data_dir`` where the same data lies elsewhere now, and ``device``; the run folder keeps
            them.

    Raises:
        FileNotFoundError: the folder holds no search.
        ValueError: its checkpoint is damaged or does not fit its settings or its data.
        Otherwise as :func:`start`.
    """
    folder = RunFolder(path)
    run = restore(folder, moved)
    if moved:
        folder.write_config(run.config, {})
    return run.go(folder, console or Console())


def restore(folder: RunFolder, changed: Mapping[str, Any] | None = None) -> Search:
    """The search of a run folder as its checkpoint has it, with settings changed that do not matter to it; raises as
    :func:`resume`."""
    run = Search(folder.config().with_settings(changed or {}, str(folder.path)))
    run.state.load_state_dict(folder.load("search", run.decisive()))
    return run


class Search:
    """The settings of a search with its task, its state and its table.

    Attributes:
        config: with the number of threads and the device filled in.
        table: None where there is none. It is looked up after each epoch, and the search itself never sees it.
    """

    def __init__(self, config: SearchConfig) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.task: Task = task_of(config)
        self.table = None if config.table is None else Table.load_whole(config.table, self.task.space)
        device = str(self.task.placement.device)
        self.config = replace(config, threads=torch.get_num_threads(), device=device)
        if config.halving_cells and not self.task.space.has_every_path:
            raise ValueError(f"halving_cells: {config.space} has no neighbours to compare a cell with; set it to 0")
        self.limits = limits_of(self.config, self.task)
        self.state = SearchState(self.config, self.task, self.limits[0] if len(self.limits) == 1 else None)

    def decisive(self) -> dict[str, Any]:
        """What a checkpoint depends on."""
        settings = decisive(self.config, self.task)
        if self.config.latencies is not None:  # what is in the file, wherever it lies
            settings["latencies"] = hashlib.sha256(self.config.latencies.read_bytes()).hexdigest()
        return settings

    def warm_up(self, folder: RunFolder) -> dict[str, Any]:
        """The state at the end of the warm-up in another run folder."""
        own = {k: v for k, v in self.decisive().items() if k not in NOT_OF_WARM_UP}
        found = folder.load("search", own, only=own)
        epochs, wanted = found["values"]["epoch"], self.config.warmup_epochs
        if epochs != wanted or found["values"]["step"] != 0:
            raise ValueError(
                f"warm_start: {folder.path} must have stopped after {wanted} epochs of warm-up, got {epochs}; run it "
                f"with --epochs {wanted}"
            )
        return found

    def go(self, folder: RunFolder, console: Console) -> Path:
        """From wherever the state is to the end, with all files."""
        arch, seconds = (self._front if len(self.limits) > 1 else self._search)(folder, console)
        self._finish(folder, arch, seconds, console)
        return folder.path

    def _search(self, folder: RunFolder, console: Console) -> tuple[str, float]:
        """The best cell, and the seconds of the search."""
        learnt = self.config.warmup_epochs < self.config.epochs or not self.state.estimator.learns
        if not learnt:
            console.print("note: every epoch is a warm-up epoch, so that the logits stay at 0 and no cell is found")
        progress = Progress("searching", self.config.epochs, self._shown(), console)
        with folder.events(self.config.tensorboard) as add_event:
            record = partial(self._record, folder, add_event)
            with Watch(self.state, progress, folder, self.decisive(), _go_on(folder), record) as watch:
                search(self.task, self.state, watch)
        self._write(folder)  # once more, for a search that ended between a checkpoint and its files
        arch, seconds = self.state.history[-1]["arch"], self.state.history[-1]["seconds"]
        if not self.config.halving_cells or not learnt:
            return arch, seconds
        halving = Halving(self.state, self.task)
        if halving.finished:
            console.print("no neighbour of the best cell is within the limit")
            return arch, seconds
        console.print(f"comparing the best cell with {halving.size - 1} neighbours")
        self._halve(halving, folder, console)
        return halving.found, seconds + halving.seconds

    def _front(self, folder: RunFolder, console: Console) -> tuple[str, float]:
        """A cell for each limit; the one of the largest, and the seconds of the search."""
        folder.save(self.state, self.decisive())  # untrained: what a resumption asks for
        field = front.Field(self.task, self.limits, self.config.seed)
        try:
            with Rounds("looking at networks", len(self.limits) * front.DRAWN, console) as rounds:
                field.look(self.state, rounds.advance)
        except KeyboardInterrupt:  # nothing of it is kept
            raise Interrupted(f"stopped while looking at networks; go on with: {_go_on(folder)}") from None
        pool = front.Pool(self.state, self.task, *field.finalists())
        limits = ", ".join(map(str, self.limits))
        console.print(f"comparing {pool.size} of {len(field.promises)} cells for the limits {limits}")
        seconds = self.state.seconds
        self._halve(pool, folder, console)
        self._write_front(folder, pool, console)
        return pool.front()[-1]["arch"], seconds + pool.seconds

    def _write_front(self, folder: RunFolder, pool: front.Pool, console: Console) -> None:
        kind, space = self.limits[0].kind, self.task.space
        rows = []
        for limit, found in zip(self.limits, pool.front(), strict=True):
            rows.append({"limit": limit.value, **self._costs(found["arch"]), **found})
        rows = self._looked_up(rows)
        folder.write_front(rows)
        shown = {"loss": ".3f", **{name: ".2f" for name in space.columns[:1] if self.table}}
        draw(folder, "front.svg", lambda: report.front(rows, kind, *space.columns[:1]), console)
        console.print(table("the front", report.columns(kind, shown), report.lines(rows, kind, shown)))

    def _halve(self, halving: Contest, folder: RunFolder, console: Console) -> None:
        if folder.checkpoint(halving.kind).exists():
            halving.load_state_dict(folder.load(halving.kind, self.decisive()))
        progress = Progress("comparing", halving.rounds, {"loss": ".3f", **self._shown()}, console)

        def record() -> Mapping[str, Any]:
            rows = self._looked_up(halving.history)
            folder.write_halving(rows)
            return rows[-1]

        with Watch(halving, progress, folder, self.decisive(), _go_on(folder), record) as watch:
            halve(self.task, halving, watch)
        record()

    def _shown(self) -> dict[str, str]:
        """Columns of the line for an epoch, with their formats."""
        metrics = self.task.shown
        columns = {"train_loss": metrics["loss"], **{f"valid_{name}": form for name, form in metrics.items()}}
        return {**columns, "entropy": ".3f", **dict.fromkeys(self.task.space.columns[:1], ".2f")}

    def _record(self, folder: RunFolder, add_event: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        """Write what there is after an epoch; its row."""
        row = self._write(folder)
        add_event(row)
        return row

    def _write(self, folder: RunFolder) -> Mapping[str, Any]:
        """The files of the history, whole; its last row."""
        rows = self._looked_up(self.state.history)
        folder.write_history(rows)
        folder.write_logits(Logits(self.task.space.edge_names, self.task.ops, self.state.logits))
        return rows[-1]

    def _looked_up(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With the table's numbers, where they have names of their own."""
        table = self.table
        if table is None:
            return history
        return [{**row, **{k: v for k, v in table.lookup(row["arch"]).items() if k not in row}} for row in history]

    def _costs(self, arch: str) -> dict[str, float]:
        """What a cell costs, in the unit of the limits; nothing without them."""
        return {limit.kind: limit.costs.of(self.task.places(arch)).item() for limit in self.limits[:1]}

    def _finish(self, folder: RunFolder, arch: str, seconds: float, console: Console) -> None:
        """Write the result and, when that is there, the figures."""
        folder.write_result(
            {
                "arch": arch,
                "estimator": self.config.estimator,
                "seed": self.config.seed,
                "seconds": round(seconds, 3),
                "steps": self.state.epoch * self.state.steps_per_epoch,
                **self._costs(arch),
                **self.task.space.facts(arch),
                "table": None if self.table is None else self.table.lookup(arch),
            }
        )
        space, metric = self.task.space, f"valid_{self.task.result}"
        column = space.columns[0] if space.columns else None
        draw(folder, "cell.svg", lambda: cell_svg(space, arch), console)
        if not self.state.history:  # of a front
            return
        draw(folder, "curves.png", lambda: curves(folder.history(), folder.logits(), metric, column), console)


def draw(folder: RunFolder, name: str, figure: Callable[[], bytes | str], console: Console) -> None:
    """Write a figure. A search is not lost because a picture of it cannot be drawn: then it says so."""
    try:
        folder.write_figure(name, figure())
    except Exception as error:  # matplotlib's backends, fonts and settings are other people's
        console.print(f"note: {name} was not drawn: {type(error).__name__}: {error}", markup=False)


def _go_on(folder: RunFolder) -> str:
    return f"advnas search --resume {shlex.quote(str(folder.path))}"
