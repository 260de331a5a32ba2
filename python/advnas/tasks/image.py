"""Image classification. The defaults are NAS-Bench-201's protocols (Dong & Yang, ICLR 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advnas.config import (
    Count,
    Fraction,
    Name,
    OptionalCount,
    OptionalFolder,
    PositiveRate,
    Rate,
    RetrainConfig,
    SearchConfig,
    Space,
    TaskName,
    located,
    one_of,
)
from advnas.cost import cost
from advnas.data.images import DATA, Batches, Evaluation, ImageData, load, split_halves
from advnas.networks.nasbench201 import REDUCTIONS
from advnas.report.numbers import wilson
from advnas.tasks.base import Recipe, Score, Task, fingerprint
from advnas.training import follow_gradients
from advnas.untrained import promises
from advnas_ext import Path, PathCost

LOOKED = 32  # images of a batch by which untrained networks are measured
Reduction = Annotated[str, AfterValidator(one_of(REDUCTIONS)), tyro.conf.arg(metavar="|".join(REDUCTIONS))]
Data = Annotated[Name, AfterValidator(located(DATA)), tyro.conf.arg(metavar="|".join([*DATA, "FOLDER"]))]


@dataclass(frozen=True, kw_only=True)
class ImageSearchConfig(SearchConfig):
    """Settings of a search for image classification."""

    task: TaskName = "image"
    """What the cell is for; it decides which other settings there are: advnas search --task language --help."""
    space: Space = "nasbench201"
    """Search space of the cell."""
    data: Data = "digits"
    """Data set, or a folder with an image folder for each class."""
    data_dir: OptionalFolder = None
    """Where the data set lies, for CIFAR the folder that holds cifar-10-batches-py or cifar-100-python."""
    epochs: Count = 250
    """Passes over the weights' half of the training set."""
    channels: Count = 16
    """Channels of the first stage; the second and third have twice and four times as many."""
    cells: Count = 5
    """Cells in each of the three stages."""
    reduction: Reduction = "residual"
    """Block between the stages: NAS-Bench-201's residual one, or a light one (mean, 1x1 convolution): cells have more to do."""
    gate_baseline: Annotated[Literal["input"] | None, tyro.conf.arg(metavar="input")] = None
    """What an operation is compared with in its advantage. input: the node that it takes; None: no output at all."""
    image_size: OptionalCount = None
    """Images with more pixels a side are shrunk to that many; None: they stay as they are."""
    batch_size: Count = 64
    """Images in a batch."""
    lr: PositiveRate = 0.025
    """Learning rate of the weights (SGD), at the start."""
    lr_min: Rate = 0.001
    """Learning rate of the weights at the end of its cosine."""
    momentum: Fraction = 0.9
    """Momentum of the weights."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: Rate = 5e-4
    """L2 penalty on the weights."""
    grad_clip: PositiveRate = 5.0
    """Largest norm of the weights' gradient."""
    valid_batches: Count = 16
    """Batches of the architecture's half on which the current best cell is measured after each epoch."""


@dataclass(frozen=True, kw_only=True)
class ImageRetrainConfig(RetrainConfig):
    """Settings of a retraining for image classification: NAS-Bench-201's for its 200-epoch accuracies."""

    task: TaskName = "image"
    """What the cell is for."""
    space: Space = "nasbench201"
    """Search space of the cell."""
    data: Data = "digits"
    """Data set, or a folder with an image folder for each class."""
    data_dir: OptionalFolder = None
    """Where the data set lies, for CIFAR the folder that holds cifar-10-batches-py or cifar-100-python."""
    epochs: Count = 200
    """Passes over the training set."""
    channels: Count = 16
    """Channels of the first stage; the second and third have twice and four times as many."""
    cells: Count = 5
    """Cells in each of the three stages."""
    reduction: Reduction = "residual"
    """Block between the stages: NAS-Bench-201's residual one, or a light one (mean, 1x1 convolution)."""
    batch_size: Count = 256
    """Images in a batch."""
    lr: PositiveRate = 0.1
    """Learning rate (SGD), at the start; its cosine ends at 0."""
    momentum: Fraction = 0.9
    """Momentum."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: Rate = 5e-4
    """L2 penalty on the weights."""


class CosineSgd(Recipe):
    """SGD with momentum, its rate along a cosine to 0."""

    def __init__(self, network: nn.Module, steps: int, config: ImageRetrainConfig) -> None:
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def step(self, scaler: torch.amp.GradScaler) -> None:
        follow_gradients(self.optimizer, scaler)
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class ImageTask(Task):
    """Images of one size, a class each; the training set is split in two stratified halves.

    Args:
        config: of a search or of a retraining.
        images: the data set; None: that of the settings.
    """

    name = "image"
    search_config = ImageSearchConfig
    retrain_config = ImageRetrainConfig
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "paper": {},
        "fast": {
            "estimator": "rloo",
            "without": ("none",),
            "epochs": 14,
            "warmup_epochs": 8,
            "channels": 8,
            "cells": 1,
            "reduction": "light",
            "image_size": 16,
            "lr": 0.1,
            "arch_lr": 0.01,
            "arch_weight_decay": 0.0,
            "valid_batches": 32,
            "halving_cells": 3,
            "halving_steps": 60,
        },
    }
    shown: ClassVar[Mapping[str, str]] = {"loss": ".3f", "accuracy": ".1%"}
    result = "accuracy"
    config: ImageSearchConfig | ImageRetrainConfig

    def __init__(self, config: ImageSearchConfig | ImageRetrainConfig, images: ImageData | None = None) -> None:
        super().__init__(config)
        images = load(config.data, config.data_dir) if images is None else images
        self.content = fingerprint(images.train.pixels, images.train.labels)
        if isinstance(config, ImageSearchConfig):
            self.full_size = images.image_size
            images = images.resized(min(config.image_size or images.image_size, images.image_size))
            self.weight_index, self.arch_index = split_halves(images.train.labels, config.seed)
        self.images = images.to(self.placement.device)

    def weight_stream(self, order: torch.Generator) -> Batches:
        return Batches(self.images, self.weight_index, self.config.batch_size, generator=order)

    def arch_stream(self, order: torch.Generator) -> Batches:
        return Batches(self.images, self.arch_index, self.config.batch_size, generator=order)

    def held_out(self, order: torch.Generator) -> Evaluation:
        index = self.arch_index[torch.randperm(len(self.arch_index), generator=order)]
        return Evaluation(self.images, self.images.train, index, self.config.batch_size)

    def supernet(self, cells: int | None = None) -> nn.Module:
        assert isinstance(self.config, ImageSearchConfig)
        baseline = self.config.gate_baseline
        return self._network(self.ops, cells, **({} if baseline is None else {"baseline": baseline}))

    def score(self, network: nn.Module, batch: tuple[Tensor, Tensor], path: Path | None) -> Score:
        x, y = batch
        with self.placement.autocast():
            output = network(x, path)
            loss = cross_entropy(output, y)
        return Score(loss, len(y), {"accuracy": (output.detach().argmax(1) == y).sum()})

    def path_costs(self) -> dict[str, PathCost]:
        """By retraining's defaults at the size of the data's images. All edges of a cell are alike, so that a network with one
        operation on every edge tells what that operation costs."""
        trained, images, edges = ImageRetrainConfig(), self.images, self.space.num_edges
        shape = (1, images.in_channels, self.full_size, self.full_size)
        sizes = trained.channels, trained.cells, images.in_channels, len(images.classes)
        found = []
        for op in self.ops:
            with torch.device("meta"):
                network = self.space.network(*sizes, ops=(op,), affine=True, track_running_stats=True)
            found.append(cost(network.fix(torch.zeros(edges, dtype=torch.int64)), shape))
        first = found[0]
        costs = {
            "flops": (first.flops, [(one.flops - first.flops) / edges for one in found]),
            "params": (first.params, [(one.params - first.params) / edges for one in found]),
        }
        return {kind: PathCost([by_op] * edges, constant) for kind, (constant, by_op) in costs.items()}

    def promises(self, network: nn.Module, batch: tuple[Tensor, Tensor], path: Path) -> tuple[float, ...]:
        return promises(network, batch[0][:LOOKED], path)

    def facts(self) -> dict[str, Any]:
        return {"images": len(self.images.train), "classes": list(self.images.classes), "content": self.content}

    def split(self) -> dict[str, Tensor]:
        return {"weights": self.weight_index, "architecture": self.arch_index}

    def training(self, order: torch.Generator) -> Batches:
        return Batches(self.images, torch.arange(len(self.images.train)), self.config.batch_size, generator=order)

    def network(self, arch: str) -> nn.Module:
        ops = self.space.parse(arch)
        return self._network(self.space.ops, affine=True, track_running_stats=True).fix(ops)

    def recipe(self, network: nn.Module, steps: int) -> CosineSgd:
        assert isinstance(self.config, ImageRetrainConfig)
        return CosineSgd(network, steps, self.config)

    def test(self, network: nn.Module) -> dict[str, Any]:
        correct = self.test_answers(network)
        right, count = int(correct.sum()), len(correct)
        price = cost(network, (1, self.images.in_channels, self.images.image_size, self.images.image_size))
        return {
            "test_accuracy": right / count,
            "test_accuracy_95": list(wilson(right, count)),
            "test_images": count,
            "params": price.params,
            "flops": price.flops,
        }

    @torch.no_grad()
    def test_answers(self, network: nn.Module) -> Tensor:
        """Whether the network is right, for each test image, bool [count]. The network evaluates from now on."""
        network.eval()
        everything = torch.arange(len(self.images.test))
        batches: Iterator[tuple[Tensor, Tensor]] = iter(
            Evaluation(self.images, self.images.test, everything, self.config.batch_size)(len(everything))
        )
        with self.placement.autocast():
            return torch.cat([network(x).argmax(1) == y for x, y in batches]).cpu()

    def _network(self, ops: Sequence[str], cells: int | None = None, **cell: Any) -> Any:
        config, images, space = self.config, self.images, self.space
        sizes = config.channels, cells or config.cells, images.in_channels, len(images.classes)
        return space.network(*sizes, ops=ops, reduction=config.reduction, num_nodes=space.num_nodes, **cell)
