"""What follows from the times: memory, targets, and how much is done a second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.sheet import Sheet
from benchmarks.steps.measure import Comparison
from benchmarks.steps.sides import BARE, OURS, PLAIN, STEPS, XAUTODL, XAUTODL_CHANNELS_LAST
from benchmarks.steps.work import Case, least_bytes, multiply_adds

# side: for a weight step and an architecture step the ratio side/ours to reach, in the median and on the worst path.
TARGETS: dict[str, tuple[tuple[float, float], tuple[float, float] | None]] = {
    XAUTODL: ((6.5, 8.0), (4.0, 5.0)),
    XAUTODL_CHANNELS_LAST: ((4.2, 5.0), (2.8, 3.5)),
    PLAIN: ((2.6, 3.2), None),
    BARE: ((1.4, 1.1), None),
}
MEMORY_TARGETS = (0.55, 0.5)  # ours / xautodl, at most

Memory = dict[tuple[str | None, bool], float]  # side (None: the imports alone), to_gates: MiB


def memory(peaks: Memory) -> Sheet:
    imports = peaks[None, False]
    sheet = Sheet(
        f"Peak memory of a process of its own, MiB; the imports alone {imports:.0f}",
        ("side", "weight", "architecture", "ours/side: weight", "architecture"),
    )
    for name in dict.fromkeys(name for name, _ in peaks if name is not None):
        ratios = ["", ""] if name == OURS else [f"{peaks[OURS, step] / peaks[name, step]:.2f}x" for step in STEPS]
        sheet.rows.append([name, *(f"{peaks[name, step]:.0f}" for step in STEPS), *ratios])
    return sheet


def targets(comparison: Comparison, peaks: Memory | None) -> Sheet:
    sheet = Sheet("Targets", ("what", "target", "weight", "architecture", "reached"), 1)
    for name, (medians, worst) in TARGETS.items():
        if (name, True) not in comparison:
            continue
        both = [comparison[name, to_gates] for to_gates in STEPS]
        sheet.rows.append(_target(f"{name} / ours, median", medians, [side.ratio for side in both], "at least"))
        if worst is not None:
            sheet.rows.append(_target(f"{name} / ours, worst path", worst, [side.worst for side in both], "at least"))
    if peaks is not None and (XAUTODL, True) in peaks:
        reached = [peaks[OURS, step] / peaks[XAUTODL, step] for step in STEPS]
        sheet.rows.append(_target(f"memory, ours / {XAUTODL}", MEMORY_TARGETS, reached, "at most"))
    return sheet


def _target(what: str, wanted: Sequence[float], reached: Sequence[float], bound: str) -> list[str]:
    pairs = zip(reached, wanted, strict=True)
    met = [value >= limit if bound == "at least" else value <= limit for value, limit in pairs]
    return [
        what,
        f"{bound} {wanted[0]:g}x / {wanted[1]:g}x",
        *(f"{value:.3f}x" for value in reached),
        " / ".join("yes" if each else "no" for each in met),
    ]


def roofline(comparison: Comparison, case: Case, paths: list[list[int]]) -> tuple[Sheet, dict[str, dict[str, float]]]:
    """Averages over the paths. A multiply-add is two FLOPs; rates are totals over total times."""
    sheet = Sheet(
        "What ours does, averages over the paths: GFLOP of the convolutions, GB at least (model: benchmarks/steps/work.py)",
        ("step", "mean ms", "GFLOP", "GB", "GFLOP/s", "GB/s"),
    )
    found = {}
    for to_gates, step in STEPS.items():
        seconds = statistics.mean(comparison[OURS, to_gates].ms) / 1e3
        gflop = statistics.mean(2e-9 * multiply_adds(ops, case, to_gates) for ops in paths)
        gb = statistics.mean(1e-9 * least_bytes(ops, case, to_gates) for ops in paths)
        found[step] = {"gflop": gflop, "gb": gb, "gflops": gflop / seconds, "gbs": gb / seconds}
        rates = (f"{gflop / seconds:.1f}", f"{gb / seconds:.2f}")
        sheet.rows.append([step, f"{1e3 * seconds:.1f}", f"{gflop:.2f}", f"{gb:.3f}", *rates])
    return sheet, found
