"""whittle 0.6's supernets of language models: :class:`AdvantageStrategy` stands where whittle's ``RandomStrategy`` would.

A sub-network is a slice of every weight, and the first of the blocks. The gates of a decision take

weights     what it adds to the weights of its smallest value, in all layers
blocks      for the number of layers: what each block beyond the fewest puts out, in comparison with what it takes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from advnas.adapters.versions import peer
from advnas.adapters.weights import call_with, gated_weight, read_by
from advnas_ext import AdvantageEstimator, Estimator, OnePathChoice, Search

with peer("whittle"):
    from syne_tune.config_space import Categorical, Integer
    from whittle.models.gpt import GPT
    from whittle.search.search_spaces import SimpleSearchSpace
    from whittle.training_strategies.base_strategy import BaseTrainingStrategy

MOST_VALUES = 1000  # of one decision


class Supernet(nn.Module):
    """A GPT of whittle whose sub-network is what the decisions of an :class:`advnas_ext.Search` say.

    ::

        supernet = Supernet(model, {"sub_network_n_embd": choice([64, 128]), "sub_network_n_layers": choice([2, 4])})
        search = Search(supernet)
        search.sample()
        loss = criterion(supernet(tokens), targets)

    Args:
        model: is shared, not copied.
        space: a search space of whittle, or a dict for ``SimpleSearchSpace``, of ``choice``, ``randint`` and ``lograndint``.

    Raises:
        TypeError: ``model`` is not a GPT of whittle.
        ValueError: a decision has no finite number of values, or more than 1000.
    """

    def __init__(self, model: GPT, space: Any) -> None:
        super().__init__()
        if not isinstance(model, GPT):
            raise TypeError(f"Supernet: model must be a GPT of whittle, got {type(model).__name__}")
        self.model = model
        self.space = SimpleSearchSpace(space) if isinstance(space, dict) else space
        domains = self.space.config_space.items()
        self.decisions = nn.ModuleList(
            OnePathChoice(values=_values(name, domain), name=name) for name, domain in domains
        )
        self.read: dict[Any, dict[str, Tensor]] = {}  # entries of the weights of a layer, by what it was set to

    def arguments(self, search: Search) -> dict[str, Any]:
        """The arguments of ``model.set_sub_network`` for the most probable values."""
        return self.space.cast({name: search.choices[name][0].values[place] for name, place in search.export().items()})

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        choices: list[Any] = list(self.decisions)
        values = {choice.name: choice.value for choice in choices}
        config = self.space.cast(values)
        if not choices[0].needs_baseline:
            self.model.set_sub_network(**config)
            return self.model(*arguments, **keywords)
        weights, handles, idle = dict(self.model.named_parameters()), [], []
        for choice in choices:
            smallest = self.space.cast(values | {choice.name: min(choice.values)})
            if smallest == config:
                idle.append(choice)
                continue
            beyond = range(self._depth(smallest), self._depth(config))
            handles += [self.model.transformer.h[block].register_forward_hook(_gate_block(choice)) for block in beyond]
            self._gate_weights(choice, weights, smallest, config)
        self.model.set_sub_network(**config)
        try:
            y = call_with(self.model, weights, self.model, arguments, keywords)
        finally:
            for handle in handles:
                handle.remove()
        for choice in idle:  # an advantage of 0
            y = choice.gate(y, y)
        return y

    def _depth(self, config: dict[str, Any]) -> int:
        return config.get("sub_network_n_layers") or self.model.config.n_layer

    def _gate_weights(
        self, choice: Any, weights: dict[str, Tensor], smallest: dict[str, Any], config: dict[str, Any]
    ) -> None:
        """Gate all weights that both sub-networks have, and of which the smallest one reads less."""
        depth, settings = min(self._depth(smallest), self._depth(config)), []
        for sub_network in (config, smallest):
            self.model.set_sub_network(**sub_network)
            settings.append([(name, layer, _setting(layer)) for name, layer in self._layers(depth)])
        for (name, layer, own), (_, _, least) in zip(*settings, strict=True):
            if own == least:
                continue
            for weight, read in self._read_by(name, layer, least).items():
                full = f"{name}.{weight}"
                if full in weights:  # a tied one goes by its first name
                    weights[full] = gated_weight(choice, weights[full], read)

    def _layers(self, depth: int) -> Iterator[tuple[str, Any]]:
        """Those that take a part of their weights, but for those of blocks beyond a depth."""
        beyond = tuple(f"transformer.h.{block}." for block in range(depth, self.model.config.n_layer))
        for name, layer in self.model.named_modules():
            if hasattr(layer, "extract_weights") and not name.startswith(beyond):
                yield name, layer

    def _read_by(self, name: str, layer: Any, setting: Any) -> dict[str, Tensor]:
        example = next(layer.parameters())
        key = (name, setting, example.device, example.dtype)
        if key not in self.read:
            self.read[key] = read_by(layer, layer.extract_weights)
        return self.read[key]


class AdvantageStrategy(BaseTrainingStrategy):
    """AdvantageNAS, or another estimator of one path, as a training strategy of whittle.

    ::

        strategy = AdvantageStrategy(sampler=RandomSampler(space), loss_function=criterion)     # as for RandomStrategy
        loss = strategy(model, inputs, outputs)

    A call makes a step of the architecture, then the backward pass of the weights on a sub-network drawn anew; the weights'
    optimizer is the caller's, as ever. ``strategy.search`` has the logits, ``strategy.supernet`` the decisions.

    Args:
        validation: returns a batch, inputs and outputs, for the architecture; None: that of the call.
        estimator: class of an estimator with one pick.
        settings: its further arguments, such as ``{"total_steps": 1000}``.
        learning_rate: of Adam on the logits, with betas (0.5, 0.999).
        keywords: of ``BaseTrainingStrategy``; the space is that of ``sampler``.
    """

    def __init__(
        self,
        *,
        validation: Callable[[], tuple[Tensor, Tensor]] | None = None,
        estimator: type[Estimator] = AdvantageEstimator,
        settings: dict[str, Any] | None = None,
        learning_rate: float = 3e-4,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.validation = validation
        self.estimator = estimator
        self.settings = settings or {}
        self.learning_rate = learning_rate
        self.supernet: Supernet | None = None

    def __call__(self, model: GPT, inputs: Tensor, outputs: Tensor, scale_loss: float = 1, **keywords: Any) -> float:
        if self.supernet is None or self.supernet.model is not model:
            self._search(model)
        self._learn(*((inputs, outputs) if self.validation is None else self.validation()))
        self.search.sample(gates=False)
        loss = self.compute_loss(self.supernet, inputs, outputs) * scale_loss
        loss.backward() if self.fabric is None else self.fabric.backward(loss)
        model.reset_super_network()
        return loss.item()

    def _search(self, model: GPT) -> None:
        self.supernet = Supernet(model, self.sampler.search_space)
        self.search = Search(self.supernet, self.estimator, **self.settings)
        self.optimizer = torch.optim.Adam([self.search.logits], self.learning_rate, betas=(0.5, 0.999))

    def _learn(self, inputs: Tensor, outputs: Tensor) -> None:
        self.search.sample()
        loss = self.compute_loss(self.supernet, inputs, outputs)
        self.search.backward(loss)
        self.search.assign_grad(loss)
        self.optimizer.step()
        self.search.after_step()


def _values(name: str, domain: Any) -> list[Any]:
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer) and domain.upper - domain.lower < MOST_VALUES:
        return list(range(domain.lower, domain.upper + 1))
    raise ValueError(
        f"Supernet: decision {name!r} must have at most {MOST_VALUES} values, got {domain!r}; give a choice of a few"
    )


def _setting(layer: Any) -> str:
    """What a layer was set to."""
    return repr({name: value for name, value in vars(layer).items() if name.startswith(("sub_network", "sampled"))})


def _gate_block(choice: Any) -> Callable[..., Tensor]:
    return lambda block, arguments, y: choice.gate(y, arguments[0])
