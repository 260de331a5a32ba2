"""The command line: ``advnas search | retrain | query | lab | info``."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from advnas import report
from advnas.checkpoint import write_atomic
from advnas.config import (
    PRESETS,
    Count,
    OptionalCount,
    OptionalFile,
    OptionalFolder,
    RetrainConfig,
    SearchConfig,
    Settings,
)
from advnas.watch import Interrupted

T = TypeVar("T")
Several = Annotated[int, Field(ge=4)]  # enough for two halves with a spread, and for a rank correlation

# Columns of a table that query --top shows, where it has them.
QUERIED = ("cifar10_test_200", "cifar100_test_200", "imagenet16_120_test_200", "params_m", "flops_m")

USAGE = """usage: advnas COMMAND [OPTIONS]

Neural architecture search with one-path estimators.

  advnas search     search a cell
  advnas retrain    train a cell from scratch and test it
  advnas query      look cells up in a NAS-Bench-201 table
  advnas lab        measure what the estimators' gradients are worth, or how well a supernet ranks cells
  advnas info       what was built, and what this machine offers

advnas COMMAND --help explains the options of each.
"""

LAB_USAGE = """usage: advnas lab MEASUREMENT CHECKPOINT [OPTIONS]

Measurements at the fixed weights of a search.

  advnas lab signal   every estimator's gradient beside the exact one: bias, noise, cost
  advnas lab rank     how well the shared weights rank cells, against a NAS-Bench-201 table

advnas lab MEASUREMENT --help explains the options of each.
"""


@dataclass(frozen=True, kw_only=True)
class SearchArguments:
    """Search a cell: train a supernet and its architecture in turns.

    For example: advnas search --preset fast --data cifar10 --data-dir DIR

    Everything goes to a run folder: settings, history, the cell found, figures. Ctrl-C saves and stops after the step.
    """

    config: OptionalFile = None
    """YAML file of settings, such as another run's config.yaml. Flags count more."""
    preset: Literal[tuple(PRESETS)] = "paper"  # type: ignore[valid-type]
    """paper: NAS-Bench-201's protocol. fast: a small supernet, about seven minutes for CIFAR-10 on two cores."""
    resume: OptionalFolder = None
    """Run folder of an interrupted search: go on as if it had not stopped. Takes no other flag."""
    settings: OmitArgPrefixes[SearchConfig] = field(default_factory=SearchConfig)


@dataclass(frozen=True, kw_only=True)
class RetrainArguments:
    """Train a cell from scratch on the whole training set and test it.

    For example: advnas retrain RUN, or advnas retrain --arch "|nor_conv_3x3~0|+|...|" --data cifar10 --data-dir DIR
    """

    run: Positional[Annotated[Path | None, arg(metavar="RUN")]] = None
    """Run folder of a search: takes its cell and its data."""
    config: OptionalFile = None
    """YAML file of settings. Flags count more."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with a retraining that was interrupted: add this to the same command."""
    settings: OmitArgPrefixes[RetrainConfig] = field(default_factory=RetrainConfig)


@dataclass(frozen=True, kw_only=True)
class QueryArguments:
    """Look cells up in a NAS-Bench-201 table."""

    file: Positional[Annotated[Path, arg(metavar="FILE")]]
    """The table (CSV)."""
    arch: Annotated[str | None, arg(metavar="CELL")] = None
    """The cell, such as "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|none~2|"."""
    top: Annotated[int | None, arg(metavar="INT")] = None
    """Print that many of the best cells."""
    by: str = "cifar10_test_200"
    """Column that says which cells are best."""


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
    uniform: bool = True
    """Measure at uniform logits, where a search starts; --no-uniform: at the logits of the checkpoint."""
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
    """The NAS-Bench-201 table (CSV)."""
    column: str = "cifar10_test_200"
    """Column of the table."""
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
    from advnas import run

    given = parse(SearchArguments, args, "advnas search", SearchArguments())
    if given.resume is not None:
        if len(args) > 2 or (len(args) == 2 and args[0] != "--resume"):
            raise ValueError("--resume takes every setting from the run folder; leave the other flags out")
        folder = run.resume(given.resume, report.console())
    else:
        settings = SearchConfig().with_settings(PRESETS[given.preset], f"preset {given.preset}")
        if given.config is not None:
            settings = settings.with_file(given.config)
        given = parse(SearchArguments, args, "advnas search", replace(given, settings=settings))
        folder = run.start(given.settings, report.console())
    result = json.loads((folder / "result.json").read_text())
    looked_up = {name: f"{value:g}" for name, value in (result["table"] or {}).items() if name in QUERIED}
    report.facts(
        {
            "cell": result["arch"],
            **looked_up,
            "search time": report.duration(result["seconds"]),
            "run folder": str(folder),
            "go on with": f"advnas retrain {shlex.quote(str(folder))}",
        }
    )


def retrain(args: Sequence[str]) -> None:
    from advnas import retrain as retraining

    given = parse(RetrainArguments, args, "advnas retrain", RetrainArguments())
    settings = RetrainConfig() if given.run is None else retraining.settings_of(given.run)
    if given.config is not None:
        settings = settings.with_file(given.config)
    given = parse(RetrainArguments, args, "advnas retrain", replace(given, settings=settings))
    command = shlex.join(["advnas", "retrain", *(a for a in args if a != "--resume"), "--resume"])
    folder = retraining.start(given.settings, given.resume, command, report.console())
    result = json.loads((folder / retraining.RESULT).read_text())
    report.facts(
        {
            "cell": result["arch"],
            "test accuracy": report.accuracy(result["test_accuracy"], result["test_accuracy_95"]),
            "parameters": f"{result['params']:,}",
            "FLOPs": f"{result['flops']:,}",
            "training time": report.duration(result["seconds"]),
            "written to": str(folder / retraining.RESULT),
        }
    )


def query(args: Sequence[str]) -> None:
    from advnas.tables.nasbench201 import Table

    given = parse(QueryArguments, args, "advnas query")
    if (given.arch is None) == (given.top is None):
        raise ValueError("give one of --arch and --top")
    table = Table.load(given.file)
    if given.arch is not None:
        report.facts({"cell": given.arch, **{name: f"{value:g}" for name, value in table.lookup(given.arch).items()}})
        return
    columns = [name for name in dict.fromkeys([given.by, *QUERIED]) if name in table.columns]
    rows = [[arch, *(f"{row[name]:g}" for name in columns)] for arch, row in table.top(given.top or 0, given.by)]
    report.console().print(report.table(f"the best by {given.by}", ["cell", *columns], rows))


def lab(args: Sequence[str]) -> None:
    measurement, *rest = args or [""]
    if measurement in ("-h", "--help"):
        print(LAB_USAGE, end="")
        return
    if measurement not in LAB:
        got = f", got {measurement!r}" if measurement else ""
        raise ValueError(f"choose a measurement: {' or '.join(f'advnas lab {name}' for name in LAB)}{got}")
    LAB[measurement](rest)


def signal(args: Sequence[str]) -> None:
    import torch

    from advnas import lab
    from advnas.lab import signal as measurement
    from advnas.run import Files, write_csv

    given = parse(SignalArguments, args, "advnas lab signal")
    folder, state = lab.searched(given.run, given.threads)
    edges, _ = Files(state, None, folder).names()
    with report.Rounds("measuring gradients", given.samples + given.exact_samples, report.console()) as rounds:
        exact, signals = measurement.measure(state, given.samples, given.exact_samples, given.uniform, rounds.advance)
    write_csv(folder / "signal.csv", measurement.records(signals, edges))
    write_atomic(folder / "signal.svg", measurement.figure(signals))
    where = "uniform logits" if given.uniform else "the logits of the checkpoint"
    title = f"gradients at {where} beside the exact one, by time to correlation {measurement.REACHED[0]}"
    report.console().print(report.table(title, measurement.columns(edges), measurement.rows(signals)))
    report.facts(
        {
            "reliability": f"{exact.reliability:.3f}, the correlation of two halves of the exact gradient",
            "threads": str(torch.get_num_threads()),
            "written to": f"{folder / 'signal.csv'}, {folder / 'signal.svg'}",
        }
    )


def rank(args: Sequence[str]) -> None:
    from advnas import lab
    from advnas.lab import rank as measurement
    from advnas.run import write_csv
    from advnas.tables.nasbench201 import Table

    given = parse(RankArguments, args, "advnas lab rank")
    table = Table.load(given.table)
    folder, state = lab.searched(given.run, given.threads)
    with report.Rounds("measuring cells", 2 * given.cells, report.console()) as rounds:
        results = measurement.measure(state, table, given.column, given.cells, given.batches, rounds.advance)
    write_csv(folder / "rank.csv", measurement.records(results, given.column))
    write_atomic(folder / "rank.svg", measurement.figure(results, given.column))
    title = f"rank correlation of -loss with {given.column}"
    report.console().print(report.table(title, measurement.COLUMNS, measurement.rows(results)))
    report.facts({"written to": f"{folder / 'rank.csv'}, {folder / 'rank.svg'}"})


def info(args: Sequence[str]) -> None:
    from advnas_ext import info as built

    parse(InfoArguments, args, "advnas info")
    print(built.report())


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "search": search,
    "retrain": retrain,
    "query": query,
    "lab": lab,
    "info": info,
}

LAB: dict[str, Callable[[Sequence[str]], None]] = {"signal": signal, "rank": rank}


def parse(kind: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """The arguments of a command.

    Raises:
        ValueError: they are wrong. The message is one line, where tyro draws a box.
        SystemExit: --help was asked for and is printed.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=prog, args=args, default=tyro.MISSING_NONPROP if default is None else default)
    except SystemExit as end:
        if not end.code:
            raise
    # Without the frame and its title. Rules divide the box: what is wrong; help on it or close options; a pointer to --help.
    lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:-1]]
    groups = itertools.groupby(lines, key=lambda line: set(line) <= {"─", "-"})
    wrong, *rest = [list(group) for is_rule, group in groups if not is_rule]
    close: list[str] = []
    if "Unrecog" in wrong[0]:
        close = [line.split()[0] for part in rest for line in part if line.startswith("--")]
        option = next((word.strip(",") for line in wrong for word in line.split() if word.startswith("--")), "")
        close = difflib.get_close_matches(option, close, n=3, cutoff=0)
    hint = f"; perhaps you meant {' or '.join(close)}" if close else ""
    text = re.sub(r"^Error parsing \w+: ", "", " ".join(wrong))
    raise ValueError(f"{text}{hint}; see {prog} --help")


def message(error: Exception) -> str:
    """What went wrong, in one line. The errors of the operating system show their text without its number."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 wrong usage or input, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    command, *rest = args
    try:
        if command not in COMMANDS:
            raise ValueError(f"no such command; choose among {', '.join(COMMANDS)}")
        COMMANDS[command](rest)
    except Interrupted as interrupt:
        print(f"advnas {command}: {interrupt}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"advnas {command}: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"advnas {command}: {message(error)}", file=sys.stderr)
        return 2
    return 0
