"""Language modelling with a recurrent cell. The defaults of a search are those of the AdvantageNAS paper's code (Sato et al., AAAI
2021) for Penn Treebank, those of a retraining follow AWD-LSTM (Merity, Keskar & Socher, ICLR 2018)."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from pydantic import AfterValidator
from torch import Tensor, nn

from advnas.config import (
    Count,
    Fraction,
    Index,
    Name,
    OptionalFolder,
    PositiveRate,
    Rate,
    RetrainConfig,
    SearchConfig,
    Space,
    TaskName,
    located,
)
from advnas.cost import cost
from advnas.data.text import TEXTS, TextBatch, Windows, load
from advnas.data.text.corpus import Corpus
from advnas.networks.language import LanguageModel, draw_masks
from advnas.tasks.base import Recipe, Score, Scores, Task, fingerprint
from advnas.training import clip_gradients, follow_gradients
from advnas_ext import Path

Data = Annotated[Name, AfterValidator(located(TEXTS)), tyro.conf.arg(metavar="|".join([*TEXTS, "FOLDER"]))]
ArchData = Annotated[Literal["train", "valid"], tyro.conf.arg(metavar="train|valid")]
VALID_COLUMNS = 10  # of a validation between the epochs of a retraining
TEST_LENGTH = 512  # of a test's windows: one column, so that every token counts
NEVER = 2**62  # step at which averaging begins, as long as it has not begun


@dataclass(frozen=True, kw_only=True)
class LanguageSearchConfig(SearchConfig):
    """Settings of a search for language modelling."""

    task: TaskName = "language"
    """What the cell is for; it decides which other settings there are."""
    space: Space = "recurrent"
    """Search space: recurrent is AdvantageNAS's cell, darts_recurrent that of DARTS."""
    data: Data = "tiny"
    """Text, or a folder with train.txt, valid.txt and test.txt."""
    data_dir: OptionalFolder = None
    """Where the text lies, for ptb the folder with train.txt, valid.txt and test.txt, or ptb.train.txt and so on."""
    arch_data: ArchData = "train"
    """Text of the architecture steps. train: all of it, as the authors have it; valid: its second half, weights see the first."""
    epochs: Count = 30
    """Passes over the weights' text."""
    units: Count = 300
    """Units of a word vector and of the cell."""
    bptt: Count = 35
    """Words in a window of backpropagation through time."""
    dropout: Fraction = 0.5
    """Variational dropout of the cell's input and output."""
    dropout_hidden: Fraction = 0.0
    """Variational dropout of the hidden state."""
    batch_size: Count = 256
    """Parallel columns of the text."""
    lr: PositiveRate = 20.0
    """Learning rate of the weights (SGD), at the start."""
    lr_min: Rate = 0.0
    """Learning rate of the weights at the end of its cosine."""
    momentum: Fraction = 0.0
    """Momentum of the weights."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: Rate = 5e-7
    """L2 penalty on the weights."""
    grad_clip: PositiveRate = 0.25
    """Largest norm of the weights' gradient."""
    arch_lr: PositiveRate = 3e-3
    """Learning rate of the logits (Adam)."""
    arch_grad_clip: Annotated[PositiveRate | None, tyro.conf.arg(metavar="FLOAT")] = 1.0
    """Largest norm of the logits' gradient; None: any."""
    valid_batches: Count = 16
    """Windows of the validation text on which the current best cell is measured after each epoch."""


@dataclass(frozen=True, kw_only=True)
class LanguageRetrainConfig(RetrainConfig):
    """Settings of a retraining for language modelling: SGD, then its average (ASGD)."""

    task: TaskName = "language"
    """What the cell is for."""
    space: Space = "recurrent"
    """Search space of the cell."""
    data: Data = "tiny"
    """Text, or a folder with train.txt, valid.txt and test.txt."""
    data_dir: OptionalFolder = None
    """Where the text lies, for ptb the folder with train.txt, valid.txt and test.txt, or ptb.train.txt and so on."""
    epochs: Count = 300
    """Passes over the training text."""
    units: Count = 300
    """Units of a word vector and of the cell."""
    bptt: Count = 35
    """Words in a window of backpropagation through time."""
    dropout: Fraction = 0.5
    """Variational dropout of the cell's input and output."""
    dropout_hidden: Fraction = 0.25
    """Variational dropout of the hidden state."""
    batch_size: Count = 64
    """Parallel columns of the text."""
    lr: PositiveRate = 20.0
    """Learning rate, constant: SGD first, then the average of its weights."""
    weight_decay: Rate = 8e-7
    """L2 penalty on the weights."""
    grad_clip: PositiveRate = 0.25
    """Largest norm of the weights' gradient."""
    patience: Index = 5
    """Averaging begins when the validation perplexity is above the best of all epochs but the last so many."""


class AveragedSgd(Recipe):
    """SGD until the validation perplexity stops falling, then the average of the weights from there on (Merity et al. 2018)."""

    def __init__(self, network: nn.Module, config: LanguageRetrainConfig) -> None:
        self.config = config
        self.weights = list(network.parameters())
        # One optimizer throughout: before step t0 torch's average is the weights themselves.
        self.optimizer = torch.optim.ASGD(
            self.weights, config.lr, lambd=0.0, t0=NEVER, weight_decay=config.weight_decay
        )
        self.perplexities: list[float] = []
        self.steps = 0

    @property
    def averages(self) -> bool:
        return self.optimizer.param_groups[0]["t0"] != NEVER

    def step(self, scaler: torch.amp.GradScaler) -> None:
        clip_gradients(self.weights, self.optimizer, scaler, self.config.grad_clip)
        follow_gradients(self.optimizer, scaler)
        self.steps += 1

    def after_epoch(self, metrics: Mapping[str, float]) -> None:
        earlier = self.perplexities[: -self.config.patience] if self.config.patience else self.perplexities
        if not self.averages and earlier and metrics["perplexity"] > min(earlier):
            self.optimizer.param_groups[0]["t0"] = self.steps
        self.perplexities.append(metrics["perplexity"])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        if not self.averages:
            yield
            return
        kept = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            for weight in self.weights:
                # No gradient ever came to the weight of a node that nothing flows out of.
                weight.copy_(self.optimizer.state.get(weight, {}).get("ax", weight))
            try:
                yield
            finally:
                for weight, value in zip(self.weights, kept, strict=True):
                    weight.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "perplexities": self.perplexities, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.perplexities, self.steps = list(state["perplexities"]), state["steps"]


class LanguageTask(Task):
    """A text in parallel columns; the hidden state goes from window to window.

    Args:
        config: of a search or of a retraining.
        corpus: the text; None: that of the settings.
    """

    name = "language"
    search_config = LanguageSearchConfig
    retrain_config = LanguageRetrainConfig
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "paper": {},
        "fast": {
            "epochs": 4,
            "steps_per_epoch": 140,
            "warmup_epochs": 1,
            "units": 128,
            "batch_size": 64,
            "dropout": 0.2,
            "arch_lr": 0.04,
            "arch_weight_decay": 0.0,
        },
    }
    shown: ClassVar[Mapping[str, str]] = {"loss": ".3f", "perplexity": ".1f"}
    result = "perplexity"
    config: LanguageSearchConfig | LanguageRetrainConfig

    def __init__(self, config: LanguageSearchConfig | LanguageRetrainConfig, corpus: Corpus | None = None) -> None:
        super().__init__(config)
        self.corpus = load(config.data, config.data_dir) if corpus is None else corpus
        self.content = fingerprint(self.corpus.train, self.corpus.valid)
        self.held_out(torch.Generator())  # says now if the validation text is too short

    def weight_stream(self, order: torch.Generator) -> Windows:
        text = self.corpus.train
        return self._training(text if self._arch_data == "train" else text[: len(text) // 2], order)

    def arch_stream(self, order: torch.Generator) -> Windows:
        """On the text of the weights it is half a pass ahead of them."""
        text = self.corpus.train
        if self._arch_data == "train":
            return self._training(text, order, start=0.5)
        return self._training(text[len(text) // 2 :], order)

    def held_out(self, order: torch.Generator) -> HeldOutText:
        columns = VALID_COLUMNS if isinstance(self.config, LanguageRetrainConfig) else min(self.config.batch_size, 64)
        return HeldOutText(self, self.corpus.valid, columns, self.config.bptt)

    def supernet(self, cells: int | None = None) -> LanguageModel:
        return self.space.network(len(self.corpus.words), self.config.units, self.space.num_nodes - 1, self.ops)

    def score(self, network: Any, batch: TextBatch, path: Path | None) -> Score:
        with self.placement.autocast():
            loss, hidden = network.loss(batch.inputs, batch.targets, path, batch.hidden, batch.masks)
        batch.carry(hidden)
        return Score(loss, batch.targets.numel())

    def metrics(self, scores: Scores) -> dict[str, float]:
        loss = scores.means()["loss"]
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def facts(self) -> dict[str, Any]:
        corpus = self.corpus
        tokens = [len(corpus.train), len(corpus.valid), len(corpus.test)]
        return {"tokens": tokens, "words": len(corpus.words), "content": self.content}

    def training(self, order: torch.Generator) -> Windows:
        return self._training(self.corpus.train, order)

    def network(self, arch: str) -> LanguageModel:
        ops = self.space.parse(arch)
        sizes = len(self.corpus.words), self.config.units, self.space.num_nodes - 1
        return self.space.network(*sizes, self.space.ops).fix(ops)

    def recipe(self, network: nn.Module, steps: int) -> AveragedSgd:
        assert isinstance(self.config, LanguageRetrainConfig)
        return AveragedSgd(network, self.config)

    def validate(self, network: nn.Module) -> dict[str, float]:
        return self.measure(network, None, self.held_out(torch.Generator())())

    def test(self, network: nn.Module) -> dict[str, Any]:
        """Over all tokens, the hidden state carried from the first to the last."""
        price = cost(network, (1, 1), torch.int64)
        found: dict[str, Any] = {}
        for part, text in (("valid", self.corpus.valid), ("test", self.corpus.test)):
            length = min(TEST_LENGTH, len(text) - 1)
            measured = self.measure(network, None, HeldOutText(self, text, 1, length)())
            found |= {f"{part}_{name}": value for name, value in measured.items()}
            found[f"{part}_tokens"] = len(text)
        return {**found, "params": price.params, "flops": price.flops}

    @property
    def _arch_data(self) -> str:
        assert isinstance(self.config, LanguageSearchConfig)
        return self.config.arch_data

    def _training(self, text: Tensor, order: torch.Generator, start: float = 0.0) -> Windows:
        config = self.config

        def masks(generator: torch.Generator) -> dict[str, Tensor]:
            return draw_masks(generator, config.batch_size, config.units, config.dropout, config.dropout_hidden)

        return Windows(text, config.batch_size, config.bptt, self.placement, masks, order, start)


class HeldOutText:
    """A text in windows from its beginning, without dropout."""

    def __init__(self, task: LanguageTask, text: Tensor, columns: int, length: int) -> None:
        self._make = lambda: Windows(text, columns, length, task.placement)
        self._make()

    def __call__(self, count: int | None = None) -> Iterable[TextBatch]:
        """The first ``count`` windows; None, or fewer there: all."""
        return itertools.islice(self._make(), count)
