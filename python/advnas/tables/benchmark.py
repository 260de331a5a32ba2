"""The questions that NAS-Bench-201's and NATS-Bench's programs answer, asked of one Parquet file, under the same names.

Opening it reads the file's footer and the cells' strings. What a question needs is read at the first one of its kind: the numbers
after the last epoch of all cells for one data set and hyper-parameters, or those of one other epoch for a few hundred cells.
"""

from __future__ import annotations

import math
import operator
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advnas.files import at_home
from advnas.tables import parquet
from advnas.tables.blocks import Block, Blocks, Number
from advnas.tables.parquet import ARCH, INDEX
from advnas.tables.trials import COSTS, DATASETS, PARTS, agreed

# What an answer calls the parts of each data set. What was tried for one of them is left out where it is missing.
_ALL = (("train", "train"), ("valid", "x-valid"), ("test", "x-test"), ("valtest", "ori-test"))
PARTS_OF = {
    "cifar10-valid": (("train", "train"), ("valid", "x-valid"), ("test", "ori-test")),
    "cifar10": (("train", "train"), ("test", "ori-test"), ("valid", "x-valid")),
    "cifar100": _ALL,
    "ImageNet16-120": _ALL,
}
# The same with the names of an answer; required: an answer without it is none.
ANSWERS = {
    dataset: tuple(
        (
            part,
            name == "train" or (dataset == "cifar10-valid" and name == "valid"),
            tuple(f"{name}-{what}" for what in ("loss", "accuracy", "per-time", "all-time")),
        )
        for name, part in parts
    )
    for dataset, parts in PARTS_OF.items()
}
COMMENTS = {
    "cifar10-valid": "Trained for {} epochs on CIFAR-10's training half; valid is its other half, test CIFAR-10's test set.",
    "cifar10": "Trained for {} epochs on all of CIFAR-10's training set; test is its test set.",
}


class Benchmark:
    """A benchmark of cells with trainings, in one Parquet file.

    ``hp`` is the number of epochs as a string or an integer. A cell is its number or its string; an object with ``tostr()`` will
    do. Answers are those of the programs of that name, with these differences: an answer is a float where they give numpy's; what
    they do not have is a ValueError, whatever they raise; numpy's integers are numbers of cells too; nothing is printed.

    Args:
        path: a file that ``advnas table convert`` made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or one without trainings.
    """

    settles = True
    comments = True
    marked = "loss = {:.3f} & top1 = {:.2f}%"  # a loss and an accuracy, as the program prints them
    tested: tuple[str, ...] = ("cifar10", "cifar100", "ImageNet16-120")  # the data sets whose test is printed

    def __init__(self, path: Path) -> None:
        self.path = at_home(path)
        self._blocks = Blocks(self.path)
        self.name, self.hps = self._blocks.about["benchmark"], tuple(self._blocks.about["hps"])
        if not self.hps:
            raise ValueError(f"{self.path}: has no trainings, as it was made from {self.name}; use advnas.tables.Table")
        cells = self._blocks.read([INDEX, ARCH])
        self._rows: list[int] = cells[INDEX].to_numpy().argsort().tolist()  # of each cell, by its number
        archs = cells[ARCH].to_pylist()
        self.meta_archs: list[str] = [archs[row] for row in self._rows]
        self._index = {arch: index for index, arch in enumerate(self.meta_archs)}
        self._left_out = self._blocks.left_out()

    def __len__(self) -> int:
        return len(self.meta_archs)

    def __getitem__(self, index: int) -> str:
        return self.meta_archs[index]

    def arch(self, index: int) -> str:
        """The string of a cell.

        Raises:
            ValueError: there is no such number.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"arch: must be from 0 to {len(self) - 1}, got {index}")
        return self.meta_archs[index]

    def query_index_by_arch(self, arch: Any) -> int:
        """The number of a cell; -1: no cell of the benchmark.

        Raises:
            ValueError: it is given by a number that is out of range.
        """
        if isinstance(arch, str):
            return self._index.get(arch, -1)
        if hasattr(arch, "tostr"):
            return self._index.get(arch.tostr(), -1)
        try:
            index = operator.index(arch)
        except TypeError:
            return -1
        if not 0 <= index < len(self):
            raise ValueError(f"query_index_by_arch: must be from 0 to {len(self) - 1}, got {index}")
        return index

    def query_by_arch(self, arch: Any, hp: str | int) -> str | None:
        """What is known of a cell, as text: means over its trainings. None, with a warning: nothing is.

        Raises:
            ValueError: a number is out of range, the hyper-parameters are unknown, or a part was not measured.
        """
        hp, index = self._hp(hp), self.query_index_by_arch(arch)
        names = None if index < 0 else self._blocks.datasets(hp)[self._rows[index]]
        if names is None:
            warnings.warn(f"query_by_arch: nothing is known of {arch!r} at {hp} epochs", stacklevel=2)
            return None
        lines = [self.meta_archs[index], f"datasets : {names}, extra-info : arch-index={index}"]
        for name in names:
            costs = self.get_cost_info(index, name, hp)
            latency = None if costs["latency"] is None else f"{costs['latency'] * 1000:.2f}"
            lines.append(
                f"{name:14s} FLOP={costs['flops']:6.2f} M, Params={costs['params']:.3f} MB, latency={latency} ms."
            )
            block, row = self._block(index, name, None, hp)
            texts = []
            for word, part in PARTS_OF[name]:
                if (
                    word == "valtest"
                    or (word == "valid" and name == "cifar10")
                    or (word == "test" and name not in self.tested)
                ):
                    continue
                if not block.there[part][row]:
                    raise ValueError(f"query_by_arch: cell {index} has no {part} on {name} at {hp} epochs")
                loss, accuracy = (values[row] for values in block.mean.parts[part][:2])
                wide = "test " if name == "cifar10" and word == "test" else word  # as the programs line it up
                texts.append(f"{wide} : [{self.marked.format(loss, accuracy)}]")
            lines.append(f"{name:14s} {', '.join(texts)}")
        return "\n".join(lines)

    def get_more_info(
        self, index: Any, dataset: str, iepoch: int | None = None, hp: str | int = "12", is_random: bool | int = True
    ) -> dict[str, Any]:
        """Losses, accuracies (percent) and times (seconds, of an epoch and up to it) of a cell, by part. A part that was not
        measured is left out.

        Args:
            index: the cell.
            dataset: that it was trained on, one of ``DATASETS``.
            iepoch: epoch, from 0; None: the last one.
            hp: the hyper-parameters.
            is_random: True: of one training, drawn with :func:`random.choice`; False: means over all; or the seed of one.

        Raises:
            ValueError: nothing is known of the cell, or there is no such data set, epoch or seed.
        """
        block, row = self._block(index, dataset, iepoch, self._hp(hp))
        first, end = block.offsets[row], block.offsets[row + 1]
        seeds = block.seeds[first:end]
        if is_random is False:
            values, place = block.mean, row
        else:
            seed = random.choice(seeds) if is_random is True else is_random
            if not isinstance(seed, (int, np.integer)) or seed not in seeds:
                raise ValueError(
                    f"get_more_info: is_random must be True, False or a seed among {seeds}, got {is_random!r}"
                )
            values, place = block.each, first + seeds.index(seed)
        epochs = values.epochs[place]
        info: dict[str, Any] = {}
        for part, required, (loss_name, accuracy_name, each_name, all_name) in ANSWERS[dataset]:
            if not block.there[part][row]:
                if required:
                    raise ValueError(f"get_more_info: {index!r} has no {part} on {dataset} at this epoch")
                continue
            loss, accuracy, seconds = values.parts[part]
            time = seconds[place]
            info[loss_name], info[accuracy_name] = loss[place], accuracy[place]
            info[each_name], info[all_name] = None if time is None else time / epochs, time
        if self.comments and dataset in COMMENTS:
            info["comment"] = COMMENTS[dataset].format(hp)
        return info

    def get_cost_info(self, index: Any, dataset: str, hp: str | int = "12") -> dict[str, Number]:
        """FLOPs and parameters (millions), latency (seconds, None: not measured), and times: means over the trainings of a cell.

        Raises:
            ValueError: nothing is known of the cell there.
        """
        block, row = self._block(index, dataset, None, self._hp(hp))
        info: dict[str, Number] = self._costs(block, row)
        places = range(block.offsets[row], block.offsets[row + 1])
        for part in PARTS:
            if part == "train" or block.there[part][row]:
                seconds = block.each.parts[part][2]
                total = info[f"T-{part}@total"] = block.mean.parts[part][2][row]
                each = [(seconds[place] or 0.0) / block.each.epochs[place] for place in places]
                info[f"T-{part}@epoch"] = None if total is None else sum(each) / len(each)
        return info

    def _costs(self, block: Block, row: int) -> dict[str, Any]:
        first, end = block.offsets[row], block.offsets[row + 1]
        params: Sequence[float]
        flops: Sequence[float]
        params, flops, latencies = (block.costs[name][first:end] for name in COSTS)
        if self.settles:
            params, flops = (agreed(values, block.seeds[first:end]) for values in (params, flops))
        measured = [latency for latency in latencies if latency > 0]
        return {
            "flops": sum(flops) / len(flops),
            "params": sum(params) / len(params),
            "latency": sum(measured) / len(measured) if measured else None,
        }

    def _find_best(
        self, dataset: str, metric_on_set: str, flops: float | None, params: float | None, hp: str | int
    ) -> tuple[int, float | None]:
        hp = self._hp(hp)
        dataset, part = _part(dataset, metric_on_set)
        best, highest = -1, -math.inf
        for index, row in enumerate(self._rows):
            if index in self._left_out or self._blocks.datasets(hp)[row] is None:
                continue
            block, _ = self._block(index, dataset, None, hp)
            if flops is not None or params is not None:
                costs = self._costs(block, row)
                if (flops is not None and costs["flops"] > flops) or (params is not None and costs["params"] > params):
                    continue
            if not block.there[part][row]:
                raise ValueError(f"find_best: cell {index} has no {part} on {dataset} at {hp} epochs")
            accuracy: Any = block.mean.parts[part][1][row]
            if best < 0 or highest < accuracy:  # so the first of equals
                best, highest = index, accuracy
        return best, None if best < 0 else highest

    def _hp(self, hp: str | int) -> str:
        if str(hp) not in self.hps:
            raise ValueError(f"hp: must be among {', '.join(self.hps)} in {self.path}, got {hp!r}")
        return str(hp)

    def _block(self, cell: Any, dataset: str, epoch: int | None, hp: str) -> tuple[Block, int]:
        """Where the numbers of a cell are, and its row there."""
        index = self.query_index_by_arch(cell)
        if dataset not in DATASETS:
            raise ValueError(f"dataset: must be among {', '.join(DATASETS)}, got {dataset!r}")
        last = self._blocks.last(hp, dataset)
        row = self._rows[index]
        first, end = last.offsets[row], last.offsets[row + 1]
        if index < 0 or first == end:
            raise ValueError(f"{self.path}: nothing is known of {cell!r} on {dataset} at {hp} epochs")
        if epoch is None:
            return last, row
        epochs = last.each.epochs[first:end]
        if not 0 <= operator.index(epoch) < min(epochs):
            raise ValueError(f"iepoch: must be None or from 0 to {min(epochs) - 1}, got {epoch}")
        return self._blocks.at(hp, dataset, operator.index(epoch), row), 0


class NasBench201(Benchmark):
    """NAS-Bench-201, as the package nas-bench-201 2.1 asks it."""

    settles = False
    comments = False
    marked = "loss = {:.3f}, top1 = {:.2f}%"

    def find_best(
        self,
        dataset: str,
        metric_on_set: str,
        FLOP_max: float | None = None,
        Param_max: float | None = None,
        hp: str | int = "12",
    ) -> tuple[int, float | None]:
        """The number of the cell with the highest mean accuracy, and that; the first of equals. (-1, None): none is within the
        limits.

        Args:
            dataset: that it was trained on; ``cifar10`` with ``valid`` means ``cifar10-valid``.
            metric_on_set: ``train``, ``valid``, ``test``, or one of ``PARTS``.
            FLOP_max, Param_max: millions.
            hp: the hyper-parameters.

        Raises:
            ValueError: there is no such part, or a cell lacks it.
        """
        return self._find_best(dataset, metric_on_set, FLOP_max, Param_max, hp)


class NatsTopology(Benchmark):
    """NATS-Bench's topology space, as the package nats-bench 1.8 asks it."""

    def find_best(
        self,
        dataset: str,
        metric_on_set: str,
        flop_max: float | None = None,
        param_max: float | None = None,
        hp: str | int = "12",
        enforce_all: bool | None = None,
    ) -> tuple[int, float | None]:
        """As :meth:`NasBench201.find_best`; every cell is always looked at, whatever ``enforce_all``."""
        return self._find_best(dataset, metric_on_set, flop_max, param_max, hp)


class NatsSize(NatsTopology):
    """NATS-Bench's size space, as the package nats-bench 1.8 asks it."""

    tested = DATASETS


KINDS: dict[str, type[NasBench201 | NatsTopology]] = {
    "nas-bench-201": NasBench201,
    "nats-topology": NatsTopology,
    "nats-size": NatsSize,
}


def open_benchmark(path: Path) -> NasBench201 | NatsTopology:
    """The benchmark that a Parquet file holds; raises as :class:`Benchmark`."""
    path = at_home(path)
    name = parquet.metadata(parquet.opened(path), path)["benchmark"]
    return KINDS.get(name, NasBench201)(path)


def _part(dataset: str, metric_on_set: str) -> tuple[str, str]:
    """What a question for a best cell means by a data set and a part."""
    if dataset not in DATASETS:
        raise ValueError(f"find_best: dataset must be among {', '.join(DATASETS)}, got {dataset!r}")
    part = metric_on_set
    if (dataset, part) == ("cifar10", "valid"):
        dataset = "cifar10-valid"
    if part == "valid":
        part = "x-valid"
    elif part == "test" and dataset != "cifar10-valid":
        part = "ori-test" if dataset == "cifar10" else "x-test"
    if part not in PARTS:
        raise ValueError(
            f"find_best: metric_on_set must be train, valid, test, or among {', '.join(PARTS)}, got {metric_on_set!r}"
        )
    return dataset, part
