"""The command line: ``advnas search | retrain | query | table | analysis | info``."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from advnas.arguments import flags_of, option, parse
from advnas.checkpoint import write_atomic
from advnas.config import (
    Count,
    Index,
    OptionalCount,
    OptionalFile,
    OptionalFolder,
    RetrainConfig,
    SearchConfig,
    Settings,
)
from advnas.lookup import query, table
from advnas.report.console import Rounds, console, facts, print_table
from advnas.report.numbers import SUFFIXES, duration, interval, written
from advnas.run.folder import RunFolder, task_named_in, write_csv
from advnas.run.watch import Interrupted
from advnas.spaces import SPACES
from advnas.tasks import TASKS, Task

SearchSettings = TypeVar("SearchSettings", bound=SearchConfig)
RetrainSettings = TypeVar("RetrainSettings", bound=RetrainConfig)
Several = Annotated[int, Field(ge=4)]  # enough for two halves with a spread, and for a rank correlation
Preset = Literal["paper", "fast"]
MOVABLE = ("data", "data-dir", "device")  # what a search that goes on may have elsewhere

USAGE = """usage: advnas COMMAND [OPTIONS]

Neural architecture search with one-path estimators.

  advnas search     search a cell
  advnas retrain    train a cell from scratch and test it
  advnas query      look cells up in a benchmark table
  advnas table      make one file of a benchmark, quick to open
  advnas analysis   measure what the estimators' gradients are worth, or how well a supernet ranks cells
  advnas info       what was built, and what this machine offers

advnas COMMAND --help explains the options of each; with --task language those of the other task.
"""

ANALYSIS_USAGE = """usage: advnas analysis MEASUREMENT CHECKPOINT [OPTIONS]

Measurements at the fixed weights of a search.

  advnas analysis signal   every estimator's gradient beside the exact one: bias, noise, cost
  advnas analysis rank     how well the shared weights rank cells, against a benchmark table

advnas analysis MEASUREMENT --help explains the options of each. advnas lab is the same command.
"""


@dataclass(frozen=True, kw_only=True)
class SearchArguments(Generic[SearchSettings]):
    """Search a cell: train a supernet and its architecture in turns.

    For example: advnas search --preset fast --data cifar10 --data-dir DIR, or advnas search --task language --data tiny

    Everything goes to a run folder: settings, history, the cell found, figures. Ctrl-C saves and stops after the step.
    """

    config: OptionalFile = None
    """YAML file of settings, such as another run's config.yaml. Flags count more."""
    preset: Preset = "paper"
    """paper: the protocol of the literature. fast: what finds a good cell in some minutes on two cores."""
    resume: OptionalFolder = None
    """Run folder of an interrupted search, to go on with. Beside it only --data and --data-dir, where the data has moved."""
    settings: OmitArgPrefixes[SearchSettings]


@dataclass(frozen=True, kw_only=True)
class RetrainArguments(Generic[RetrainSettings]):
    """Train a cell from scratch on the whole training set and test it.

    For example: advnas retrain RUN, or advnas retrain --arch "|nor_conv_3x3~0|+|...|" --data cifar10 --data-dir DIR
    """

    run: Positional[Annotated[Path | None, arg(metavar="RUN")]] = None
    """Run folder of a search: takes its cell and its data."""
    config: OptionalFile = None
    """YAML file of settings. Flags count more."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with a retraining that was interrupted: add this to the same command."""
    settings: OmitArgPrefixes[RetrainSettings]


@dataclass(frozen=True, kw_only=True)
class SignalArguments(Settings):
    """Every estimator's gradient beside the exact one, at the fixed weights of a search: bias, noise, cost.

    Writes signal.csv and signal.svg to the run folder.
    """

    run: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """Run folder of a search, or the checkpoint in it."""
    samples: Several = 300
    """Gradients of each estimator."""
    exact_samples: Several = 300
    """Batches for the exact gradient, with 16 paths on each."""
    epoch: Annotated[Index | None, arg(metavar="INT")] = None
    """Measure at the logits that the search had after this epoch, 0: at its start; None: at uniform logits."""
    estimators: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Which to measure, such as advantage critic; none: all that learn."""
    threads: OptionalCount = None
    """CPU threads; None: as many as the search had."""


@dataclass(frozen=True, kw_only=True)
class RankArguments(Settings):
    """How well the shared weights of a search rank cells, against a table.

    Writes rank.csv and rank.svg to the run folder.
    """

    run: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """Run folder of a search, or the checkpoint in it."""
    table: Annotated[Path, arg(metavar="FILE")]
    """The table of the space (CSV or Parquet)."""
    column: str | None = None
    """Column of the table; None: its usual one."""
    cells: Several = 200
    """Cells drawn from all, and as many again from the best 5%."""
    batches: Count = 16
    """Held-out batches for each cell."""
    threads: OptionalCount = None
    """CPU threads; None: as many as the search had."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """What was built, and what this machine offers."""


def search(args: Sequence[str]) -> None:
    from advnas.run import search as run

    task = task_asked_for(args)
    kind = SearchArguments[task.search_config]  # type: ignore[name-defined]
    given = parse(kind, args, "advnas search", kind(settings=task.search_defaults()))
    if given.resume is not None:
        if flags_of(args) - {"--resume", *(f"--{name}" for name in MOVABLE)}:
            raise ValueError("--resume takes every setting from the run folder; leave the other flags out")
        flags = {name.replace("-", "_"): option(args, f"--{name}") for name in MOVABLE}
        moved = {name: value for name, value in flags.items() if value is not None}
        folder = run.resume(given.resume, console(), moved)
    else:
        settings = preset(task, given, option(args, "--space"))
        given = parse(kind, args, "advnas search", replace(given, settings=settings))
        folder = run.start(given.settings, console())
    result, config = RunFolder(folder).result(), RunFolder(folder).config()
    shown = SPACES[config.space].columns
    looked_up = {name: f"{value:g}" for name, value in (result["table"] or {}).items() if name in shown}
    facts(
        {
            "cell": result["arch"],
            **SPACES[config.space].facts(result["arch"]),
            **{name: written(result[name], name) for name in SUFFIXES if name in result},
            **looked_up,
            "search time": duration(result["seconds"]),
            "run folder": str(folder),
            "go on with": f"advnas retrain {shlex.quote(str(folder))}",
        }
    )


def preset(task: type[Task], given: SearchArguments[SearchConfig], space: str | None) -> SearchConfig:
    """The settings of a preset, of the space that is asked for, and of the YAML file, if one is given."""

    def with_file(settings: SearchConfig) -> SearchConfig:
        return settings if given.config is None else settings.with_file(given.config)

    name = f"preset {given.preset}"
    settings = task.search_defaults().with_settings(task.presets[given.preset], name)
    asked = space or with_file(settings).space
    own = SPACES[asked].presets.get(given.preset, {}) if asked in SPACES else {}
    return with_file(settings.with_settings(own, name))


def retrain(args: Sequence[str]) -> None:
    from advnas.run import retrain as run

    task = task_asked_for(args)
    kind = RetrainArguments[task.retrain_config]  # type: ignore[name-defined]
    given = parse(kind, args, "advnas retrain", kind(settings=task.retrain_defaults()))
    settings = task.retrain_defaults() if given.run is None else run.settings_of(given.run)
    if settings.task != task.name:
        raise ValueError(f"{given.run}: is a search of the task {settings.task}; add --task {settings.task}")
    if given.config is not None:
        settings = settings.with_file(given.config)
    given = parse(kind, args, "advnas retrain", replace(given, settings=settings, resume=False))
    command = shlex.join(["advnas", "retrain", *(a for a in args if a != "--resume"), "--resume"])
    folder = RunFolder(run.start(given.settings, given.resume, command, console()))
    result = folder.retrained()
    facts(
        {
            "cell": result["arch"],
            **{f"test {name}": value for name, value in tested(task, result).items()},
            "parameters": f"{result['params']:,}",
            "FLOPs": f"{result['flops']:,}",
            "training time": duration(result["seconds"]),
            "written to": str(folder / "retrain.json"),
        }
    )


def tested(task: type[Task], result: Mapping[str, Any]) -> dict[str, str]:
    """Test metrics in the task's formats, with their intervals where there are any."""
    metrics = {}
    for name, form in task.shown.items():
        if (value := result.get(f"test_{name}")) is not None:
            bounds = result.get(f"test_{name}_95")
            metrics[name] = f"{value:{form}}" if bounds is None else interval(value, bounds)
    return metrics


def task_asked_for(args: Sequence[str]) -> type[Task]:
    """The task of ``--task``, else that of the file of ``--config``, else that of a run folder among the arguments, else image
    classification."""
    name, file = option(args, "--task"), option(args, "--config")
    if name is None and file is not None:
        name = task_named_in(Path(file))
    for word in args:
        name = name or task_named_in(Path(word.partition("=")[2] or word) / "config.yaml")
    return TASKS.get(name or "image", TASKS["image"])  # whoever parses the arguments refuses another one


def analysis(args: Sequence[str]) -> None:
    measurement, *rest = args or [""]
    if measurement in ("-h", "--help"):
        print(ANALYSIS_USAGE, end="")
        return
    if measurement not in MEASUREMENTS:
        got = f", got {measurement!r}" if measurement else ""
        choices = " or ".join(f"advnas analysis {name}" for name in MEASUREMENTS)
        raise ValueError(f"choose a measurement: {choices}{got}")
    MEASUREMENTS[measurement](rest)


def signal(args: Sequence[str]) -> None:
    import torch

    from advnas import analysis
    from advnas.analysis import signal as measurement

    given = parse(SignalArguments, args, "advnas analysis signal")
    if unknown := [name for name in given.estimators if name not in measurement.LEARNING]:
        raise ValueError(f"estimators: must be among {', '.join(measurement.LEARNING)}, got {unknown[0]!r}")
    folder, run = analysis.searched(given.run, given.threads)
    if given.epoch is not None and given.epoch >= len(run.state.logits):
        raise ValueError(f"epoch: must be 0 to {len(run.state.logits) - 1}, epochs of the search, got {given.epoch}")
    edges, found = run.task.space.edge_names, torch.tensor(run.state.logits[given.epoch or 0])
    logits = torch.zeros_like(found) if given.epoch is None else found
    counts = given.samples, given.exact_samples
    with Rounds("measuring gradients", measurement.rounds(*counts), console()) as rounds:
        problem = measurement.Problem.of(run)
        exact, signals = measurement.measure(problem, logits, *counts, given.estimators, rounds.advance)
    write_csv(folder / "signal.csv", measurement.records(signals, edges))
    write_atomic(folder / "signal.svg", measurement.figure(signals))
    where = "uniform logits" if given.epoch is None else f"the logits after epoch {given.epoch}"
    title = f"gradients at {where} beside the exact one, by time to correlation {measurement.REACHED[0]}"
    print_table(title, measurement.columns(edges), measurement.rows(signals))
    facts(
        {
            "reliability": f"{exact.reliability:.3f}, the correlation of two halves of the exact gradient",
            "threads": str(torch.get_num_threads()),
            "written to": f"{folder / 'signal.csv'}, {folder / 'signal.svg'}",
        }
    )


def rank(args: Sequence[str]) -> None:
    from advnas import analysis
    from advnas.analysis import rank as measurement
    from advnas.tables import Table

    given = parse(RankArguments, args, "advnas analysis rank")
    space = SPACES[RunFolder.of(given.run).config().space]
    table = Table.load(given.table, space)
    folder, run = analysis.searched(given.run, given.threads)
    column = given.column or space.columns[0]
    with Rounds("measuring cells", 2 * given.cells, console()) as rounds:
        results = measurement.measure(run, table, column, given.cells, given.batches, rounds.advance)
    write_csv(folder / "rank.csv", measurement.records(results, column))
    write_atomic(folder / "rank.svg", measurement.figure(results, column))
    print_table(f"rank correlation of -loss with {column}", measurement.COLUMNS, measurement.rows(results))
    facts({"written to": f"{folder / 'rank.csv'}, {folder / 'rank.svg'}"})


def info(args: Sequence[str]) -> None:
    from advnas_ext import info as built

    parse(InfoArguments, args, "advnas info")
    print(built.report())


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "search": search,
    "retrain": retrain,
    "query": query,
    "table": table,
    "analysis": analysis,
    "info": info,
}

ALIASES = {"lab": "analysis"}
MEASUREMENTS: dict[str, Callable[[Sequence[str]], None]] = {"signal": signal, "rank": rank}


def message(error: Exception) -> str:
    """What went wrong, in one line. The errors of the operating system show their text without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


def is_out_of_memory(error: Exception) -> bool:
    """Of the host, for which torch has no class of its own, or of a GPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 wrong usage or input, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter stops nothing
    try:
        code = dispatch(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        return 0


def dispatch(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    command, *rest = args
    try:
        name = ALIASES.get(command, command)
        if name not in COMMANDS:
            raise ValueError(f"no such command; choose among {', '.join(COMMANDS)}")
        COMMANDS[name](rest)
    except Interrupted as interrupt:
        print(f"advnas {command}: {interrupt}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"advnas {command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"advnas {command}: {message(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"advnas {command}: too large for the memory; take smaller batches or networks: {message(error)}",
            file=sys.stderr,
        )
        return 2
    return 0
