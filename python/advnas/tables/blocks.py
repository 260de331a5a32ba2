"""What is read from a table of trainings at once, and kept: the numbers of many cells at one epoch."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from advnas.tables import parquet
from advnas.tables.trials import COSTS, EPOCHS, METRICS, PARTS

Number: TypeAlias = float | None
Numbers: TypeAlias = tuple[list[Number], list[Number], list[Number]]  # in the order of METRICS


class Block:
    """What is known of consecutive rows at one epoch, for one data set and hyper-parameters.

    Attributes:
        offsets: [rows + 1], the trainings of row i are ``offsets[i]`` to ``offsets[i + 1]``.
        seeds, epochs, costs: of each training.
        parts: by part, each of ``METRICS`` for each training; seconds are those up to the epoch.
        there: by part, whether all trainings of a row have a loss and an accuracy.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        seeds: list[int],
        epochs: list[int],
        parts: dict[str, Numbers],
        costs: dict[str, list[float]],
    ) -> None:
        self.offsets: list[int] = offsets.tolist()
        self.seeds, self.epochs, self.parts, self.costs = seeds, epochs, parts, costs
        self.there = {}
        for part, (loss, accuracy, _) in parts.items():
            missing = np.array([0, *(a is None or b is None for a, b in zip(loss, accuracy, strict=True))]).cumsum()
            self.there[part] = (missing[offsets[1:]] == missing[offsets[:-1]]).tolist()


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
        self.rows_together = self._file.metadata.row_group(0).num_rows
        # Of this object alone, so that they go with it.
        self.last = functools.lru_cache(None)(self._last)
        self.at = functools.lru_cache(32)(self._at)
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
        return Block(offsets, seeds.tolist(), numbers[EPOCHS], values, {name: numbers[name] for name in COSTS})

    def _at(self, hp: str, dataset: str, epoch: int, group: int) -> Block:
        prefix = f"{hp}/{dataset}"
        parts = [f"{prefix}/{part}/{metric}/{EPOCHS}" for part in PARTS for metric in METRICS]
        content = self.read([f"{prefix}/seed", f"{prefix}/{EPOCHS}", *parts], group)
        offsets, seeds = _list_column(content, f"{prefix}/seed")
        epochs = np.asarray(_list_column(content, f"{prefix}/{EPOCHS}")[1])
        starts = np.append(0, epochs.cumsum())
        spans = list(itertools.pairwise(starts.tolist()))
        values: dict[str, Numbers] = {}
        for part in PARTS:
            found: list[list[Number]] = []
            for metric in METRICS:
                column = _list_column(content, f"{prefix}/{part}/{metric}/{EPOCHS}")[1]
                numbers, missing = column.to_numpy(zero_copy_only=False), np.asarray(column.is_null())
                known = [end - start > epoch and not missing[start + epoch] for start, end in spans]
                ends = [_up_to(numbers[start : start + epoch + 1], metric) for start, _ in spans]
                found.append([end if here else None for end, here in zip(ends, known, strict=True)])
            values[part] = (found[0], found[1], found[2])
        return Block(offsets, seeds.tolist(), [epoch + 1] * len(seeds), values, {})


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


def _up_to(numbers: np.ndarray, metric: str) -> float:
    """The number of the last of some epochs, or the sum of their seconds, added one after the other."""
    return float(numbers.cumsum()[-1] if metric == "seconds" else numbers[-1])
