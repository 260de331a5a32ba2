"""What is read from a table of trainings at once, and kept: the numbers of many cells at one epoch."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from advnas.tables import parquet
from advnas.tables.trials import COSTS, EPOCHS, METRICS, PARTS

Number: TypeAlias = float | None
Numbers: TypeAlias = tuple[list[Number], list[Number], list[Number]]  # in the order of METRICS


class Values(NamedTuple):
    """Epochs that were trained, and by part each of ``METRICS``; seconds are those of all these epochs. A value for each training,
    or their mean for each row. None: not measured."""

    epochs: list[Any]
    parts: dict[str, Numbers]


class Block:
    """What is known of some rows after one epoch, for one data set and hyper-parameters.

    Attributes:
        offsets: [rows + 1], the trainings of row i are ``offsets[i]`` to ``offsets[i + 1]``.
        seeds, costs: of each training.
        each: the numbers of each training.
        there: by part, whether all trainings of a row have a loss and an accuracy.
    """

    def __init__(
        self, offsets: np.ndarray, seeds: list[int], each: Values, costs: dict[str, list[float]] | None = None
    ) -> None:
        self.offsets: list[int] = offsets.tolist()
        self.seeds, self.each, self.costs = seeds, each, costs or {}
        self.there = {}
        for part, (loss, accuracy, _) in each.parts.items():
            missing = np.array([0, *(a is None or b is None for a, b in zip(loss, accuracy, strict=True))]).cumsum()
            self.there[part] = (missing[offsets[1:]] == missing[offsets[:-1]]).tolist()

    @functools.cached_property
    def mean(self) -> Values:
        """The means over the trainings of each row."""
        loss, accuracy, seconds = (
            {part: self._means(numbers[place]) for part, numbers in self.each.parts.items()}
            for place in range(len(METRICS))
        )
        parts = {part: (loss[part], accuracy[part], seconds[part]) for part in self.each.parts}
        return Values(self._means(self.each.epochs), parts)

    def _means(self, values: Sequence[Any]) -> list[Number]:
        rows = [values[first:end] for first, end in itertools.pairwise(self.offsets)]
        return [None if not row or None in row else sum(row) / len(row) for row in rows]


class Curves(NamedTuple):
    """The numbers after every epoch, of a group of rows.

    Attributes:
        offsets, seeds, epochs: as a block has them.
        starts: [trainings + 1], where in ``parts`` each training's epochs begin.
        parts: by part and metric, values with NaN for what was not measured, and where that is.
    """

    offsets: np.ndarray
    seeds: list[int]
    epochs: np.ndarray
    starts: np.ndarray
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]]


class Blocks:
    """The blocks of a table, each read when it is first asked for.

    Attributes:
        about: the table's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = parquet.opened(path)
        self.about = parquet.metadata(self._file, path)
        self._rows_together = self._file.metadata.row_group(0).num_rows
        # Of this object alone, so that they go with it.
        self.last = functools.lru_cache(None)(self._last)
        self.curves = functools.lru_cache(4)(self._curves)
        self.datasets = functools.lru_cache(None)(self._datasets)

    def left_out(self) -> set[int]:
        """Numbers of the cells that have results, and yet the benchmark does not call evaluated."""
        return set(json.loads(self._file.metadata.metadata.get(parquet.LEFT_OUT, b"[]")))

    def read(self, columns: list[str], group: int | None = None) -> pa.Table:
        try:
            found = self._file.read(columns) if group is None else self._file.read_row_group(group, columns)
        except (pa.ArrowException, OSError) as error:
            raise parquet.damaged(self._path, error) from None
        return found.combine_chunks()

    def _datasets(self, hp: str) -> list[list[str] | None]:
        """The data sets of every row."""
        return self.read([f"{hp}/datasets"]).column(0).to_pylist()

    def _last(self, hp: str, dataset: str) -> Block:
        parts = [f"{part}/{metric}" for part in PARTS for metric in METRICS]
        names = [f"{hp}/{dataset}/{name}" for name in ("seed", EPOCHS, *COSTS, *parts)]
        content = self.read(names)
        offsets, seeds = _list_column(content, names[0])
        numbers = {name.split("/", 2)[2]: _with_none(_list_column(content, name)[1]) for name in names[1:]}
        loss, accuracy, seconds = METRICS
        values = {
            part: (numbers[f"{part}/{loss}"], numbers[f"{part}/{accuracy}"], numbers[f"{part}/{seconds}"])
            for part in PARTS
        }
        costs = {name: numbers[name] for name in COSTS}
        return Block(offsets, seeds.tolist(), Values(numbers[EPOCHS], values), costs)

    def _curves(self, hp: str, dataset: str, group: int) -> Curves:
        prefix = f"{hp}/{dataset}"
        parts = {part: [f"{prefix}/{part}/{metric}/{EPOCHS}" for metric in METRICS] for part in PARTS}
        content = self.read([f"{prefix}/seed", f"{prefix}/{EPOCHS}", *itertools.chain(*parts.values())], group)
        offsets, seeds = _list_column(content, f"{prefix}/seed")
        epochs = np.asarray(_list_column(content, f"{prefix}/{EPOCHS}")[1])
        found = {part: [_list_column(content, name)[1] for name in names] for part, names in parts.items()}
        values = {
            part: [(column.to_numpy(zero_copy_only=False), np.asarray(column.is_null())) for column in columns]
            for part, columns in found.items()
        }
        return Curves(offsets, seeds.tolist(), epochs, np.append(0, epochs.cumsum()), values)

    def at(self, hp: str, dataset: str, epoch: int, row: int) -> Block:
        """What is known of one row after an epoch, which all of its trainings must have had."""
        group, place = divmod(row, self._rows_together)
        curves = self.curves(hp, dataset, group)
        trainings = slice(curves.offsets[place], curves.offsets[place + 1])
        starts = curves.starts[trainings].tolist()
        parts: dict[str, Numbers] = {}
        for part, ((loss, no_loss), (accuracy, no_accuracy), (seconds, no_seconds)) in curves.parts.items():
            parts[part] = (
                [None if no_loss[start + epoch] else float(loss[start + epoch]) for start in starts],
                [None if no_accuracy[start + epoch] else float(accuracy[start + epoch]) for start in starts],
                [
                    None if no_seconds[start + epoch] else float(seconds[start : start + epoch + 1].cumsum()[-1])
                    for start in starts
                ],
            )
        each = Values([epoch + 1] * len(starts), parts)
        return Block(np.array([0, len(starts)]), curves.seeds[trainings], each)


def _list_column(content: pa.Table, name: str) -> tuple[np.ndarray, pa.Array]:
    """Of a column of lists: offsets [rows + 1] and the values of all."""
    column = content[name]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(column.offsets), column.values


def _with_none(values: pa.Array) -> list[Any]:
    found = values.to_numpy(zero_copy_only=False).tolist()
    for place in np.flatnonzero(np.asarray(values.is_null())).tolist():
        found[place] = None
    return found
