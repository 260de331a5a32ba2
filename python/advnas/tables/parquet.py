"""Tables as one Parquet file, written cell by cell: never more than a few hundred of them are in memory. The file says in its
metadata which benchmark and which space it is of."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from advnas.tables.trials import COSTS, DATASETS, EPOCHS, METRICS, PARTS, SUMMARY, Cell, Trial, agreed

ARCH, INDEX = "arch_str", "index"
MAGIC = b"PAR1"
KEY = b"advnas"
LEFT_OUT = (
    b"advnas.left_out"  # indices of cells that have results, but are not among those that the benchmark calls evaluated
)
FORMAT = 1  # raised when the columns mean something else
ROWS = 512  # in a group of rows: the least that is read for the numbers of one epoch


def metadata(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    """What the file says of itself: its format, the benchmark, the space, the hyper-parameters.

    Raises:
        ValueError: it does not say, or in another format.
    """
    found = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{path}: must be a table of format {FORMAT}, got {found.get('format')}; make one with advnas table convert"
        )
    return found


def opened(path: Path) -> pq.ParquetFile:
    """A table, mapped into memory: only its footer has been read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ValueError:
    """What to raise where pyarrow fails on a table."""
    return ValueError(f"{path}: damaged ({' '.join(str(error).split())}); convert its source again")


def write_rows(file: BinaryIO, benchmark: str, space: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """A table of numbers alone: columns ``index``, ``arch_str`` and others, of equal length."""
    about = {KEY: json.dumps({"format": FORMAT, "benchmark": benchmark, "space": space, "hps": []})}
    kinds = {INDEX: pa.int64(), ARCH: pa.string()}
    arrays = {name: pa.array(values, kinds.get(name, pa.float64())) for name, values in columns.items()}
    pq.write_table(pa.table(arrays).replace_schema_metadata(about), file, compression="zstd", write_statistics=False)


class _Lists:
    """A column of lists: a list or null for each row, and each value there or null."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self.clear()

    def add(self, values: np.ndarray, there: np.ndarray | None = None) -> None:
        self.offsets.append(self.length)
        self.values.append(values)
        self.there.append(np.ones(len(values), bool) if there is None else there)
        self.length += len(values)

    def add_null(self) -> None:
        self.offsets.append(None)

    def array(self) -> pa.Array:
        values = pa.array([], self.kind)
        if self.values:
            values = pa.array(np.concatenate(self.values), self.kind, mask=~np.concatenate(self.there))
        offsets = pa.array([*self.offsets, self.length], pa.int32())
        return pa.ListArray.from_arrays(offsets, values)

    def clear(self) -> None:
        self.offsets: list[int | None] = []
        self.values: list[np.ndarray] = []
        self.there: list[np.ndarray] = []
        self.length = 0


class Writer:
    """Writes cells with their trainings.

    Args:
        file: new, open for writing.
        benchmark, space: their names, for the metadata.
        archs: strings of all cells, by index.
        hps: the hyper-parameters that there may be, the longest training last.
        settle: whether trainings that disagree on FLOPs and parameters are settled as NATS-Bench does it.
    """

    def __init__(
        self, file: BinaryIO, benchmark: str, space: str, archs: Sequence[str], hps: Sequence[str], settle: bool
    ) -> None:
        self._archs, self._hps, self._settle = archs, hps, settle
        self._scalars: dict[str, list[Any]] = {INDEX: [], ARCH: []}
        self._scalars |= {f"{name}_{hp}": [] for hp in reversed(hps) for name in SUMMARY}
        self._scalars |= {"flops_m": [], "params_m": [], "latency_s": []}
        self._lists: dict[str, _Lists] = {}
        for hp in hps:
            self._lists[f"{hp}/datasets"] = _Lists(pa.string())
            for dataset in DATASETS:
                group = f"{hp}/{dataset}"
                self._lists |= {f"{group}/{name}": _Lists(pa.int64()) for name in ("seed", EPOCHS)}
                self._lists |= {f"{group}/{name}": _Lists(pa.float64()) for name in COSTS}
                for part in PARTS:
                    for metric in METRICS:
                        self._lists |= {
                            f"{group}/{part}/{metric}{end}": _Lists(pa.float64()) for end in ("", f"/{EPOCHS}")
                        }
        self._groups = {
            f"{hp}/{dataset}": [column for name, column in self._lists.items() if name.startswith(f"{hp}/{dataset}/")]
            for hp in hps
            for dataset in DATASETS
        }
        kinds = {INDEX: pa.int64(), ARCH: pa.string()}
        fields = [pa.field(name, kinds.get(name, pa.float64())) for name in self._scalars]
        fields += [pa.field(name, pa.list_(column.kind)) for name, column in self._lists.items()]
        about = {KEY: json.dumps({"format": FORMAT, "benchmark": benchmark, "space": space, "hps": list(hps)})}
        self._schema = pa.schema(fields, about)
        self._file = pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._written: set[int] = set()

    def add(self, cell: Cell) -> None:
        """The next row.

        Raises:
            ValueError: the cell is none of the benchmark, is there already, or has other hyper-parameters.
        """
        index = cell.index
        if not 0 <= index < len(self._archs) or index in self._written:
            raise ValueError(f"cell {index} must come once and be below {len(self._archs)}")
        if other := [hp for hp in cell.trials if hp not in self._hps]:
            raise ValueError(f"cell {index} must have hyper-parameters {' or '.join(self._hps)}, got {other[0]!r}")
        self._written.add(index)
        for name, value in self._row(cell).items():
            self._scalars[name].append(value)
        for hp in self._hps:
            by_dataset = cell.trials.get(hp)
            names = self._lists[f"{hp}/datasets"]
            names.add_null() if by_dataset is None else names.add(np.array(list(by_dataset), object))
            for dataset in DATASETS:
                self._add_trials(f"{hp}/{dataset}", (by_dataset or {}).get(dataset))
        if len(self._scalars[INDEX]) == ROWS:
            self._flush()

    def close(self, evaluated: Collection[int] | None = None) -> None:
        """Write what is left, and the cells that nothing is known of. Before this the file is no good.

        Args:
            evaluated: indices of the cells that the benchmark calls evaluated; None: all that were added.
        """
        left_out = [] if evaluated is None else sorted(self._written - set(evaluated))
        for index in range(len(self._archs)):
            if index not in self._written:
                self.add(Cell(index))
        self._flush()
        self._file.add_key_value_metadata({LEFT_OUT: json.dumps(left_out)})
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _add_trials(self, group: str, trials: Sequence[Trial] | None) -> None:
        if trials is None:
            for column in self._groups[group]:
                column.add_null()
            return
        self._lists[f"{group}/seed"].add(np.array([trial.seed for trial in trials], np.int64))
        self._lists[f"{group}/{EPOCHS}"].add(np.array([trial.epochs for trial in trials], np.int64))
        for place, name in enumerate(COSTS):
            self._lists[f"{group}/{name}"].add(np.array([trial.costs[place] for trial in trials], float))
        for part in PARTS:
            for place, metric in enumerate(METRICS):
                curves = [trial.curves[part][place] for trial in trials]
                values = np.concatenate([curve.values for curve in curves]) if curves else np.zeros(0)
                there = np.concatenate([curve.there for curve in curves]) if curves else np.zeros(0, bool)
                self._lists[f"{group}/{part}/{metric}/{EPOCHS}"].add(values, there)
                # Times add up; the others are those of the last epoch.
                last = [curve.values.cumsum() if metric == "seconds" else curve.values for curve in curves]
                known = [curve.there.all() if metric == "seconds" else curve.there[-1] for curve in curves]
                self._lists[f"{group}/{part}/{metric}"].add(
                    np.array([v[-1] for v in last], float), np.array(known, bool)
                )

    def _row(self, cell: Cell) -> dict[str, Any]:
        row = {INDEX: cell.index, ARCH: self._archs[cell.index]}
        row |= dict.fromkeys([name for name in self._scalars if name not in row])
        for hp, by_dataset in cell.trials.items():
            for name, (dataset, part) in SUMMARY.items():
                accuracies = [trial.curves[part][METRICS.index("accuracy")] for trial in by_dataset.get(dataset, ())]
                if accuracies and all(curve.there[-1] for curve in accuracies):
                    row[f"{name}_{hp}"] = sum(float(curve.values[-1]) for curve in accuracies) / len(accuracies)
        longest = cell.trials.get(self._hps[-1], {})
        if trials := longest.get("cifar10") or longest.get("cifar10-valid"):
            params, flops, latencies = (list(column) for column in zip(*(trial.costs for trial in trials), strict=True))
            measured = [latency for latency in latencies if latency > 0]
            for name, values in (("params_m", params), ("flops_m", flops)):
                with contextlib.suppress(ValueError):  # nothing to agree on: whoever asks for it will be told
                    settled = agreed(values, [trial.seed for trial in trials]) if self._settle else values
                    row[name] = sum(settled) / len(settled)
            row["latency_s"] = sum(measured) / len(measured) if measured else None
        return row

    def _flush(self) -> None:
        if not self._scalars[INDEX]:
            return
        arrays = [pa.array(values, self._schema.field(name).type) for name, values in self._scalars.items()]
        arrays += [column.array() for column in self._lists.values()]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=ROWS)
        for values in self._scalars.values():
            values.clear()
        for column in self._lists.values():
            column.clear()
