"""``make search``: search a cell on digits, train it from scratch, and compare it with random cells trained in the same way."""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from advnas.cli import message
from advnas.report.console import console as new_console
from advnas.report.console import table
from advnas.report.numbers import duration, interval
from advnas.run import retrain, search
from advnas.run.folder import RunFolder
from advnas.run.watch import Interrupted
from advnas.spaces import SPACES
from advnas.tasks.image import ImageRetrainConfig, ImageSearchConfig

# Chosen on held-out training images; the test set only judges.
SEARCH = ImageSearchConfig(
    epochs=120, warmup_epochs=60, channels=8, cells=3, batch_size=32, arch_lr=0.02, arch_weight_decay=0.0
)
RETRAIN = ImageRetrainConfig(epochs=20, channels=8, cells=3, batch_size=64)
RANDOM_CELLS = 5


def main(out: Path = Path("runs/digits"), seed: int = 0, threads: int = 1) -> None:
    """Search on digits, retrain, compare.

    Args:
        out: run folder to make; where it exists already, the first of OUT-2, OUT-3, ... that does not.
        seed: of the search, of the random cells and of the training.
        threads: CPU threads. A second one hardly helps with images of 8x8 pixels.
    """
    console = new_console()
    names = itertools.chain([out], (out.with_name(f"{out.name}-{number}") for number in itertools.count(2)))
    folder = next(path for path in names if not path.exists())
    search.start(replace(SEARCH, out=folder, seed=seed, threads=threads), console)
    searched = RunFolder(folder).result()

    def train(arch: str, where: Path) -> dict[str, Any]:
        console.print(f"training {arch}")
        settings = replace(RETRAIN, arch=arch, out=where, seed=seed, threads=threads)
        retrain.start(settings, command="make search", console=console)
        return RunFolder(where).retrained()

    found = train(searched["arch"], folder)
    draw = random.Random(seed)
    space = SPACES[SEARCH.space]
    cells = [[draw.randrange(len(space.ops)) for _ in space.edges] for _ in range(RANDOM_CELLS)]
    drawn = [train(space.format(torch.tensor(ops)), folder / f"random-{i + 1}") for i, ops in enumerate(cells)]
    drawn.sort(key=lambda trained: trained["test_accuracy"])

    def row(name: str, trained: dict[str, Any], search_time: str) -> list[str]:
        accuracy = interval(trained["test_accuracy"], trained["test_accuracy_95"])
        return [name, accuracy, f"{trained['params']:,}", f"{trained['flops']:,}", search_time]

    rows = [
        row("found cell", found, duration(searched["seconds"])),
        row(f"median of {RANDOM_CELLS} random cells", drawn[RANDOM_CELLS // 2], "-"),
        row(f"best of {RANDOM_CELLS} random cells", drawn[-1], "-"),
    ]
    columns = ["trained from scratch", "test accuracy", "parameters", "FLOPs", "search time"]
    console.print(table(searched["arch"], columns, rows))
    console.print(f"run folder: {folder}")


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m advnas.quickstart")
    except (Interrupted, KeyboardInterrupt) as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        print(message(error), file=sys.stderr)
        sys.exit(2)
