"""A sequence through the recurrent cells, forward and backward, beside the plain version of the same path and beside torch's LSTM
of as many parameters: medians of times taken in turns in one process, and the peak memory of a process for each side.

    python -m benchmarks.steps.recurrent                     # or make bench-recurrent; writes benchmarks/results/recurrent.md
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import torch
import tyro
from torch import Tensor, nn

from advnas_ext import DartsRecurrentCell, OnePathRecurrentCell, Path, reference
from advnas_ext.recurrent import ACTIVATIONS, OPS
from benchmarks.sheet import RESULTS, Sheet, machine
from benchmarks.steps.peak import in_own_process
from benchmarks.steps.sides import host_clock

MODULE = "benchmarks.steps.recurrent"  # also where it is run as a script
LENGTH = 35
LEAST_TURNS = 3
CELLS = {"paper": OnePathRecurrentCell, "darts": DartsRecurrentCell}
PLAIN_CELLS = {"paper": reference.recurrent_cell, "darts": reference.darts_recurrent_cell}
SIDES = ("ours", "plain", "lstm")
MEASURED = ("ours, ms", "plain / ours", "ours / LSTM, a FLOP", "MiB ours", "plain", "ours / plain")


@dataclass
class Settings:
    units: tuple[int, ...] = (300, 850)
    batches: tuple[int, ...] = (64, 256)
    threads: int = 2
    """Of every side."""
    seconds: float = 10
    """Of turns for each case, at least three turns."""
    out: FilePath = RESULTS
    """Folder of the table."""


@dataclass(frozen=True)
class Case:
    cell: str
    units: int
    batch: int

    @property
    def edges(self) -> int:
        return CELLS[self.cell](1).num_edges

    @property
    def path(self) -> Tensor:
        """Every operation but none, so that all edges run."""
        return torch.arange(self.edges) % OPS.index("none")

    @property
    def macs(self) -> int:
        """Multiply-adds of a step of one row, forward: each weight once for each edge that it serves."""
        return (4 + 2 * self.edges) * self.units**2

    @property
    def lstm_units(self) -> int:
        wanted = sum(weight.numel() for weight in CELLS[self.cell](self.units).parameters())
        return min(range(8, 8192), key=lambda units: abs(8 * units * units + 8 * units - wanted))


def make_step(case: Case, side: str) -> Callable[[], None]:
    """A step of the weights: forward, backward, gradients of all weights."""
    torch.manual_seed(0)
    if side == "lstm":
        lstm = nn.LSTM(case.lstm_units, case.lstm_units)
        x = torch.randn(LENGTH, case.batch, case.lstm_units)
        return lambda: finish(lstm, lstm(x)[0])
    cell = CELLS[case.cell](case.units)
    x, path = torch.randn(LENGTH, case.batch, case.units), Path.from_ops(case.path).detach()
    if side == "ours":
        return lambda: finish(cell, cell(x, path)[0])
    run, functions = PLAIN_CELLS[case.cell], [ACTIVATIONS[op].function for op in cell.ops]
    h = torch.zeros(case.batch, case.units)
    return lambda: finish(cell, run(x, path, h, list(cell.weights), functions, None, None)[0])


def finish(module: nn.Module, outputs: Tensor) -> None:
    module.zero_grad()
    outputs.square().mean().backward()


def times(case: Case, seconds: float) -> dict[str, float]:
    """Milliseconds of each side, the median of as many turns as ``seconds`` allow, at least three."""
    steps = {side: make_step(case, side) for side in SIDES}
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for step in steps.values():
        step()
    end = time.perf_counter() + seconds
    while len(taken["ours"]) < LEAST_TURNS or time.perf_counter() < end:
        for side, step in steps.items():
            taken[side].append(1e3 * host_clock(step))
    return {side: statistics.median(ms) for side, ms in taken.items()}


def take_steps(side: str, cell: str, units: int, batch: int) -> None:
    step = make_step(Case(cell, units, batch), side)
    for _ in range(2):
        step()


def row(case: Case, settings: Settings) -> list[str]:
    ms = times(case, settings.seconds)
    of_lstm = ms["lstm"] / (8 * case.lstm_units**2)
    idle = in_own_process(MODULE, None, settings.threads)
    ours, plain = (
        in_own_process(MODULE, "take_steps", settings.threads, side=side, **asdict(case)) - idle
        for side in ("ours", "plain")
    )
    ratios = (f"{ms['plain'] / ms['ours']:.2f}", f"{ms['ours'] / case.macs / of_lstm:.2f}")
    memory = (f"{ours:.0f}", f"{plain:.0f}", f"{ours / plain:.2f}")
    return [case.cell, str(case.units), str(case.batch), f"{ms['ours']:.0f}", *ratios, *memory]


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    sheet = Sheet("A sequence of 35 steps, forward and backward", ("cell", "units", "batch", *MEASURED))
    for case in (Case(cell, size, batch) for cell in CELLS for size in settings.units for batch in settings.batches):
        sheet.rows.append(row(case, settings))
        (settings.out / "recurrent.md").write_text(f"{machine(settings.threads)}\n\n{sheet.markdown()}")
        print(*sheet.rows[-1], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
