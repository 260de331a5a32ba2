"""NNI's spaces: the same outputs as NNI's own path sampling, advantages against finite differences, runs of the strategy."""

import ast
import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("nni", reason='pip install "advnas-ext[nni]"')
import nni
from comparison import counted
from examples import run_example
from nni.nas.evaluator.pytorch import Classification
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import DARTS, AutoFormer, MobileNetV3Space, NasBench201, ProxylessNAS, ShuffleNetSpace
from nni.nas.nn.pytorch import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLayerNorm,
    MutableLinear,
    MutableMultiheadAttention,
    Repeat,
)
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import RandomOneShot

import advnas_ext
from advnas.adapters import convert
from advnas.adapters.nni import AdvantageNas, sample_of
from advnas_ext import DartsEstimator, RandomEstimator, ReinforceEstimator, Search, native

TESTS = Path(__file__).parents[1]
IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def tanh_conv(size):
    return nn.Sequential(nn.Conv2d(4, 4, size, padding=size // 2), nn.Tanh())


class Layers(ModelSpace):
    """By position and by name, a shared label, one inside of another, one that changes the shape."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice([tanh_conv(1), tanh_conv(5)], label="inner")
        self.widen = LayerChoice({"conv": nn.Conv2d(3, 4, 3, padding=1), "point": nn.Conv2d(3, 4, 1)}, label="widen")
        self.first = LayerChoice([tanh_conv(3), nn.Identity(), inner], label="first")
        self.second = LayerChoice([tanh_conv(3), tanh_conv(1)], label="shared")
        self.third = LayerChoice([tanh_conv(3), tanh_conv(1)], label="shared")
        self.head = head(4)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(self.widen(x)))))


class Inputs(ModelSpace):
    def __init__(self, reduction="sum", n_chosen=1):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, size, padding=size // 2), nn.Tanh()) for size in (1, 3, 5)
        )
        self.choice = InputChoice(3, n_chosen, reduction, label="inputs")
        self.head = head(4 * n_chosen if reduction == "concat" else 4)

    def forward(self, x):
        return self.head(self.choice([branch(x) for branch in self.branches]))


class Depths(ModelSpace):
    """A range, and an expression."""

    def __init__(self, least=1):
        super().__init__()
        self.widen = nn.Conv2d(3, 4, 1)
        self.short = Repeat(lambda index: tanh_conv(3), (least, 2), label="short")
        self.long = Repeat([tanh_conv(3) for _ in range(4)], nni.choice("half", [1, 2]) * 2)
        self.head = head(4)

    def forward(self, x):
        return self.head(self.long(self.short(self.widen(x))))


class Widths(ModelSpace):
    """Channels, kernels and an expression of channels, in layers that are not normalised."""

    def __init__(self):
        super().__init__()
        width, kernel, ratio = nni.choice("width", [2, 4]), nni.choice("kernel", [3, 5]), nni.choice("ratio", [1, 2, 3])
        self.conv = MutableConv2d(3, width, kernel, padding=kernel // 2)
        self.wide = MutableConv2d(width, width * ratio, 1)
        self.linear = MutableLinear(width * ratio, 5)

    def forward(self, x):
        return self.linear(self.wide(self.conv(x).tanh()).tanh().mean((2, 3)))


class Norms(ModelSpace):
    """What a conv decides before a batch norm counts behind it."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [2, 4])
        self.conv = MutableConv2d(3, width, 3, padding=1)
        self.norm = MutableBatchNorm2d(width)
        self.linear = MutableLinear(width, 5)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).tanh().mean((2, 3)))


class Attention(ModelSpace):
    """Widths, and heads and strides, which add no weights."""

    def __init__(self):
        super().__init__()
        width, heads = nni.choice("width", [4, 8]), nni.choice("heads", [1, 2])
        self.stem = MutableConv2d(3, width, 3, stride=nni.choice("stride", [1, 2]), padding=1)
        self.norm = MutableLayerNorm(width)
        self.attention = MutableMultiheadAttention(width, heads)
        self.linear = MutableLinear(width, 5)

    def forward(self, x):
        words = self.norm(self.stem(x).flatten(2).permute(2, 0, 1))
        return self.linear((words + self.attention(words, words, words)[0]).mean(0))


class Cells(ModelSpace):
    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(3, 4, 1)
        ops = {
            "conv": lambda *place: tanh_conv(3),
            "point": lambda *place: tanh_conv(1),
            "skip": lambda *place: nn.Identity(),
        }
        self.cell = Cell(ops, num_nodes=2, num_ops_per_node=2, num_predecessors=1, label="cell")
        self.head = head(8)

    def forward(self, x):
        return self.head(self.cell(self.widen(x)))


SMALL = {
    "layers": Layers,
    "inputs": Inputs,
    "inputs-mean-2": lambda: Inputs("mean", 2),
    "inputs-concat-2": lambda: Inputs("concat", 2),
    "depths": Depths,
    "widths": Widths,
    "norms": Norms,
    "attention": Attention,
    "cells": Cells,
}


def pair(make, seed=0):
    """A space as this package searches it, and as NNI's own path sampling does, with the same weights."""
    torch.manual_seed(seed)
    ours = make()
    theirs = copy.deepcopy(ours)
    RandomOneShot().mutate_model(theirs)
    convert(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def follow(model, sample):
    for module in model.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(dict(sample))


def sample_on(search, path):
    return {
        label: places[0].values[op]
        for (label, places), op in zip(search.choices.items(), path.ops[:, 0].tolist(), strict=True)
    }


def every_path(search, most=24):
    sizes = [range(len(places[0])) for places in search.choices.values()]
    every = list(itertools.product(*sizes))
    return every[:: max(1, len(every) // most)]


@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_gradients_of_weights_are_those_of_nni(name):
    ours, theirs = (model.double() for model in pair(SMALL[name]))
    search = Search(ours, RandomEstimator)
    for ops in every_path(search):
        places = dict(zip(search.choices, ops, strict=True))
        path = search.follow(places)
        follow(theirs, sample_on(search, path))
        outputs = []
        for model in (ours, theirs):
            model.zero_grad()
            outputs.append(model(IMAGES))
            outputs[-1].square().sum().backward()
        assert torch.equal(*outputs), places
        for (label, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (mine.grad is None) == (other.grad is None), label
            if mine.grad is not None:
                assert torch.equal(mine.grad, other.grad), label


# What each gate multiplies, by hand, in NNI's own supernet: a function of the model, the sample and the gate changes it.


def scales_output(module, baseline):
    def apply(model, sample, g):
        def hook(place, arguments, y):
            return g * y + (1 - g) * baseline(place, arguments[0], y)

        return [place.register_forward_hook(hook) for place in module(model)]

    return apply


def scales_weights(*parts):
    """Each part: the name of a parameter, and a function from it to the entries that count as added, as 1 and 0."""

    def apply(model, sample, g):
        with torch.no_grad():
            for name, added in parts:
                weight = model.get_parameter(name)
                weight.mul_(1 + (g - 1) * added(torch.zeros_like(weight), sample))
        return []

    return apply


def beyond(*start):
    """1 from some place on in one dimension."""

    def added(mask, sample):
        mask[tuple(slice(None) if place is None else slice(place, None) for place in start)] = 1
        return mask

    return added


def ring(mask, sample):
    mask[:] = 1
    mask[:, :, 1:4, 1:4] = 0
    return mask


def prefix(depth):
    def output(repeat, x, y):
        for block in repeat.blocks[:depth]:
            x = block(x)
        return x

    return output


def scales_attention(model, sample, g):
    return [model.attention.register_forward_hook(lambda place, arguments, y: (g * y[0], y[1]))]


def own_input(place, x, y):
    return x if x.shape == y.shape else torch.zeros_like(y)


def ratio_rows(mask, sample):
    mask[sample["width"] :] = 1  # all that a ratio of 1 has not
    return mask


def width_rows(mask, sample):
    mask[2 * sample["ratio"] :] = 1
    return mask


def wide_width(mask, sample):
    mask[2 * sample["ratio"] :] = 1
    mask[:, 2:] = 1
    return mask


def columns_of(rows):
    return lambda mask, sample: rows(mask.T, sample).T


def in_proj(mask, sample):
    mask.view(3, 8, -1)[:, 4:] = 1
    if mask.dim() == 2:
        mask[:, 4:] = 1
    return mask


def both(mask, sample):
    mask[4:] = 1
    mask[:, 4:] = 1
    return mask


GATES = {
    "layers": {
        "widen": scales_output(lambda m: [m.widen], own_input),
        "first": scales_output(lambda m: [m.first], own_input),
        "inner": scales_output(lambda m: [m.first[2]], own_input),
        "shared": scales_output(lambda m: [m.second, m.third], own_input),
    },
    "inputs": {"inputs": scales_output(lambda m: [m.choice], lambda place, x, y: sum(x) / 3)},
    "inputs-mean-2": {"inputs": scales_output(lambda m: [m.choice], lambda place, x, y: sum(x) / 3)},
    "inputs-concat-2": {
        "inputs": scales_output(lambda m: [m.choice], lambda place, x, y: torch.cat([sum(x) / 3] * 2, 1))
    },
    "widths": {
        "width": scales_weights(
            ("conv.weight", beyond(2)),
            ("conv.bias", beyond(2)),
            ("wide.weight", wide_width),
            ("wide.bias", width_rows),
            ("linear.weight", columns_of(width_rows)),
        ),
        "kernel": scales_weights(("conv.weight", ring)),
        "ratio": scales_weights(
            ("wide.weight", ratio_rows), ("wide.bias", ratio_rows), ("linear.weight", columns_of(ratio_rows))
        ),
    },
    "norms": {
        "width": scales_weights(
            ("conv.weight", beyond(2)),
            ("conv.bias", beyond(2)),
            ("norm.weight", beyond(2)),
            ("norm.bias", beyond(2)),
            ("linear.weight", beyond(None, 2)),
        )
    },
    "attention": {
        "width": scales_weights(
            ("stem.weight", beyond(4)),
            ("stem.bias", beyond(4)),
            ("norm.weight", beyond(4)),
            ("norm.bias", beyond(4)),
            ("attention.in_proj_weight", in_proj),
            ("attention.in_proj_bias", in_proj),
            ("attention.out_proj.weight", both),
            ("attention.out_proj.bias", beyond(4)),
            ("linear.weight", beyond(None, 4)),
        ),
        "stride": scales_output(lambda m: [m.stem], own_input),
        "heads": scales_attention,
    },
    "depths": {
        "short": scales_output(lambda m: [m.short], prefix(1)),
        "half": scales_output(lambda m: [m.long], prefix(2)),
    },
}


def loss_with(theirs, gate, sample, g):
    model = copy.deepcopy(theirs)
    follow(model, sample)
    handles = gate(model, sample, g)
    loss = model(IMAGES).square().sum()
    for handle in handles:
        handle.remove()
    return loss.item()


@pytest.mark.parametrize("name", GATES)
def test_advantages_against_finite_differences(name):
    ours, theirs = (model.double() for model in pair(SMALL[name]))
    search = Search(ours, RandomEstimator, dtype=torch.float64)
    for seed in range(6):
        path = search.sample(torch.Generator().manual_seed(seed))
        search.backward(ours(IMAGES).square().sum())
        sample = sample_on(search, path)
        for edge, label in enumerate(search.choices):
            low, high = (loss_with(theirs, GATES[name][label], sample, 1 + step) for step in (-1e-5, 1e-5))
            advantage = path.gates.grad[edge, 0].item()
            assert advantage == pytest.approx((high - low) / 2e-5, rel=1e-6, abs=1e-7), (label, sample)


def test_advantages_of_a_cell_against_its_formula():
    ours, theirs = (model.double() for model in pair(Cells))
    search = Search(ours, RandomEstimator, dtype=torch.float64)
    for seed in range(6):
        path = search.sample(torch.Generator().manual_seed(seed))
        search.backward(ours(IMAGES).square().sum())
        sample = sample_on(search, path)
        gates = {label: torch.ones((), dtype=torch.double, requires_grad=True) for label in sample}
        states = [theirs.widen(IMAGES)]
        for node in (1, 2):
            terms = []
            for slot in (f"{node}_0", f"{node}_1"):
                [source] = sample[f"cell/input_{slot}"]
                h = theirs.cell.ops[node - 1][source][sample[f"cell/op_{slot}"]](states[source])
                for kind, baseline in (("op", states[source]), ("input", sum(states) / node)):
                    g = gates[f"cell/{kind}_{slot}"]
                    h = g * h + (1 - g) * baseline
                terms.append(h)
            states.append(sum(terms))
        theirs.head(torch.cat(states[1:], 1)).square().sum().backward()
        for label, advantage in zip(search.choices, path.gates.grad[:, 0].tolist(), strict=True):
            assert advantage == pytest.approx(gates[label].grad.item(), rel=1e-9, abs=1e-11), label


def test_a_depth_of_zero():
    torch.manual_seed(0)
    model = convert(Depths(least=0))
    search = Search(model)
    search.follow({"short": 0, "half": 0})
    expected = model.head(model.long.blocks[1](model.long.blocks[0](model.widen(IMAGES.float()))))
    assert torch.equal(model(IMAGES.float()), expected)


def test_smallest_values_have_no_advantage():
    ours, _ = pair(Widths)
    search = Search(ours.double(), RandomEstimator, dtype=torch.float64)
    seen = set()
    for seed in range(20):
        path = search.sample(torch.Generator().manual_seed(seed))
        search.backward(ours(IMAGES).square().sum())
        for edge, op in enumerate(path.ops[:, 0].tolist()):
            assert (path.gates.grad[edge, 0] == 0) == (op == 0)
            seen.add((edge, op))
    assert len(seen) == 7


def test_two_of_four_inputs_learn_from_the_exact_gradient():
    """Of a loss that is linear in the chosen inputs, the mean of the estimates over all pairs is the gradient of the mean loss."""

    class Sum(ModelSpace):
        def __init__(self):
            super().__init__()
            self.choice = InputChoice(4, 2, "sum", label="inputs")

        def forward(self, inputs):
            return self.choice(inputs)

    model = convert(Sum())
    search = Search(model, dtype=torch.float64)
    inputs = list(torch.randn(4, 3, dtype=torch.double))
    with torch.no_grad():
        search.logits.normal_()
    assert search.choices["inputs"][0].values == tuple(map(list, itertools.combinations(range(4), 2)))
    p = search.estimator.probabilities()[0]
    mean, losses = torch.zeros(6, dtype=torch.double), []
    for place in range(6):
        path = advnas_ext.Path.from_ops([place], dtype=torch.float64)
        search._current.follow(path)
        loss = model(inputs).sum()
        search.backward(loss)
        search.assign_grad(loss)
        losses.append(loss.detach())
        mean += p[place] * search.logits.grad[0]
    losses = torch.stack(losses)
    torch.testing.assert_close(mean, p * (losses - p @ losses))


HUB = {
    "nasbench201": (lambda: NasBench201(8, 1), 32),
    "mobilenetv3": (lambda: MobileNetV3Space(10, width_multipliers=(0.5, 1.0)), 64),
    "proxylessnas": (lambda: ProxylessNAS(10), 64),
    "shufflenet": (lambda: ShuffleNetSpace(10), 224),
    "darts": (lambda: DARTS(width=8, num_cells=4, dataset="cifar"), 32),
    "darts-depth": (lambda: DARTS(width=(8, 16), num_cells=(4, 8), dataset="cifar"), 32),
    "autoformer": (
        lambda: AutoFormer(
            search_embed_dim=(48, 96),
            search_mlp_ratio=(1.0, 2.0),
            search_num_heads=(2, 4),
            search_depth=(2, 3),
            num_labels=10,
        ),
        224,
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_spaces_of_the_hub(name):
    make, size = HUB[name]
    ours, theirs = pair(make)
    search = Search(ours)
    x = torch.randn(2, 3, size, size)
    for seed in range(2):
        path = search.sample(torch.Generator().manual_seed(seed))
        torch.manual_seed(0)  # dropped paths
        y = ours(x)
        loss = y.square().mean()
        search.backward(loss)
        assert path.gates.grad.isfinite().all()
        search.assign_grad(loss, accumulate=True)
        follow(theirs, sample_on(search, path))
        torch.manual_seed(0)
        torch.testing.assert_close(y, theirs(x), rtol=1e-4, atol=1e-5)
    assert search.logits.grad.any()
    found = ours.freeze(sample_of(search))
    assert found(x).shape == y.shape
    assert not any(isinstance(module, BaseSuperNetModule) for module in found.modules())


def test_cells_of_nas_bench_201_run_natively(monkeypatch):
    ours, theirs = pair(lambda: NasBench201(8, 1))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    calls = counted(monkeypatch, native, "_run")
    search = Search(ours)
    x = torch.randn(2, 3, 16, 16)
    search.sample()
    ours(x)
    assert len(calls) == 3
    copied = copy.deepcopy(ours).eval()
    assert not copied.cells[0].one_path.edges["1<-0"][3].op[2].training
    assert copied.cells[0].one_path.edges["1<-0"][3].op[2] is copied.cells[0].layers[0][0]["conv_3x3"].op[2]


def test_gradients_of_native_cells_are_those_of_nni():
    ours, theirs = (model.double() for model in pair(lambda: NasBench201(4, 1)))
    search = Search(ours, RandomEstimator)
    for seed in range(4):
        follow(theirs, sample_on(search, search.sample(torch.Generator().manual_seed(seed), gates=False)))
        for model in (ours, theirs):
            model.zero_grad()
            model(IMAGES).square().sum().backward()
        for (label, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if mine.grad is None or other.grad is None:  # an operation that cannot reach the output
                assert all(p.grad is None or p.grad.abs().max() < 1e-12 for p in (mine, other)), label
            else:
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-9, msg=label)
    same = 0
    for label, mine in ours.named_modules():
        if isinstance(mine, nn.BatchNorm2d):
            other = theirs.get_submodule(label)
            if mine.num_batches_tracked == other.num_batches_tracked > 0:  # not where it cannot reach the output
                torch.testing.assert_close(mine.running_var, other.running_var, msg=label)
                same += 1
    assert same > 10


def evaluator(epochs=1):
    data = TensorDataset(torch.randn(32, 3, 8, 8), torch.randint(5, (32,)))
    loaders = [DataLoader(data, batch_size=8) for _ in range(2)]
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    return Classification(
        train_dataloaders=loaders[0],
        val_dataloaders=loaders[1],
        max_epochs=epochs,
        num_classes=5,
        accelerator="cpu",
        **quiet,
    )


def run(space, strategy, epochs=1):
    strategy(RawFormatModelSpace(space, evaluator(epochs)), SequentialExecutionEngine())
    return strategy


@pytest.mark.parametrize("name", ["layers", "widths", "depths", "cells"])
def test_a_run_of_the_strategy(name):
    torch.manual_seed(0)
    space = SMALL[name]()
    before = copy.deepcopy(space.state_dict())
    strategy = run(space, AdvantageNas(arc_learning_rate=0.1))
    module = strategy.oneshot_module
    assert module.search.logits.abs().max() > 0.05
    assert any(
        not torch.equal(value, before[key]) for key, value in strategy.supernet.state_dict().items() if key in before
    )
    if name != "cells":  # which NNI does not freeze
        [found] = strategy.list_models()
        assert found.sample == sample_of(module.search)
        assert found.executable_model()(IMAGES.float()).shape == (4, 5)
    assert all(sum(row.values()) == pytest.approx(1) for row in module.export_probs().values())
    assert module.resample().keys() == space.simplify().keys()


def test_the_architecture_waits_for_the_weights():
    strategy = run(Layers(), AdvantageNas(warmup_epochs=1, estimator=ReinforceEstimator))
    assert not strategy.oneshot_module.search.logits.any()
    strategy = run(Layers(), AdvantageNas(warmup_epochs=1, estimator=ReinforceEstimator), epochs=2)
    assert strategy.oneshot_module.search.logits.any()


def test_a_checkpoint_holds_the_estimator():
    strategy = run(Layers(), AdvantageNas(arc_learning_rate=0.1))
    checkpoint = {}
    strategy.oneshot_module.on_save_checkpoint(checkpoint)
    other = run(Layers(), AdvantageNas(arc_learning_rate=0.1))
    other.oneshot_module.on_load_checkpoint(checkpoint)
    assert torch.equal(other.oneshot_module.search.logits, strategy.oneshot_module.search.logits)


def test_finds_the_better_layer():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(LayerChoice([Doubled(), nn.Identity()], label=f"layer{i}") for i in range(3)))

        def forward(self, x):
            return self.layers(x)

    torch.manual_seed(0)
    search = Search(convert(Space()))
    optimizer = torch.optim.Adam([search.logits], lr=0.1)
    x = torch.randn(16, 4)
    for _ in range(60):
        search.sample()
        loss = (search.model(x) - x).square().mean()
        search.backward(loss)
        search.assign_grad(loss)
        optimizer.step()
    assert sample_of(search) == {"layer0": 1, "layer1": 1, "layer2": 1}


class Other(BaseSuperNetModule):
    pass


def space_of(mutable):
    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = mutable()

    return Space


@pytest.mark.parametrize(
    "mutable, text",
    [
        (
            lambda: MutableConv2d(3, nni.choice("width", [2, 4]), 1, padding=nni.quniform("much", 0, 4, 1)),
            r"AdvantageNas: decision 'much' must be among a finite number of values, got .*; make it a nni\.choice",
        ),
        (
            lambda: InputChoice(3, None, label="any"),
            "AdvantageNas: the inputs of 'any' must have a number n_chosen, got None; give one",
        ),
        (
            lambda: InputChoice(30, 5, label="many"),
            "AdvantageNas: 5 of 30 inputs of 'many' are 142506 candidates, and at most 1000 are possible; choose among fewer",
        ),
    ],
)
def test_spaces_that_cannot_be_searched(mutable, text):
    with pytest.raises(ValueError, match=text):
        convert(space_of(mutable)())


def test_a_module_without_a_gate_is_named():
    def hook(module, name, memo, settings):
        return Other() if isinstance(module, LayerChoice) else None

    with pytest.raises(
        ValueError, match="AdvantageNas: widen is a Other, which has no gate; let its hook make a subclass of"
    ):
        AdvantageNas(mutation_hooks=[hook]).mutate_model(Layers())


def test_a_space_is_converted_once():
    space = convert(Layers())
    with pytest.raises(ValueError, match="AdvantageNas: this Layers is a supernet already; make a new space"):
        convert(space)


def test_cells_with_other_candidates_run_as_they_are():
    torch.manual_seed(0)
    space = NasBench201(4, 1)
    space.cells[0].layers[0][0]["conv_3x3"] = nn.Conv2d(4, 4, 3, padding=1)
    assert not hasattr(convert(space).cells[0], "one_path")
    assert hasattr(space.cells[2], "one_path")
    search = Search(space)
    search.sample()
    search.backward(space(IMAGES.float()).square().sum())


def test_frozen_weights_have_gates_too():
    space = Widths()
    for weight in space.parameters():
        weight.requires_grad_(False)
    search = Search(convert(space))
    search.sample()
    loss = space(IMAGES.float()).square().sum()
    search.backward(loss)
    search.assign_grad(loss)


def test_estimators_of_several_picks_are_refused():
    with pytest.raises(ValueError, match="DartsEstimator runs 3 candidates of a decision at a time"):
        run(Layers(), AdvantageNas(DartsEstimator))


def test_the_example_of_the_strategy(tmp_path):
    """In a home of its own, where NNI keeps its experiments."""
    program = "from examples import run_example; run_example('docs/adapters.md', 'nni')['experiment'].stop()"
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [found] = ast.literal_eval(next(line for line in done.stdout.splitlines() if line.startswith("[{'cell/0_1'")))
    assert found.keys() == NasBench201(4, 1).simplify().keys()


def test_the_example_of_a_loop():
    names = run_example("docs/adapters.md", "nni-loop")
    assert names["search"].logits.any()
    assert not any(isinstance(module, BaseSuperNetModule) for module in names["network"].modules())
