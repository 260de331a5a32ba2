"""A sequence through the recurrent cells, forward and backward, beside the plain version of the same path and beside torch's LSTM
of as many parameters: medians of times taken in turns in one process, and the peak memory of a process for each side.

    python benchmarks/recurrent.py                           # or make bench-recurrent; writes benchmarks/results/recurrent.md
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated

import peak
import report
import torch
import tyro
from torch import Tensor, nn

from advnas_ext import DartsRecurrentCell, OnePathRecurrentCell, Path, reference
from advnas_ext.recurrent import ACTIVATIONS, OPS

RESULTS = FilePath(__file__).parent / "results" / "recurrent.md"
LENGTH = 35
LEAST_TURNS = 3
CELLS = {"paper": OnePathRecurrentCell, "darts": DartsRecurrentCell}
PLAIN_CELLS = {"paper": reference.recurrent_cell, "darts": reference.darts_recurrent_cell}
SIDES = ("ours", "plain", "lstm")


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
    def parameters(self) -> int:
        return sum(weight.numel() for weight in CELLS[self.cell](self.units).parameters())

    @property
    def lstm_units(self) -> int:
        wanted = self.parameters
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
            begun = time.perf_counter()
            step()
            taken[side].append(1e3 * (time.perf_counter() - begun))
    return {side: statistics.median(ms) for side, ms in taken.items()}


def memory(case: Case, side: str, threads: int) -> float:
    """Peak MiB of a process of its own; side "none": that only imports."""
    request = [case.cell, str(case.units), str(case.batch), side, str(threads)]
    return float(
        subprocess.run([sys.executable, __file__, "--peak", *request], stdout=subprocess.PIPE, check=True).stdout
    )


def print_peak(cell: str, units: str, batch: str, side: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    if side != "none":
        step = make_step(Case(cell, int(units), int(batch)), side)
        for _ in range(2):
            step()
    print(peak.peak_mib())


def main(
    units: tuple[int, ...] = (300, 850),
    batches: tuple[int, ...] = (64, 256),
    threads: Annotated[int, tyro.conf.arg(help="of every side")] = 2,
    seconds: Annotated[float, tyro.conf.arg(help="of turns for each case, at least three turns")] = 10,
) -> None:
    """Time the recurrent cells beside plain PyTorch and an LSTM."""
    torch.set_num_threads(threads)
    header = (
        "cell",
        "units",
        "batch",
        "ours, ms",
        "plain / ours",
        "ours / LSTM, a FLOP",
        "MiB ours",
        "plain",
        "ours / plain",
    )
    sheet = report.Sheet("A sequence of 35 steps, forward and backward", header)
    for case in (Case(cell, size, batch) for cell in CELLS for size in units for batch in batches):
        ms = times(case, seconds)
        of_lstm = ms["lstm"] / (8 * case.lstm_units**2)
        idle, ours, plain = (memory(case, side, threads) for side in ("none", "ours", "plain"))
        ours, plain = ours - idle, plain - idle
        figures = (
            f"{ms['ours']:.0f}", f"{ms['plain'] / ms['ours']:.2f}", f"{ms['ours'] / case.macs / of_lstm:.2f}",
            f"{ours:.0f}", f"{plain:.0f}", f"{ours / plain:.2f}",
        )  # fmt: skip
        sheet.rows.append([case.cell, str(case.units), str(case.batch), *figures])
        RESULTS.write_text(f"{report.machine(threads)}\n\n{sheet.markdown()}")
        print(*sheet.rows[-1], flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
    else:
        tyro.cli(main)
