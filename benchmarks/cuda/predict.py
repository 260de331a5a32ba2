"""What the model expects of each case that benchmarks/cuda/steps.py times: launches, bytes, and the time on each card; and the
bytes of each kernel in the steps that benchmarks/cuda/profile.py looks at.

Made beforehand, so that a GPU machine needs no compiled shim: writes cuda-predicted.csv and cuda-predicted-kernels.csv to --out.
"""

from __future__ import annotations

import contextlib
import csv
import statistics
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path as FilePath

import torch
import tyro
from torch import Tensor

from benchmarks.cuda import model, shim
from benchmarks.cuda.gpus import CARDS
from benchmarks.cuda.model import PRECISIONS
from benchmarks.cuda.own import OURS_OWN, own_conv3x3
from benchmarks.sheet import RESULTS
from benchmarks.steps.sides import STEPS, Ours, make_network, make_paths
from benchmarks.steps.work import Case

CHANNELS, CELLS, BATCHES = (16, 32), (5, 1), model.BATCHES
PATHS = 12
FILE = RESULTS / "cuda-predicted.csv"
COLUMNS = ("channels", "cells", "batch", "precision", "step", "side")


@dataclass
class Expected:
    """Means over the paths of ``make_paths(PATHS, 0)``. ``ms``: by the name of the card."""

    launches: float
    megabytes: float
    ms: dict[str, float]


Key = tuple[str, ...]  # of COLUMNS


def key_of(case: Case, precision: str, to_gates: bool, side: str) -> Key:
    return str(case.channels), str(case.cells), str(case.batch_size), precision, STEPS[to_gates], side


def expect(case: Case, names: list[str], paths: Tensor) -> dict[Key, Expected]:
    """Of the precisions ``names``, which have one type."""
    found = {}
    dtype = PRECISIONS[names[0]].dtype
    for to_gates in STEPS:
        by_side = model.works_of(case, dtype, paths, to_gates)
        for side, works in by_side.items():
            for name in names:
                if side == OURS_OWN and not PRECISIONS[name].has_own_conv3x3:
                    continue
                tf32 = PRECISIONS[name].tf32
                ms = {
                    gpu.name: 1e3 * statistics.mean(model.seconds(work, gpu, dtype, tf32) for work in on_gpu)
                    for gpu, on_gpu in ((gpu, model.works_on(gpu, by_side, side)) for gpu in CARDS)
                }
                means = (statistics.mean(map(of, works)) for of in (model.launches, model.moved))
                found[key_of(case, name, to_gates, side)] = Expected(*means, ms)
    return found


def expect_all() -> dict[Key, Expected]:
    paths = make_paths(PATHS, seed=0)
    by_type: dict[torch.dtype, list[str]] = {}
    for name, precision in PRECISIONS.items():
        by_type.setdefault(precision.dtype, []).append(name)
    halves = [name for dtype in (torch.bfloat16, torch.float16) for name in by_type[dtype]]  # they move the same bytes
    found = {}
    for channels, cells, batch in product(CHANNELS, CELLS, BATCHES):
        case = Case(channels, cells, batch)
        for names in (by_type[torch.float32], halves):
            found |= expect(case, names, paths)
    return found


def write(found: dict[Key, Expected], file: FilePath) -> None:
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*COLUMNS, "launches", "MB", *(f"{gpu.name} ms" for gpu in CARDS)])
        for key, each in found.items():
            numbers = (each.launches, each.megabytes, *each.ms.values())
            writer.writerow([*key, *(f"{number:.4g}" for number in numbers)])


def read(file: FilePath = FILE) -> dict[Key, Expected]:
    found = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            ms = {gpu.name: float(row[f"{gpu.name} ms"]) for gpu in CARDS}
            found[tuple(row[name] for name in COLUMNS)] = Expected(float(row["launches"]), float(row["MB"]), ms)
    return found


PROFILED = torch.tensor([3, 2, 1, 4, 3, 2])  # every operation but none
PROFILED_CASE = Case(16, 5, 64)
CONVOLUTIONS = {False: "library", True: "own"}
KERNELS_FILE = RESULTS / "cuda-predicted-kernels.csv"


def megabytes_of_kernels(dtype: str, to_gates: bool, own: bool = False) -> dict[str, float]:
    """Of our own, all launches of a step together; ``own``: with our own 3x3 convolutions."""
    network, batch = make_network(PROFILED_CASE)
    ours = Ours(network.to(getattr(torch, dtype)), batch.to(getattr(torch, dtype)))
    found: dict[str, float] = defaultdict(float)
    with own_conv3x3() if own else contextlib.nullcontext():
        launches = shim.launches().launched(lambda: ours.step(PROFILED, to_gates))
    for launch in launches:
        found[launch.kernel] += launch.moved / 1e6
    return found


def write_kernels(file: FilePath) -> None:
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["type", "step", "3x3", "kernel", "MB"])
        for dtype, (to_gates, step), (own, of) in product(("float32", "bfloat16"), STEPS.items(), CONVOLUTIONS.items()):
            for kernel, megabytes in megabytes_of_kernels(dtype, to_gates, own).items():
                writer.writerow([dtype, step, of, kernel, f"{megabytes:.1f}"])


def read_kernels(dtype: str, to_gates: bool, own: bool = False) -> dict[str, float]:
    wanted = dtype, STEPS[to_gates], CONVOLUTIONS[own]
    with KERNELS_FILE.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {row["kernel"]: float(row["MB"]) for row in rows if (row["type"], row["step"], row["3x3"]) == wanted}


@dataclass
class Settings:
    out: FilePath = RESULTS
    """Folder of the file."""


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    write_kernels(settings.out / KERNELS_FILE.name)
    write(expect_all(), settings.out / FILE.name)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
