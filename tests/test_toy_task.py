"""A task and a space that the package does not know, from this file alone: the search, its checkpoints and successive halving need
nothing but what a Task says.

A regression whose targets a cell of the space has made: a search must find it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from advnas.config import RetrainConfig, SearchConfig
from advnas.halving import Halving, halve
from advnas.report.console import Progress
from advnas.run.watch import Watch
from advnas.search import search
from advnas.spaces import SPACES, Space
from advnas.state import SearchState
from advnas.tasks.base import Score, Task
from advnas_ext import gate

OPS = {"none": None, "odd": lambda x: x, "even": torch.abs}
UNITS, ITEMS, BATCH = 3, 512, 32
TRUTH = "|even~0|+|odd~0|even~1|"


class ToyNetwork(nn.Module):
    """Each edge has a column of the input, and makes one of the output.

    The operations of an edge share a scale: had each its own, trained, the loss would be flat in all gates, and the advantages 0.
    """

    def __init__(self):
        super().__init__()
        self.scales = nn.Parameter(torch.ones(UNITS))
        self.bias = nn.Parameter(torch.zeros(UNITS))
        self.fixed = None

    def forward(self, x, path=None):
        picks = self.fixed if path is None else path.ops[:, 0].tolist()
        columns = []
        for edge, pick in enumerate(picks):
            operation = list(OPS.values())[pick]
            out = torch.zeros(len(x)) if operation is None else self.scales[edge] * operation(x[:, edge])
            columns.append(out if path is None else gate(out, path.gates[edge, 0]))
        return torch.stack(columns, 1) + self.bias

    def fix(self, ops):
        self.fixed = ops.tolist()
        return self


TOY = Space(name="toy", task="toy", ops=tuple(OPS), num_nodes=3, network=ToyNetwork, zero_op="none")


@dataclass(frozen=True, kw_only=True)
class ToyConfig(SearchConfig):
    task: Literal["toy"] = "toy"
    space: str = "toy"
    data: str = "made"
    epochs: int = 6
    batch_size: int = BATCH
    lr: float = 0.3
    lr_min: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    grad_clip: float = 5.0
    arch_lr: float = 0.03
    valid_batches: int = 4
    device: str | None = "cpu"


class Batches:
    """Of part of the data, in an order that a generator draws: the next one depends on nothing but its state."""

    def __init__(self, x, y, order):
        self.x, self.y, self.order, self.place = x, y, order, 0

    def __len__(self):
        return len(self.x) // BATCH

    def __iter__(self) -> Iterator:
        while self.place < len(self):
            self.place += 1
            at = torch.randint(len(self.x), (BATCH,), generator=self.order)
            yield self.x[at], self.y[at]
        self.place = 0

    def state_dict(self):
        return {"order": self.order.get_state(), "place": self.place}

    def load_state_dict(self, state):
        self.order.set_state(state["order"])
        self.place = state["place"]


class ToyTask(Task):
    name = "toy"
    search_config = ToyConfig
    retrain_config = RetrainConfig
    presets: ClassVar = {}
    shown: ClassVar = {"loss": ".4f", "within": ".1%"}
    result = "within"

    def __init__(self, config):
        super().__init__(config)
        draw = torch.Generator().manual_seed(7)
        self.x = torch.randn(ITEMS, UNITS, generator=draw)
        with torch.no_grad():
            self.y = self.network(TRUTH)(self.x)

    def weight_stream(self, order):
        return Batches(self.x[::2], self.y[::2], order)

    def arch_stream(self, order):
        return Batches(self.x[1::2], self.y[1::2], order)

    def held_out(self, order):
        batches = list(zip(self.x[1::2].split(BATCH), self.y[1::2].split(BATCH), strict=True))
        return lambda count: batches[:count]

    def supernet(self, cells=None):
        return ToyNetwork()

    def score(self, network, batch, path):
        x, y = batch
        out = network(x, path)
        within = ((out - y).abs() < 0.1).double().mean(1).sum()
        return Score(mse_loss(out, y), len(x), {"within": within.detach()})

    def training(self, order):
        return Batches(self.x, self.y, order)

    def network(self, arch):
        return ToyNetwork().fix(self.space.parse(arch))

    def recipe(self, network, steps):
        raise NotImplementedError("this task is searched only")

    def test(self, network):
        raise NotImplementedError("this task is searched only")


@pytest.fixture(autouse=True)
def known_space(monkeypatch):
    monkeypatch.setitem(SPACES, "toy", TOY)


def started(**settings):
    task = ToyTask(ToyConfig(**settings))
    return task, SearchState(task.config, task)


def watched(state):
    return Watch(state, Progress("searching", 1, {}))


def searched(task, state):
    with watched(state) as watch:
        search(task, state, watch)
    return state


@pytest.mark.parametrize("estimator", ["advantage", "rloo", "reinforce"])
def test_it_finds_the_cell_that_made_the_targets(estimator):
    state = searched(*started(estimator=estimator, epochs=120, warmup_epochs=20))
    assert state.history[-1]["arch"] == TRUTH
    assert state.history[-1]["valid_within"] > 0.8


def test_the_columns_of_the_history_are_the_tasks():
    row = searched(*started(epochs=1)).history[0]
    assert list(row) == ["epoch", "seconds", "train_loss", "valid_loss", "valid_within", "entropy", "arch"]


def test_it_goes_on_bit_for_bit():
    task, whole = started(epochs=4)
    searched(task, whole)

    class Stopped(Exception):
        """In the middle of the second epoch."""

    task, first = started(epochs=4)

    def after_step():
        if first.epoch == 1 and first.step == 3:
            raise Stopped

    with watched(first) as watch:
        watch.after_step = after_step
        with pytest.raises(Stopped):
            search(task, first, watch)
    task, second = started(epochs=4)
    second.load_state_dict(first.state_dict())
    searched(task, second)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    assert torch.equal(whole.estimator.logits, second.estimator.logits)


def test_halving_puts_a_wrong_edge_right():
    task, state = started(halving_cells=1, halving_steps=20)
    state.best = [TOY.parse("|even~0|+|odd~0|odd~1|")]
    halving = Halving(state, task)
    with watched(halving) as watch:
        halve(task, halving, watch)
    assert halving.found == TRUTH
