"""``make search``: search a cell, train it from scratch, and compare it with random cells that are trained in the same way.

Without data it takes the cluttered digits that the package generates; with CIFAR-10 and a NAS-Bench-201 table, the real thing.
"""

from __future__ import annotations

import random
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch import Tensor

from advnas.cli import message
from advnas.files import at_home
from advnas.report.comparison import comparison
from advnas.report.console import console as new_console
from advnas.report.console import table as new_table
from advnas.report.numbers import duration, interval, paired_difference
from advnas.run import retrain, search
from advnas.run.folder import RunFolder, numbered
from advnas.run.watch import Interrupted
from advnas.spaces import SPACES
from advnas.tables import Table
from advnas.tasks.image import ImageRetrainConfig, ImageSearchConfig, ImageTask

# Chosen on seeds that are not shown anywhere, by what separates cells in little time; the test set only judges.
SEARCH = ImageSearchConfig(
    data="clutter",
    estimator="rloo",
    epochs=20,
    warmup_epochs=10,
    channels=8,
    cells=1,
    reduction="light",
    lr=0.1,
    arch_lr=0.02,
    arch_weight_decay=0.0,
    valid_batches=32,
)
RETRAIN = ImageRetrainConfig(data="clutter", epochs=6, channels=8, cells=1, reduction="light", batch_size=64)
RANDOM_CELLS = 9


@dataclass(frozen=True)
class Trained:
    """A cell that was trained from scratch.

    Attributes:
        answers: whether it is right on each test image, bool [images].
    """

    name: str
    result: dict
    answers: Tensor

    @property
    def accuracy(self) -> float:
        return self.result["test_accuracy"]


def main(
    out: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    data_dir: Path | None = None,
    table: Path | None = None,
) -> None:
    """Search, train from scratch, compare.

    Args:
        out: run folder to make, runs/clutter or runs/cifar10 by default; where it exists already, the first of OUT-2, OUT-3, ...
            that does not.
        seed: of the search, of the random cells and of the training.
        threads: CPU threads; by default as many as torch takes.
        data_dir: folder that holds cifar-10-batches-py: search on CIFAR-10.
        table: NAS-Bench-201 table, which says how good the cell found there is.
    """
    console = new_console()
    if data_dir is not None:
        on_cifar(data_dir, table, free(out or Path("runs/cifar10")), seed, threads, console)
    elif table is not None:
        raise ValueError(
            "table: judges a search on CIFAR-10; give its folder with --data-dir (make search DATA_DIR=...)"
        )
    else:
        on_clutter(free(out or Path("runs/clutter")), seed, threads, console)


def free(out: Path) -> Path:
    """Not made yet: the search may be refused."""
    return next(path for path in numbered(at_home(out)) if not path.exists())


def on_cifar(
    data_dir: Path, table: Path | None, folder: Path, seed: int, threads: int | None, console: Console
) -> None:
    settings = {
        "data": "cifar10",
        "data_dir": data_dir,
        "table": table,
        "out": folder,
        "seed": seed,
        "threads": threads,
    }
    config = ImageSearchConfig().with_settings({**ImageTask.presets["fast"], **settings}, "make search")
    found = RunFolder(search.start(config, console)).result()
    console.print(f"cell         {found['arch']}\nsearch time  {duration(found['seconds'])}")
    if table is not None:
        space = SPACES[config.space]
        column = space.columns[0]
        rows = Table.load(table, space).rows
        better = sum(row[column] < found["table"][column] for row in rows.values())
        console.print(
            f"table        {found['table'][column]:.2f} % ({column}), better than {100 * better / len(rows):.1f} % of all "
            f"{len(rows):,} cells"
        )
    go_on = shlex.join(["advnas", "retrain", str(folder)])
    console.print(f"run folder   {folder}\ngo on with   {go_on}", markup=False)


def on_clutter(folder: Path, seed: int, threads: int | None, console: Console) -> None:
    search.start(replace(SEARCH, out=folder, seed=seed, threads=threads), console)
    searched = RunFolder(folder).result()

    def train(name: str, arch: str, where: Path) -> Trained:
        console.print(f"training {name}: {arch}")
        settings = replace(RETRAIN, arch=arch, out=where, seed=seed, threads=threads)
        retrain.start(settings, command="make search, which begins anew", console=console)
        task, state = retrain.restore(where)
        assert isinstance(task, ImageTask)
        return Trained(name, RunFolder(where).retrained(), task.test_answers(state.network))

    found = train("the found cell", searched["arch"], folder)
    space, draw = SPACES[SEARCH.space], random.Random(seed)
    drawn = []
    for number in range(1, RANDOM_CELLS + 1):
        arch = space.format(torch.tensor([draw.randrange(len(space.ops)) for _ in space.edges]))
        drawn.append(train(f"random cell {number}", arch, folder / f"random-{number}"))
    drawn.sort(key=lambda trained: trained.accuracy)
    cells = {trained.name: (trained.accuracy, trained.result["test_accuracy_95"]) for trained in [*drawn, found]}
    RunFolder(folder).write_figure("comparison.svg", comparison(cells, found.name, "test accuracy, %"))

    def row(name: str, trained: Trained) -> list[str]:
        result = trained.result
        accuracy = interval(trained.accuracy, result["test_accuracy_95"])
        gain = (
            ""
            if trained is found
            else "{:+.2f} ({:+.2f} to {:+.2f})".format(
                *(100 * value for value in paired_difference(found.answers, trained.answers))
            )
        )
        return [name, accuracy, gain, f"{result['params']:,}", f"{result['flops']:,}"]

    rows = [
        row("found cell", found),
        row(f"best of {RANDOM_CELLS} random cells", drawn[-1]),
        row(f"median of {RANDOM_CELLS} random cells", drawn[RANDOM_CELLS // 2]),
    ]
    columns = ["trained from scratch", "test accuracy", "found cell's lead, points (95%)", "parameters", "FLOPs"]
    console.print(new_table(searched["arch"], columns, rows))
    console.print(
        f"search time  {duration(searched['seconds'])}\nrun folder   {folder} (comparison.svg, cell.svg, curves.png)",
        markup=False,
    )


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m advnas.quickstart")
    except (Interrupted, KeyboardInterrupt) as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        print(message(error), file=sys.stderr)
        sys.exit(2)
