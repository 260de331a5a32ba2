"""NNI 3.0's spaces: :class:`AdvantageNas` is a strategy where one of NNI's own would stand, such as ``GumbelDARTS``.

NNI's path sampling supernet runs what the decisions of an :class:`advnas_ext.Search` say; their gates take:

LayerChoice       what the layer puts out, in comparison with its input where both are one tensor of one shape
InputChoice       the chosen inputs, in comparison with as many means of all inputs
Repeat            what it puts out, in comparison with its smallest depth
Cell              what each operation puts out: for the operation in comparison with its input, for the input with the mean of all
arguments         of a convolution, linear layer, norm or attention: the weights that a value adds to those of the smallest one.
                  A decision that shows in several layers in series counts in each. Where a value adds no weights (heads, strides,
                  dropout): what the layer puts out, in comparison with its input where that has the same shape
NasBench201Cell   natively, each operation in comparison with its input
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from advnas.adapters.versions import peer
from advnas.adapters.weights import call_with, gated_weight, read_by
from advnas_ext import AdvantageEstimator, Estimator, OnePathCell, OnePathChoice, Search
from advnas_ext.choice import path_of

with peer("nni"):
    from nni.mutable import Categorical, CategoricalMultiple, Mutable
    from nni.nas.hub.pytorch import nasbench201 as hub
    from nni.nas.hub.pytorch.modules.nasbench201 import NasBench201Cell
    from nni.nas.nn.pytorch import ModelSpace
    from nni.nas.nn.pytorch.cell import preprocess_cell_inputs
    from nni.nas.oneshot.pytorch.differentiable import DartsLightningModule
    from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
    from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
    from nni.nas.oneshot.pytorch.supermodule.sampling import (
        PathSamplingCell,
        PathSamplingInput,
        PathSamplingLayer,
        PathSamplingRepeat,
    )
    from nni.nas.strategy import RandomOneShot

MOST_SUBSETS = 1000  # of the inputs of one choice: each is a candidate


class AdvantageNas(RandomOneShot):
    """AdvantageNAS (Sato, Sakuma & Akimoto 2021), or another estimator of one path, as a strategy of NNI.

    ::

        NasExperiment(space, evaluator, AdvantageNas()).run()

    Weights and architecture learn in turns, as in NNI's DARTS: a batch of the evaluator's validation data for the architecture,
    whose backward pass computes the advantages alone, then one of its training data. The spaces are those of NNI's RandomOneShot.

    Args:
        estimator: class of an estimator with one pick.
        settings: further arguments of the estimator, such as ``{"total_steps": 1000}``.
        arc_learning_rate: of Adam on the logits, with betas (0.5, 0.999) and weight decay 1e-3, as in NNI's DARTS.
        gradient_clip_val: of the weights' gradients; None: they are not clipped.
        log_prob_every_n_step: how often the probabilities are logged.
        warmup_epochs: in which the architecture does not learn.
        mutation_hooks: for modules of your own; they make subclasses of NNI's path sampling modules.

    Raises:
        TypeError: from a run, where the space is no ModelSpace.
        ValueError: from a run, where a decision is not among a finite number of values, a module of a hook has no gate, or the
            space is a supernet already.
    """

    def __init__(
        self,
        estimator: type[Estimator] = AdvantageEstimator,
        *,
        settings: dict[str, Any] | None = None,
        arc_learning_rate: float = 3e-4,
        gradient_clip_val: float | None = None,
        log_prob_every_n_step: int = 10,
        warmup_epochs: int = 0,
        mutation_hooks: list[Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(mutation_hooks=mutation_hooks)
        self.estimator = estimator
        self.settings = settings or {}
        self.schedule = {
            "arc_learning_rate": arc_learning_rate,
            "gradient_clip_val": gradient_clip_val,
            "log_prob_every_n_step": log_prob_every_n_step,
            "warmup_epochs": warmup_epochs,
        }

    def mutate_model(self, model: ModelSpace) -> ModelSpace:
        """The supernet, in place: what :class:`advnas_ext.Search` takes."""
        if any(isinstance(module, _Gated) for module in model.modules()):
            raise ValueError(f"AdvantageNas: this {type(model).__name__} is a supernet already; make a new space")
        decisions = {label: _decision(label, mutable) for label, mutable in model.simplify().items()}
        super().mutate_model(model)
        for name, module in model.named_modules():
            if isinstance(module, BaseSuperNetModule):
                _give_gates(name, module, decisions)
        for module in model.modules():
            if type(module) is NasBench201Cell:
                _make_native(module)
        self.space = model
        return model

    def configure_oneshot_module(self, training_module: Any) -> AdvantageModule:
        search = Search(self.space, self.estimator, **self.settings)
        return AdvantageModule(training_module, search, **self.schedule)

    def train_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        return {"train": train_dataloader_fn(), "val": val_dataloader_fn()}

    def val_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        return None


class AdvantageModule(DartsLightningModule):
    """The steps of NNI's DARTS, on one path each."""

    def __init__(self, training_module: Any, search: Search, **schedule: Any) -> None:
        super().__init__(training_module, **schedule)
        self.__dict__["search"] = search  # no submodule: the logits stay on the host

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        if self.trainer.current_epoch >= self.warmup_epochs:
            self.architecture_step(batch["val"], 2 * batch_idx)
        self.search.sample(gates=False)
        result = self.training_module.training_step(batch["train"], 2 * batch_idx + 1)
        self.advance_optimization(_loss_of(result), batch_idx, self.gradient_clip_val)
        self.advance_lr_schedulers(batch_idx)
        if batch_idx % self.log_prob_every_n_step == 0:
            self.log_probs(self.export_probs())
        return result

    def architecture_step(self, batch: Any, batch_idx: int) -> None:
        path = self.search.sample()
        loss = _loss_of(self.training_module.training_step(batch, batch_idx))
        self.manual_backward(loss, inputs=path.leaves)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self.search.assign_grad(loss, scale=1.0 if scaler is None else scaler.get_scale())
        # Not by Lightning, whose scaler is for the weights.
        self.architecture_optimizers().optimizer.step()
        self.search.after_step()

    def resample(self) -> dict[str, Any]:
        path = self.search.sample(gates=False)
        return self._values(path.ops[:, 0].tolist())

    def export(self) -> dict[str, Any]:
        return self._values(self.search.export().values())

    def export_probs(self) -> dict[str, Any]:
        rows = self.search.estimator.probabilities().tolist()
        return {
            label: dict(zip(map(str, places[0].values), row, strict=False))
            for (label, places), row in zip(self.search.choices.items(), rows, strict=True)
        }

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.search.logits]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["advnas_estimator"] = self.search.estimator.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.search.estimator.load_state_dict(checkpoint["advnas_estimator"])

    def _values(self, places: Any) -> dict[str, Any]:
        choices = self.search.choices.items()
        return {label: found[0].values[place] for (label, found), place in zip(choices, places, strict=True)}


def adapt_space(space: ModelSpace) -> None:
    """What :func:`advnas.adapters.convert` does to a space of NNI."""
    AdvantageNas().mutate_model(space)


def sample_of(search: Search) -> dict[str, Any]:
    """The most probable values by label, as ``space.freeze`` takes them; ``search`` is of a space that was converted."""
    return {label: search.choices[label][0].values[place] for label, place in search.export().items()}


def _loss_of(result: Any) -> Tensor:
    return result["loss"] if isinstance(result, dict) else result


def _decision(label: str, mutable: Mutable) -> OnePathChoice:
    """A decision of NNI's as one of ours, among values."""
    if isinstance(mutable, Categorical):
        return OnePathChoice(values=mutable.values, name=label)
    if not isinstance(mutable, CategoricalMultiple):
        raise ValueError(
            f"AdvantageNas: decision {label!r} must be among a finite number of values, got {mutable!r}; make it a nni.choice"
        )
    if mutable.n_chosen is None:
        raise ValueError(f"AdvantageNas: the inputs of {label!r} must have a number n_chosen, got None; give one")
    subsets = math.comb(len(mutable.values), mutable.n_chosen)
    if subsets > MOST_SUBSETS:
        raise ValueError(
            f"AdvantageNas: {mutable.n_chosen} of {len(mutable.values)} inputs of {label!r} are {subsets} candidates, and at most "
            f"{MOST_SUBSETS} are possible; choose among fewer inputs, or fewer of them"
        )
    chosen = itertools.combinations(mutable.values, mutable.n_chosen)
    return OnePathChoice(values=[list(subset) for subset in chosen], name=label)


class _Gated(BaseSuperNetModule):
    """A supernet module of NNI's that does what the decisions say."""

    decisions: Sequence[Any]  # a ModuleList of OnePathChoices

    def adopt(self) -> None:
        """Called once, when the module has its decisions."""

    def choice(self, label: str) -> Any:
        return next(choice for choice in self.decisions if choice.name == label)

    def values(self) -> dict[str, Any]:
        return {choice.name: choice.value for choice in self.decisions}


class _GatedLayer(_Gated, PathSamplingLayer):
    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        [choice] = self.decisions
        h = self[choice.value](*arguments, **keywords)
        return _gated(choice, h, arguments[0] if arguments else None)


class _GatedInput(_Gated, PathSamplingInput):
    def forward(self, inputs: Sequence[Any]) -> Any:
        [choice] = self.decisions
        sampled = choice.value
        h = self._reduction([inputs[place] for place in sampled], sampled)
        mean = _mean(inputs) if choice.needs_baseline else None
        return _gated(choice, h, None if mean is None else self._reduction([mean] * len(sampled), sampled))


class _GatedRepeat(_Gated, PathSamplingRepeat):
    def forward(self, x: Any) -> Any:
        sample = self.values()
        depth = self.depth_choice.freeze(sample)
        states = [x]
        for block in self.blocks[:depth]:
            states.append(block(states[-1]))
        y = self._at(states, depth)
        for choice in self.decisions:
            least = min(self.depth_choice.freeze(sample | {choice.name: value}) for value in choice.values)
            y = _gated(choice, y, self._at(states, least) if choice.needs_baseline else None)
        return y

    def _at(self, states: list[Any], depth: int) -> Any:
        return self._reduction([states[depth]], [depth])


class _GatedCell(_Gated, PathSamplingCell):
    def forward(self, *inputs: Any) -> Any:
        taken = preprocess_cell_inputs(self.num_predecessors, *inputs)
        states = self.preprocessor(taken)
        for node, sources in enumerate(self.ops, start=self.num_predecessors):
            terms = [self._term(f"{node}_{place}", sources, states) for place in range(self.num_ops_per_node)]
            states.append(sum(terms[1:], start=terms[0]))
        joined = torch.cat(states[self.num_predecessors :], self.concat_dim)
        return self.postprocessor(joined, taken)

    def _term(self, place: str, sources: Any, states: list[Tensor]) -> Tensor:
        op, source = (self.choice(f"{self.label}/{kind}_{place}") for kind in ("op", "input"))
        [k] = source.value
        h = _gated(op, sources[k][op.value](states[k]), states[k])
        return _gated(source, h, _mean(states) if source.needs_baseline else None)


class _GatedOperation(_Gated, MixedOperation):
    """Its gates are on weights."""

    def adopt(self) -> None:
        self.read: dict[Any, dict[str, Tensor]] = {}  # by arguments
        first = {choice.name: choice.values[0] for choice in self.decisions}
        self.smallest: dict[str, Any] = {}  # value of each decision on which the number of weights depends
        for choice in self.decisions:
            numbers = [self._number_read(first | {choice.name: value}) for value in choice.values]
            if min(numbers) < max(numbers):
                self.smallest[choice.name] = choice.values[numbers.index(min(numbers))]

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        sample = self.values()
        self.sampling_policy.resample(self, sample)
        if not any(choice.needs_baseline for choice in self.decisions):
            return super().forward(*arguments, **keywords)
        weights = dict(self.named_parameters())
        for label, value in self.smallest.items():
            for name, read in self._read(sample | {label: value}).items():
                weights[name] = gated_weight(self.choice(label), weights[name], read)
        y = call_with(self, weights, super().forward, arguments, keywords)
        for choice in self.decisions:
            if choice.name not in self.smallest:
                y = _gated(choice, y, arguments[0] if arguments else None)
        return y

    def freeze_weight(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Without what the operation has not, such as a bias, which could not be loaded."""
        taken = super().freeze_weight(*arguments, **keywords)
        return {name: part for name, part in taken.items() if part is not None}

    def _number_read(self, sample: dict[str, Any]) -> int:
        return sum(int(read.sum()) for read in self._read(sample).values())

    def _read(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Which entries of its parameters the operation reads."""
        chosen = {name: mutable.freeze(sample) for name, mutable in self.mutable_arguments.items()}
        example = next(self.parameters())
        key = (repr(chosen), example.device, example.dtype)
        if key not in self.read:
            self.read[key] = read_by(self, lambda: self.freeze_weight(**{**self.init_arguments, **chosen}).values())
        return self.read[key]


class _NativeCell(NasBench201Cell):
    """NAS-Bench-201's cell: the operations are NNI's objects, the engine runs them."""

    one_path: OnePathCell

    def forward(self, inputs: Tensor) -> Tensor:
        return self.one_path(inputs, path_of([layer.decisions[0] for layer in _layers(self)]))

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        found = super().freeze(sample)
        found.__class__ = NasBench201Cell
        del found.__dict__["one_path"]
        return found


GATED = {
    PathSamplingLayer: _GatedLayer,
    PathSamplingInput: _GatedInput,
    PathSamplingRepeat: _GatedRepeat,
    PathSamplingCell: _GatedCell,
    MixedOperation: _GatedOperation,
}
_classes: dict[type, type] = {}


def _give_gates(name: str, module: Any, decisions: dict[str, OnePathChoice]) -> None:
    kind = type(module)
    own = {label for mutable in module.mutables for label in mutable.simplify()}
    if kind not in _classes:
        gated = next((gated for known, gated in GATED.items() if issubclass(kind, known)), None)
        if gated is None:
            raise ValueError(
                f"AdvantageNas: {name} is a {kind.__name__}, which has no gate; let its hook make a subclass of one of "
                f"{', '.join(known.__name__ for known in GATED)}"
            )
        _classes[kind] = type(f"Gated{kind.__name__}", (gated, kind), {})
    module.__class__ = _classes[kind]
    module.decisions = nn.ModuleList(decisions[label] for label in sorted(own))
    module.adopt()


def _gated(choice: Any, h: Any, baseline: Any) -> Any:
    """Every tensor of an output through the gate; a baseline counts where it is one tensor of the same shape."""
    if isinstance(h, Tensor):
        suits = isinstance(baseline, Tensor) and baseline.shape == h.shape
        return choice.gate(h, baseline if suits else None)
    return tree_map(lambda part: choice.gate(part) if _floats(part) else part, h)


def _floats(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def _mean(inputs: Sequence[Any]) -> Tensor | None:
    """Of tensors of one shape."""
    if not all(_floats(x) and x.shape == inputs[0].shape for x in inputs):
        return None
    return torch.stack([x.detach() for x in inputs]).mean(0)


# NNI's candidates of NAS-Bench-201 that the engine has: its name of each, and NNI's class
NATIVE = {
    "none": ("none", hub.Zero),
    "skip_connect": ("skip_connect", nn.Identity),
    "conv_1x1": ("nor_conv_1x1", hub.ReLUConvBN),
    "conv_3x3": ("nor_conv_3x3", hub.ReLUConvBN),
    "avg_pool_3x3": ("avg_pool_3x3", hub.Pooling),
    "max_pool_3x3": ("max_pool_3x3", hub.Pooling),
}


def _layers(cell: NasBench201Cell) -> list[Any]:
    """The LayerChoices of a cell, in the order of the engine's edges."""
    return [layer for node in cell.layers for layer in node]


def _make_native(cell: NasBench201Cell) -> None:
    """Let the engine run a cell if its candidates are NNI's own ones of NAS-Bench-201; otherwise leave it as it is."""
    layers = _layers(cell)
    names = layers[0].names
    known = all(name in NATIVE and type(layer[name]) is NATIVE[name][1] for layer in layers for name in names)
    if not known or cell.in_features != cell.out_features:
        return
    ours = OnePathCell(cell.out_features, [NATIVE[name][0] for name in names], cell.num_tensors, True, True, "input")
    for layer, candidates in zip(layers, ours.edges.values(), strict=True):
        for name, op in zip(names, cast(nn.ModuleList, candidates), strict=True):
            if hasattr(op, "op"):
                op.op = layer[name].op
    cell.__class__ = _NativeCell
    cell.__dict__["one_path"] = ours  # no submodule: its layers are those of the cell, under the names that they have
