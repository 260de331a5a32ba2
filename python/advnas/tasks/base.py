"""What a search asks of its task: streams of batches, networks, a loss and metrics. The search itself knows none of them by name.

A task is made of the settings of a search or of a retraining, and loads its data then.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from advnas.config import RetrainConfig, SearchConfig
from advnas.device import Placement
from advnas.spaces import SPACES
from advnas_ext import Path, PathCost


class Stream(Protocol):
    """Batches in an order that can be saved and resumed: an iteration is one pass, and goes on in the middle of one after
    :meth:`load_state_dict`. What passes from batch to batch, such as a hidden state, belongs to the stream and its state."""

    def __len__(self) -> int:
        """Batches in a pass."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of other data.
        """


def fingerprint(*tensors: Tensor) -> str:
    """Of the data in tensors, wherever it was read from: what tells whether a run goes on with the same."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Score:
    """What a network makes of a batch.

    Attributes:
        loss: scalar, the mean over the items.
        items: images, or tokens.
        sums: of other metrics over the items, scalars by name.
    """

    loss: Tensor
    items: int
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class Scores:
    """Means of scores over many batches. They add up on the device; reading them waits for it."""

    def __init__(self) -> None:
        self.items = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, score: Score) -> None:
        self.items += score.items
        for name, value in {"loss": score.loss.detach() * score.items, **score.sums}.items():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()

    def means(self) -> dict[str, float]:
        return {name: value.item() / self.items for name, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"items": self.items, "sums": {name: value.cpu() for name, value in self._sums.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.items, self._sums = state["items"], dict(state["sums"])


class Recipe(ABC):
    """How a network is trained from scratch: the optimizer's steps and what changes between them."""

    @abstractmethod
    def step(self, scaler: torch.amp.GradScaler) -> None:
        """A step of the optimizer, on the gradients that are there, and of its schedule; clears the gradients.

        Args:
            scaler: that the loss was scaled with.
        """

    def after_epoch(self, metrics: Mapping[str, float]) -> None:  # noqa: B027  (most have none)
        """Looks at what ``Task.validate`` gave, for schedules that depend on it."""

    def evaluating(self) -> contextlib.AbstractContextManager[object]:
        """Within it the network has the weights that count, such as an average."""
        return contextlib.nullcontext()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task(ABC):
    """Base of the tasks.

    Attributes:
        space: what is searched.
        ops: the operations that are candidates, those of the space or some of them.
        placement: the device and the precision.

    Args:
        config: of the kind ``search_config`` or ``retrain_config``.

    Raises:
        ValueError, FileNotFoundError: the data or the device is not what the settings say, or the space is of another task.
    """

    name: ClassVar[str]
    search_config: ClassVar[type[SearchConfig]]
    retrain_config: ClassVar[type[RetrainConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, object]]]
    shown: ClassVar[Mapping[str, str]]
    """Metrics in the order of the history's columns, without valid_, train_ or test_; with the format of each."""
    result: ClassVar[str]
    """The metric by which people compare networks."""

    def __init__(self, config: SearchConfig | RetrainConfig) -> None:
        self.config = config
        self.space = SPACES[config.space]
        if self.space.task != self.name:
            mine = ", ".join(name for name, space in SPACES.items() if space.task == self.name)
            raise ValueError(f"space: {config.space} is for the task {self.space.task}; for {self.name} choose {mine}")
        self.ops = self.space.kept(config.without if isinstance(config, SearchConfig) else ())
        self.placement = Placement.of(config.device, config.amp)

    @classmethod
    def search_defaults(cls) -> SearchConfig:
        return cls.search_config()  # type: ignore[call-arg]  # a task's own has a default everywhere

    @classmethod
    def retrain_defaults(cls) -> RetrainConfig:
        return cls.retrain_config()  # type: ignore[call-arg]

    # ------------------------------------------------------------------------------------------------- of a search

    @abstractmethod
    def weight_stream(self, order: torch.Generator) -> Stream:
        """Batches for the weights."""

    @abstractmethod
    def arch_stream(self, order: torch.Generator) -> Stream:
        """Batches for the logits."""

    @abstractmethod
    def held_out(self, order: torch.Generator) -> HeldOut:
        """The data on which cells are compared: part of what the weights never see."""

    @abstractmethod
    def supernet(self, cells: int | None = None) -> nn.Module:
        """A new network ``(batch of the task, path)`` with all candidates, on the host; its weights are from torch's generator.

        Args:
            cells: another depth than that of the settings, where the network has one.
        """

    @abstractmethod
    def score(self, network: nn.Module, batch: Any, path: Path | None) -> Score:
        """A forward pass.

        Args:
            path: None for a network that is fixed.
        """

    def loss(self, network: nn.Module, batch: Any, path: Path | None) -> Tensor:
        """The mean loss of a batch, a scalar."""
        return self.score(network, batch, path).loss

    @torch.no_grad()
    def measure(self, network: nn.Module, path: Path | None, batches: Iterable[Any]) -> dict[str, float]:
        """Means over all items of the batches, ``loss`` first; see :attr:`shown`."""
        scores = Scores()
        for batch in batches:
            scores.add(self.score(network, batch, path))
        return self.metrics(scores)

    def metrics(self, scores: Scores) -> dict[str, float]:
        """From the means to the metrics that people read."""
        return scores.means()

    def arch(self, ops: Tensor) -> str:
        """The string of a cell, given by places in ``ops``."""
        return self.space.format(torch.tensor([self.space.ops.index(self.ops[op]) for op in ops.tolist()]))

    def places(self, arch: str) -> Tensor:
        """The inverse of :meth:`arch`, int64 [num_edges]."""
        return torch.tensor([self.ops.index(self.space.ops[op]) for op in self.space.parse(arch).tolist()])

    def identity(self, ops: Tensor) -> str:
        """The same for cells that compute the same, as far as the space knows."""
        names = [self.ops[op] for op in ops.tolist()]
        same = list(self.space.identities.values())
        return same[-1](names) if same else self.arch(ops)

    def path_costs(self) -> dict[str, PathCost]:
        """FLOPs and parameters of the networks that are trained after a search, by ``flops`` and ``params``.

        Raises:
            ValueError: the task has none.
        """
        raise ValueError(f"max_flops and max_params: the task {self.name} has no such costs; leave them out")

    @property
    def has_promises(self) -> bool:
        """Whether the task has :meth:`promises`."""
        return type(self).promises is not Task.promises

    def promises(self, network: nn.Module, batch: Any, path: Path) -> tuple[float, ...]:
        """What a cell of an untrained supernet promises, by several measures, each the larger the better; see
        :mod:`advnas.untrained`.

        Raises:
            NotImplementedError: the task has no such measures, see ``has_promises``.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a checkpoint depends on beside the settings, such as the size of the data, in plain types."""
        return {}

    def split(self) -> dict[str, Tensor]:
        """Which data went to which half of a search, by name; empty where nothing was drawn."""
        return {}

    # -------------------------------------------------------------------------------------------- of a retraining

    @abstractmethod
    def training(self, order: torch.Generator) -> Stream:
        """All training data."""

    @abstractmethod
    def network(self, arch: str) -> nn.Module:
        """A new network of one architecture, on the host: ``.fix()`` was called.

        Raises:
            ValueError: ``arch`` is malformed.
        """

    @abstractmethod
    def recipe(self, network: nn.Module, steps: int) -> Recipe:
        """How to train it, in that many steps."""

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Metrics after an epoch of a retraining, on data for that; none where all of the training set is trained on."""
        return {}

    @abstractmethod
    def test(self, network: nn.Module) -> dict[str, Any]:
        """What retrain.json says of a trained network: test metrics, their intervals, and what the network costs."""


class HeldOut(Protocol):
    """Batches for comparisons."""

    def __call__(self, count: int) -> Iterable[Any]:
        """The first ``count`` batches, always the same ones; all of them where there are fewer."""
