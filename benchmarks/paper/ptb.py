"""Recurrent cells on Penn Treebank: searches with several estimators for equal time, and every found cell beside random cells, the
published cell of DARTS and an LSTM of as many parameters, all trained from scratch by one recipe.

    python -m benchmarks.paper.ptb --data-dir DIR            # or make paper-ptb DATA_DIR=DIR

Every search and every training is a folder under --out; what is finished is not done again, and an interrupted one goes on.
Equal time: a search has as many epochs as its steps, measured in turns before, allow in the time of --reference's.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from advnas.checkpoint import write_atomic
from advnas.networks.language import LanguageModel
from advnas.run import retrain
from advnas.run.folder import History, RunFolder, read_csv, write_csv
from advnas.run.search import Search
from advnas.spaces.recurrent import DARTS_V2, RECURRENT
from advnas.tasks.language import LanguageRetrainConfig, LanguageSearchConfig, LanguageTask
from advnas_ext import ESTIMATORS
from benchmarks.paper.jobs import Job, equal_time, keep, main, parsed, require_names, run, step_seconds

TIMED = 5  # pairs of steps
SHORT = {"epochs": 10, "units": 128, "dropout": 0.2, "dropout_hidden": 0.0}


@dataclass
class Settings:
    data_dir: Path | None = None
    """Folder that holds train.txt, valid.txt and test.txt of Penn Treebank."""
    data: str = "ptb"
    """Text, as for advnas search."""
    estimators: tuple[str, ...] = ("advantage", "reinforce", "rloo", "random")
    reference: str = "advantage"
    """Estimator whose search sets the time."""
    seeds: tuple[int, ...] = (1, 2, 3)
    random_cells: int = 5
    preset: str = "fast"
    """Of the searches."""
    workers: int = 2
    """Processes at a time, each with one thread."""
    search: dict[str, str] = field(default_factory=dict)
    """Settings of the searches to change, all in one flag, such as --search epochs 3 units 64."""
    retrain: dict[str, str] = field(default_factory=dict)
    """Settings of the trainings to change, all in one flag, such as --retrain epochs 5 units 64. They are advnas retrain's, with
    units 128, epochs 10, dropout 0.2 and dropout_hidden 0: an equal, short budget."""
    found: Path | None = None
    """Table of found cells, paper-ptb-searches.csv of an earlier run: they are trained, and nothing is searched."""
    out: Path = Path("runs/paper-ptb")
    results: Path = Path("benchmarks/results")


class Lstm(nn.Module):
    """torch's LSTM, called as a recurrent cell. Its hidden state is both states side by side."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self.lstm = nn.LSTM(units, units)

    def forward(
        self, x: Tensor, path: object, hidden: Tensor | None, x_mask: Tensor | None, h_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = x if x_mask is None else x * x_mask
        states = None if hidden is None else tuple(part.contiguous()[None] for part in hidden.split(self.units, 1))
        outputs, (h, c) = self.lstm(x, states)
        return outputs, torch.cat([h[0], c[0]], 1)


class LstmTask(LanguageTask):
    """The same text and recipe with an LSTM in place of the cell, whatever the cell."""

    def network(self, arch: str) -> LanguageModel:
        model = LanguageModel(len(self.corpus.words), self.config.units, Lstm(self.config.units))
        return model.fix(self.space.parse(arch))


def lstm_units(words: int, units: int, num_edges: int) -> int:
    """Units of an LSTM whose model has about as many parameters as one with a recurrent cell: 8 u^2 and biases against
    4 u^2 + 2 u^2 for each edge."""
    wanted = units * (words + 4 * units + 2 * units * num_edges)
    return min(range(8, 4096), key=lambda u: abs(u * (words + 8 * u + 8) - wanted))


class Experiment:
    def __init__(self, settings: Settings) -> None:
        require_names("estimators", settings.estimators, ESTIMATORS)
        self.settings = settings
        data = {"data": settings.data, "data_dir": settings.data_dir, "threads": 1}
        presets = LanguageTask.presets[settings.preset]
        searching = LanguageSearchConfig().with_settings({**presets, **parsed(settings.search), **data}, "search")
        self.search_recipe = searching
        self.retrain_recipe = LanguageRetrainConfig().with_settings(
            {**SHORT, **parsed(settings.retrain), **data}, "retrain"
        )
        keep(settings.out / "search.yaml", self.search_recipe)
        keep(settings.out / "retrain.yaml", self.retrain_recipe)

    def go(self) -> None:
        rows = self.found() if self.settings.found is None else read_csv(self.settings.found)
        epochs = {row["estimator"]: row["epochs"] for row in rows}
        trainings = {}
        for name, seed, arch in ((row["estimator"], row["seed"], row["arch"]) for row in rows):
            trainings[name, seed] = self.training(f"{name}-{seed}", arch, seed)
        draw = torch.Generator().manual_seed(0)
        for number in range(self.settings.random_cells):
            ops = torch.randint(len(RECURRENT.ops), (RECURRENT.num_edges,), generator=draw)
            trainings["random cells", number] = self.training(f"drawn-{number}", RECURRENT.format(ops), 1)
        trainings["DARTS's cell", 1] = self.training("darts", DARTS_V2, 1, "--space", "darts_recurrent")
        run("training", list(trainings.values()), self.settings.workers)
        self.train_lstm()
        report(self.settings, epochs, trainings, self.settings.out / "lstm")

    def found(self) -> History:
        """What the searches find, a row each; also in the file that --found takes."""
        epochs = self.epochs()
        names, seeds = self.settings.estimators, self.settings.seeds
        searches = {(name, seed): self.search(name, seed, epochs[name]) for name in names for seed in seeds}
        run("searching", list(searches.values()), self.settings.workers)
        rows = []
        for (name, seed), job in searches.items():
            last = {column: job.run.history()[-1][column] for column in ("valid_perplexity", "entropy")}
            rows.append(
                {"estimator": name, "seed": seed, "epochs": epochs[name], **last, "arch": job.run.result()["arch"]}
            )
        self.settings.results.mkdir(parents=True, exist_ok=True)
        write_csv(self.settings.results / "paper-ptb-searches.csv", rows)
        return rows

    def search(self, name: str, seed: int, epochs: int) -> Job:
        flags = ("--config", str(self.settings.out / "search.yaml"), "--estimator", name)
        flags += ("--seed", str(seed), "--epochs", str(epochs))
        return Job.search(self.settings.out / f"search-{name}-{seed}", *flags)

    def training(self, name: str, arch: str, seed: int, *flags: str) -> Job:
        """That of a cell; another cell of the same name has another folder."""
        folder = self.settings.out / f"{name}-{hashlib.sha256(arch.encode()).hexdigest()[:8]}"
        recipe = str(self.settings.out / "retrain.yaml")
        command = ("retrain", "--config", recipe, "--arch", arch, "--seed", str(seed), "--out", str(folder), *flags)
        going_on = RunFolder(folder).checkpoint("retrain").exists()
        return Job(folder, (*command, "--resume") if going_on else command, "retrain.json")

    def train_lstm(self) -> None:
        """In this process: no command line knows an LSTM."""
        folder = RunFolder(self.settings.out / "lstm")
        if (folder / "retrain.json").exists():
            return
        arch = RECURRENT.format(torch.zeros(RECURRENT.num_edges, dtype=torch.int64))
        config = replace(self.retrain_recipe, arch=arch, seed=1, out=folder.path)
        words = len(LanguageTask(config).corpus.words)
        config = replace(config, units=lstm_units(words, config.units, RECURRENT.num_edges))
        retrain.train(LstmTask(config), config, go_on=folder.checkpoint("retrain").exists())

    def epochs(self) -> dict[str, int]:
        return equal_time(
            self.settings.out / "epochs.json",
            self.search_recipe,
            self.settings.reference,
            self.settings.estimators,
            self.cost,
        )

    def cost(self) -> dict[str, float]:
        """Seconds of a step of each estimator."""
        torch.set_num_threads(1)
        names = dict.fromkeys([self.settings.reference, *self.settings.estimators])
        recipe = replace(self.search_recipe, warmup_epochs=0, threads=1)
        searches = {name: Search(replace(recipe, estimator=name)) for name in names}
        return step_seconds({name: (search.task, search.state) for name, search in searches.items()}, TIMED)


def report(settings: Settings, epochs: Mapping[str, int], trainings: Mapping[tuple[str, int], Job], lstm: Path) -> None:
    """Write and print the rows of all trainings and the table."""
    results = {key: job.run.retrained() for key, job in trainings.items()}
    results["LSTM", 1] = RunFolder(lstm).retrained()
    names = ("valid_perplexity", "test_perplexity", "params", "arch")
    rows = [
        {"cell": kind, "seed": seed, **{name: found[name] for name in names}} for (kind, seed), found in results.items()
    ]
    settings.results.mkdir(parents=True, exist_ok=True)
    write_csv(settings.results / "paper-ptb.csv", rows)
    lines = [
        "| cell | epochs of search | validation perplexity, mean | by seed | test perplexity, mean | parameters |",
        "|---|---:|---:|---|---:|---:|",
    ]
    by_kind = {
        kind: [row for row in rows if row["cell"] == kind] for kind in dict.fromkeys(kind for kind, _ in results)
    }
    means = {kind: statistics.mean(row["valid_perplexity"] for row in same) for kind, same in by_kind.items()}
    for kind in sorted(by_kind, key=means.__getitem__):
        same = by_kind[kind]
        seeds = ", ".join(f"{row['valid_perplexity']:.1f}" for row in same)
        test = statistics.mean(row["test_perplexity"] for row in same)
        searched, params = epochs.get(kind, ""), same[0]["params"]
        lines.append(f"| {kind} | {searched} | {means[kind]:.1f} | {seeds} | {test:.1f} | {params:,} |")
    text = "\n".join(lines) + "\n"
    write_atomic(settings.results / "paper-ptb.md", text)
    print(text)


if __name__ == "__main__":
    main("ptb", __doc__, Settings, lambda settings: Experiment(settings).go())
