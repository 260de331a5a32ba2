"""Settings that every search and every retraining has; a task adds its own, and its defaults.

Precedence, lowest first: defaults, preset, YAML file, command line. A setting is checked where the configuration object is made, so
that Python code, YAML files and flags all get the same message.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from typing_extensions import Self

from advnas.files import at_home
from advnas.report.numbers import number, quantity
from advnas.spaces import SPACES
from advnas_ext import ESTIMATORS


def one_of(names: Mapping[str, object]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return name

    return check


def located(names: Mapping[str, object]) -> Callable[[str], str]:
    """A data set: a name stays, a folder becomes an absolute path, so that a run can go on from anywhere."""

    def locate(name: str) -> str:
        folder = at_home(name)
        return str(folder.absolute()) if name not in names and folder.is_dir() else name

    return locate


def absolute(path: Path | None) -> Path | None:
    return None if path is None else at_home(path).absolute()


def expanded(path: Path | None) -> Path | None:
    return None if path is None else at_home(path)


def several(value: object) -> object:
    """One value of a YAML file stands for itself, and numbers for their texts."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(str(each) if isinstance(each, (int, float)) else each for each in values)


def quantities(kind: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def check(texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            quantity(text, kind)
        return texts

    return check


def numbers(settings: Any) -> Any:
    """The texts among the values that are numbers, as numbers: YAML takes 1e-2 for a text."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: number(value) if isinstance(value, str) else value for name, value in settings.items()}


# Settings of files that were written before these had other names.
RENAMED = {"judge_cells": "halving_cells", "judge_steps": "halving_steps"}

LIMITS = tyro.conf.arg(metavar="LIMIT ...")
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TaskName = Annotated[Literal["image", "language"], tyro.conf.arg(metavar="image|language")]
Amp = Annotated[Literal["bfloat16", "float16"] | None, tyro.conf.arg(metavar="bfloat16|float16")]
Space = Annotated[str, AfterValidator(one_of(SPACES)), tyro.conf.arg(metavar="|".join(SPACES))]
OptionalSpace = Annotated[Space | None, tyro.conf.arg(metavar="|".join(SPACES))]
EstimatorName = Annotated[str, AfterValidator(one_of(ESTIMATORS)), tyro.conf.arg(metavar="|".join(ESTIMATORS))]
Operations = Annotated[tuple[str, ...], tyro.conf.arg(metavar="OP ...")]
OptionalFile = Annotated[Path | None, AfterValidator(absolute), tyro.conf.arg(metavar="FILE")]
OptionalFolder = Annotated[Path | None, AfterValidator(absolute), tyro.conf.arg(metavar="DIR")]
OutFolder = Annotated[Path | None, AfterValidator(expanded), tyro.conf.arg(metavar="DIR")]
OptionalCount = Annotated[Count | None, tyro.conf.arg(metavar="INT")]
EstimatorSettings = Annotated[
    dict[str, int | float | bool | str | None], BeforeValidator(numbers), tyro.conf.arg(metavar="NAME VALUE ...")
]
Name = Annotated[str, Field(min_length=1)]
CountLimits = Annotated[tuple[str, ...], BeforeValidator(several), AfterValidator(quantities("flops")), LIMITS]
TimeLimits = Annotated[tuple[str, ...], BeforeValidator(several), AfterValidator(quantities("latency")), LIMITS]
Device = Annotated[str | None, tyro.conf.arg(metavar="cpu|cuda|cuda:N")]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Converts and checks every field by its annotation.

    Raises:
        ValueError: a value has the wrong type or is out of range; the message names the setting, the requirement and the value.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name in self.names():
            value = getattr(self, name)
            try:
                checked = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                requirement = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"{name}: {requirement}, got {value!r}") from None
            object.__setattr__(self, name, checked)

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    def with_settings(self, settings: Mapping[str, object], source: str) -> Self:
        """This configuration with some settings replaced.

        Raises:
            ValueError: a name is unknown or a value not acceptable; the message starts with ``source``.
        """
        for name in settings:
            if name not in self.names():
                close = difflib.get_close_matches(str(name), self.names(), n=1)
                remedy = f"did you mean {close[0]}?" if close else f"choose among {', '.join(self.names())}"
                raise ValueError(f"{source}: unknown setting {name!r}; {remedy}")
        try:
            return replace(self, **settings)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def with_file(self, path: Path) -> Self:
        """This configuration with the settings of a YAML file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a YAML mapping of settings, or holds one that is not acceptable.
        """
        path = at_home(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such configuration file")
        try:
            settings = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
        if isinstance(settings, dict):
            settings = {RENAMED.get(name, name): value for name, value in settings.items()}
        else:
            raise ValueError(f"{path}: must be a YAML mapping such as 'epochs: 50', got {type(settings).__name__}")
        return self.with_settings(settings, str(path))

    def to_dict(self) -> dict[str, Any]:
        """Every setting in plain types, as YAML files and checkpoints hold them."""
        return {name: to_jsonable_python(getattr(self, name)) for name in self.names()}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """Settings of a search. A YAML file has the same names, with _ for -."""

    task: TaskName
    """What the cell is for. It decides which other settings there are."""
    space: Space
    """Search space of the cell."""
    data: Name
    """Data set."""
    data_dir: OptionalFolder = None
    """Where the data set lies."""
    estimator: EstimatorName = "advantage"
    """How the gradient of the logits is estimated: by the formula in the file of that name in advnas_ext/estimators."""
    estimator_settings: EstimatorSettings = field(default_factory=dict)
    """Settings of the estimator's own, as NAME VALUE pairs, such as num_samples 8 for rloo; its class explains them."""
    without: Operations = ()
    """Operations of the space that are left out, such as none."""
    epochs: Count
    """Passes over the weights' part of the training set."""
    warmup_epochs: Index = 0
    """First epochs that train the weights on uniform paths and leave the logits alone."""
    warm_start: OptionalFolder = None
    """Run folder of a search that ended with its warm-up, to go on from: of the same data, network, seed and weights' settings."""
    schedule_epochs: OptionalCount = None
    """Epochs on which cosines and schedules of estimators are laid out, of a search that may stop before; None: epochs."""
    steps_per_epoch: OptionalCount = None
    """Batches in an epoch; None: as many as a pass has."""
    batch_size: Count
    """Examples in a batch."""
    lr: PositiveRate
    """Learning rate of the weights (SGD), at the start."""
    lr_min: Rate
    """Learning rate of the weights at the end of its cosine."""
    momentum: Fraction
    """Momentum of the weights."""
    nesterov: bool
    """Nesterov's form of momentum."""
    weight_decay: Rate
    """L2 penalty on the weights."""
    grad_clip: PositiveRate
    """Largest norm of the weights' gradient."""
    arch_init: Rate = 1e-3
    """Standard deviation of the logits at the start. It decides between operations that are still equal."""
    arch_lr: PositiveRate = 3e-4
    """Learning rate of the logits (Adam)."""
    arch_lr_min: Annotated[Rate | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Learning rate of the logits at the end of its cosine; None: it stays."""
    arch_betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    """Adam's two averages, for the logits."""
    arch_weight_decay: Rate = 1e-3
    """L2 penalty on the logits."""
    arch_grad_clip: Annotated[PositiveRate | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Largest norm of the logits' gradient; None: any."""
    valid_batches: Count
    """Held-out batches on which the current best cell is measured after each epoch."""
    halving_cells: Index = 0
    """Cells a stage of networks that are trained at the end, to compare the best cell with its neighbours; 0: none."""
    halving_steps: Count = 150
    """Steps to the first comparison; each leaves half, for twice the steps. Of a front: half of it; a quarter, for four times."""
    max_flops: CountLimits = ()
    """Most multiply-adds of the network that is trained afterwards, such as 60M. Several: a cell for each, as with --front."""
    max_params: CountLimits = ()
    """Most parameters of that network, such as 500k; one or several."""
    max_latency: TimeLimits = ()
    """Longest latency by the file of --latencies, such as 15ms; one or several."""
    latencies: OptionalFile = None
    """Measured latencies in seconds, CSV: columns edge, op, latency_s, or arch_str, latency_s for whole cells (docs/budgets.md)."""
    front: bool = False
    """A cell for each of five limits up to the one that is given (of FLOPs if none is), all from one search."""
    table: OptionalFile = None
    """Table of the space's cells (CSV or Parquet): looks up the current best cell after each epoch. It never steers."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    seed: Seed = 0
    """The same seed gives the same history on the same machine with the same number of threads."""
    threads: OptionalCount = None
    """CPU threads; None: as many as torch takes."""
    device: Device = None
    """Where to run; None: the GPU where there is one and the build has CUDA, else the CPU."""
    amp: Amp = None
    """Automatic mixed precision on a GPU; None: float32 throughout."""
    out: OutFolder = None
    """Run folder to make; None: a new one, runs/DATA-ESTIMATOR-seedSEED."""

    def limits(self, kind: str) -> list[float]:
        """Of one kind of cost: flops, params or latency."""
        return [quantity(text, kind) for text in getattr(self, f"max_{kind}")]


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(Settings):
    """Settings of a retraining. A YAML file has the same names, with _ for -."""

    arch: Annotated[str | None, tyro.conf.arg(metavar="CELL")] = None
    """The cell, as a search prints it, such as "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"; None: the one that RUN found."""
    task: TaskName
    """What the cell is for. It decides which other settings there are."""
    space: Space
    """Search space of the cell."""
    data: Name
    """Data set."""
    data_dir: OptionalFolder = None
    """Where the data set lies."""
    epochs: Count
    """Passes over the training set."""
    batch_size: Count
    """Examples in a batch."""
    lr: PositiveRate
    """Learning rate (SGD), at the start."""
    weight_decay: Rate
    """L2 penalty on the weights."""
    seed: Seed = 0
    """Of the initial weights and of the order of the data."""
    threads: OptionalCount = None
    """CPU threads; None: as many as torch takes."""
    device: Device = None
    """Where to run; None: the GPU where there is one and the build has CUDA, else the CPU."""
    amp: Amp = None
    """Automatic mixed precision on a GPU; None: float32 throughout."""
    out: OutFolder = None
    """Folder for retrain.json; None: RUN, and without one a new folder, runs/DATA-retrain-seedSEED."""
