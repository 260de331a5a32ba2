"""Limits on what a cell costs: where costs come from, which cells are within a limit, and which of them score best.

FLOPs and parameters are those of the network that is trained afterwards, not those of the supernet; latencies are measured, by the
operation or by the whole cell.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from advnas.config import SearchConfig
from advnas.report.numbers import written
from advnas.spaces import Space
from advnas.tables import Table
from advnas.tasks.base import Task
from advnas_ext import Budget, PathCost
from advnas_ext.knapsack import best_paths

Name = TypeVar("Name", bound=Hashable)

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of all cells that are within the limits of a front that names none
DRAWN = 2000  # cells by which these shares are estimated
LATENCY = "latency_s"
MOST_CELLS = 1_000_000  # that can each have a latency of their own


class CellCosts(Protocol):
    """What cells cost, in one unit. Cells are int64 [..., num_edges], places among the operations of the search."""

    path: PathCost
    """Additive over the edges: exact, or else the closest there is."""

    def of(self, cells: Tensor) -> Tensor:
        """float64 [...]."""

    def best(self, scores: Tensor, limit: float, count: int) -> Tensor:
        """The ``count`` cells of the largest sum of ``scores`` [num_edges, num_ops] within a limit, or as many as there are."""


class AdditiveCosts:
    """The costs of a cell's operations add up."""

    def __init__(self, path: PathCost) -> None:
        self.path = path

    def of(self, cells: Tensor) -> Tensor:
        return self.path.of(cells)

    def best(self, scores: Tensor, limit: float, count: int) -> Tensor:
        return best_paths(scores, self.path.costs, limit - self.path.constant, count)


class MeasuredCosts:
    """Every cell has a cost of its own.

    Args:
        cells: int64 [count, num_edges].
        costs: float64 [count].
        num_ops: of every edge.
    """

    def __init__(self, cells: Tensor, costs: Tensor, num_ops: int) -> None:
        self.cells, self.costs = cells, costs
        self._place = {tuple(ops): place for place, ops in enumerate(cells.tolist())}
        self.path = additive_fit(cells, costs, num_ops)

    def of(self, cells: Tensor) -> Tensor:
        places = [self._place[tuple(ops)] for ops in cells.reshape(-1, cells.shape[-1]).tolist()]
        return self.costs[places].reshape(cells.shape[:-1])

    def best(self, scores: Tensor, limit: float, count: int) -> Tensor:
        within = self.cells[self.costs <= limit]
        return within[sums(scores, within).argsort(descending=True, stable=True)[:count]]


@dataclass(frozen=True, eq=False)
class Limit:
    """A limit on what a cell costs.

    Raises:
        ValueError: no cell is within it.
    """

    costs: CellCosts
    kind: str
    value: float

    def __post_init__(self) -> None:
        if not self.value >= self.least:
            raise ValueError(
                f"max_{self.kind}: must be at least that of the cheapest cell, {written(rounded_up(self.least), self.kind)}, "
                f"got {written(self.value, self.kind)}"
            )

    def __str__(self) -> str:
        return written(self.value, self.kind)

    @property
    def least(self) -> float:
        return self.costs.costs.min().item() if isinstance(self.costs, MeasuredCosts) else self.costs.path.least

    @cached_property
    def budget(self) -> Budget:
        """For logits, whose expected cost is that of the operations."""
        return Budget(self.costs.path, max(self.value, self.costs.path.least))

    def allows(self, cells: Tensor) -> Tensor:
        """Whether cells [..., num_edges] are within the limit: bool [...]."""
        return self.costs.of(cells) <= self.value * (1 + 1e-9)

    def best(self, scores: Tensor, count: int = 1) -> Tensor:
        """See :meth:`CellCosts.best`."""
        return self.costs.best(scores, self.value, count)


def limits_of(config: SearchConfig, task: Task) -> list[Limit]:
    """The limits of a search, ascending; none where it has none.

    Raises:
        ValueError: the settings contradict each other, the task knows no such costs, no cell is within a limit, or ``latencies``
            holds no latencies of this search's cells.
        FileNotFoundError: ``latencies`` is not there.
    """
    given = {kind: config.limits(kind) for kind in ("flops", "params", "latency") if config.limits(kind)}
    if len(given) > 1:
        raise ValueError(
            f"max_{list(given)[1]}: there is max_{next(iter(given))} already; limit one kind of cost at a time"
        )
    if (config.latencies is None) != ("latency" not in given):
        raise ValueError("max_latency: needs latencies, a file with measured ones, and that needs max_latency")
    if not given and not config.front:
        return []
    if not task.space.has_every_path:
        raise ValueError(
            f"max_flops, max_params, max_latency, front: are for spaces in which every path is a cell, not for "
            f"{task.space.name}; leave them out"
        )
    kind, values = next(iter(given.items()), ("flops", ()))
    costs = (
        latencies(config.latencies, task) if config.latencies is not None else AdditiveCosts(task.path_costs()[kind])
    )
    if config.front and len(values) <= 1:
        values = spread(costs, task, *values)
    if len(set(values)) > 1 and not task.has_promises:
        raise ValueError(f"front: the task {task.name} has no measures of untrained networks; give one limit at a time")
    return [Limit(costs, kind, value) for value in sorted(set(values))]


def spread(costs: CellCosts, task: Task, most: float = torch.inf) -> list[float]:
    """Limits that ``SHARES`` of the cells that cost at most ``most`` are within, the last one ``most`` itself."""
    generator = torch.Generator().manual_seed(0)
    drawn = costs.of(torch.randint(len(task.ops), (DRAWN, task.space.num_edges), generator=generator))
    within = drawn[drawn <= most]
    if not len(within):
        return [most]
    values = within.quantile(torch.tensor(SHARES, dtype=torch.float64), interpolation="lower").tolist()
    return values if most == torch.inf else [*values[:-1], most]


def latencies(file: Path, task: Task) -> CellCosts:
    """Of operations, from a CSV file with the columns edge, op and latency_s, or of whole cells, from a CSV file or a table with
    the columns arch_str and latency_s. See docs/budgets.md.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns, or lacks a latency that is needed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of latencies")
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:  # with or without a byte-order mark
            rows = list(csv.DictReader(opened))
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file: {error}") from None
    except UnicodeDecodeError:
        table = Table.load_whole(file, task.space)  # Parquet
        rows = [{"arch_str": arch, LATENCY: str(row.get(LATENCY))} for arch, row in table.rows.items()]
    columns = rows[0].keys() if rows else ()
    if {"arch_str", LATENCY} <= set(columns):
        return of_cells(_by_name(((row["arch_str"], row) for row in rows), file), task, file)
    if {"edge", "op", LATENCY} <= set(columns):
        return of_operations(_by_name((((row["edge"], row["op"]), row) for row in rows), file), task, file)
    raise ValueError(
        f"{file}: must have the columns edge, op, {LATENCY} or arch_str, {LATENCY}, got {', '.join(map(str, columns)) or 'no rows'}"
    )


def of_operations(seconds: Mapping[tuple[str, str], float], task: Task, file: Path) -> AdditiveCosts:
    """By edge and operation; an edge "" stands for all, and with an operation "" for what a network takes besides."""
    rows = []
    for edge in task.space.edge_names:
        found = [seconds.get((edge, op), seconds.get(("", op))) for op in task.ops]
        if None in found:
            op = task.ops[found.index(None)]
            raise ValueError(f"{file}: must have a latency of {op} for the edge {edge}, or for all with an empty edge")
        rows.append(found)
    unknown = [
        key for key in seconds if key[0] not in ("", *task.space.edge_names) or key[1] not in ("", *task.space.ops)
    ]
    if unknown:
        raise ValueError(f"{file}: must name edges and operations of the space {task.space.name}, got {unknown[0]}")
    return AdditiveCosts(PathCost(rows, seconds.get(("", ""), 0.0)))  # type: ignore[arg-type]


def of_cells(seconds: Mapping[str, float], task: Task, file: Path) -> MeasuredCosts:
    """Of every cell that the search can find, by its string."""
    if (count := len(task.ops) ** task.space.num_edges) > MOST_CELLS:
        raise ValueError(
            f"{file}: the search can find {count:.3g} cells, too many for a latency of each; give those of operations"
        )
    cells = every_cell(task.space, task.ops)
    archs = [task.arch(ops) for ops in cells]
    if missing := [arch for arch in archs if arch not in seconds]:
        raise ValueError(f"{file}: must have a latency of every cell, got none of {missing[0]}")
    costs = torch.tensor([seconds[arch] for arch in archs], dtype=torch.float64)
    return MeasuredCosts(cells, costs, len(task.ops))


def rounded_up(value: float) -> float:
    """To the four digits that :func:`written` shows, so that what is shown is enough."""
    unit = 10 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1
    return math.ceil(value / unit) * unit


def every_cell(space: Space, ops: Sequence[str]) -> Tensor:
    """int64 [len(ops) ** num_edges, num_edges]."""
    return torch.cartesian_prod(*[torch.arange(len(ops))] * space.num_edges)


def sums(scores: Tensor, cells: Tensor) -> Tensor:
    """Of the scores [num_edges, num_ops] of the operations of cells [count, num_edges]: [count]."""
    return scores[torch.arange(len(scores)), cells].sum(-1)


def additive_fit(cells: Tensor, values: Tensor, num_ops: int) -> PathCost:
    """The additive function of a cell's operations that is closest to ``values`` [count], in least squares."""
    num_edges = cells.shape[1]
    design = torch.nn.functional.one_hot(cells, num_ops).double().flatten(1)
    # Each edge's columns add up to 1, so that the mean has to be taken out: the solution of least norm shares out the rest.
    mean = values.double().mean()
    fitted = torch.linalg.lstsq(design, (values.double() - mean)[:, None], driver="gelsd").solution
    return PathCost(fitted.reshape(num_edges, num_ops), mean.item())


def _by_name(rows: Iterable[tuple[Name, Mapping[str, str]]], file: Path) -> dict[Name, float]:
    """The latency of each row by its name."""
    found: dict[Name, float] = {}
    for name, row in rows:
        if name in found:
            raise ValueError(f"{file}: has two latencies of {name}")
        found[name] = _seconds(row, file)
    return found


def _seconds(row: Mapping[str, str], file: Path) -> float:
    try:
        value = float(row[LATENCY])
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{file}: {LATENCY} must be seconds >= 0, got {row[LATENCY]!r}")
    return value
