"""A search in somebody's own model: finds its choices, drives them by one estimator, and leaves the network that was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advnas_ext.budget import Budget
from advnas_ext.choice import Current, FixedValue, OnePathChoice
from advnas_ext.estimators import AdvantageEstimator, Estimator
from advnas_ext.path import Path


class Search:
    """Drives all :class:`OnePathChoice` of a model.

    ::

        search = advnas_ext.Search(model, advnas_ext.AdvantageEstimator)
        weights = torch.optim.SGD(search.parameters(), lr=0.025, momentum=0.9)
        logits = torch.optim.Adam([search.logits], lr=3e-4)
        for (x, y), (x_valid, y_valid) in zip(train, valid):
            search.sample(gates=False)                                  # a weight step
            weights.zero_grad()
            criterion(model(x), y).backward()
            weights.step()
            search.sample()                                             # an architecture step
            loss = criterion(model(x_valid), y_valid)
            search.backward(loss)
            search.assign_grad(loss)
            logits.step()
            search.after_step()
        found = search.fix()

    Args:
        model: holds at least one choice of two candidates or more. Choices of one name are one decision; a choice without a name
            gets that of its module.
        estimator: class of the estimator.
        budget: limit on what a path costs, such as ``Budget(PathCost({"block1": [2e6, 9e6], ...}), 60e6)``: the logits stay within
            it, and so does what :meth:`export` and :meth:`fix` give.
        group: processes of ``torch.distributed`` that train the model on parts of a batch each: they follow one path, and their
            advantages and losses are averaged.
        settings: further arguments of the estimator, such as ``total_steps``.

    Attributes:
        model: as given.
        estimator: one edge for each decision.
        path: the one that the choices follow now, or None.
        choices: the choices of each decision, by its name, in the order of the edges.

    Raises:
        ValueError: there is no choice; the budget's costs are not those of the choices; choices of one name differ in their number
            of candidates or in their zero operation; or the estimator runs several candidates and a choice is among values.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: type[Estimator] = AdvantageEstimator,
        *,
        budget: Budget | None = None,
        group: dist.ProcessGroup | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self.group = group
        self.choices = _decisions(model)
        firsts = [places[0] for places in self.choices.values()]
        zeros = [choice.zero_op for choice in firsts]
        if any(op is not None for op in zeros):
            settings.setdefault("zero_op", zeros)
        self.estimator = estimator(len(firsts), list(self._sizes().values()), **settings)
        several = [name for name, places in self.choices.items() if any(choice.values for choice in places)]
        if several and self.estimator.picks > 1:
            raise ValueError(
                f"Search: {estimator.__name__} runs {self.estimator.picks} candidates of a decision at a time, and the choices "
                f"{', '.join(several)} are among values, of which one is possible at a time; take an estimator of one pick, such "
                "as AdvantageEstimator"
            )
        self.budget = None if budget is None else Budget(budget.cost.ordered(list(self.choices)), budget.limit)
        if self.budget is not None:
            self.budget.project(self.estimator)
        self._current = Current(self.estimator.needs_gate_gradients)
        self._projected: tuple[Tensor, Tensor] | None = None  # the gradient before and after the budget's projection
        self._bind()

    def __deepcopy__(self, memo: dict[int, Any]) -> Search:
        """A search of a copy of the model, which follows paths of its own."""
        copied = copy.copy(self)
        memo |= {id(self): copied, id(self.group): self.group}
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied._current = Current(self.estimator.needs_gate_gradients)
        copied._bind()
        return copied

    @property
    def path(self) -> Path | None:
        return self._current.path

    @property
    def logits(self) -> nn.Parameter:
        """Parameter [number of decisions, candidates of the largest], for an optimizer of its own."""
        return self.estimator.logits

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the model."""
        return self.model.parameters()

    def sample(self, generator: torch.Generator | None = None, *, gates: bool = True) -> Path:
        """Draw the path that the model follows from now on.

        Args:
            generator: source of the randomness; None: torch's global one.
            gates: whether advantages are to be computed; False for a step of the weights, which needs none.
        """
        path = self.estimator.sample(generator, group=self.group)
        return self._led_along(path if gates else path.detach())

    def follow(self, places: dict[str, int]) -> Path:
        """Let the model follow a path that is given, as :meth:`export` gives one; without gradients of gates."""
        self._require_places("follow", places)
        return self._led_along(Path.from_ops([places[name] for name in self.choices], requires_grad=False))

    def backward(self, loss: Tensor) -> None:
        """The backward pass of an architecture step: gradients of the gates alone, none of the weights."""
        loss.backward(inputs=self._sampled("backward").leaves)

    def assign_grad(self, loss: Tensor | float, *, scale: float = 1.0, accumulate: bool = False) -> None:
        """See :meth:`advnas_ext.Estimator.assign_grad`: after the backward pass of ``loss``. The gates' gradients are used up
        by it, so that with ``accumulate`` each of several batches on one path counts once: read ``path.gates.grad`` before.

        Raises:
            RuntimeError: no path was sampled, or no choice ran on it.
            ValueError: a value was read and nothing went through its ``gate``, so that its decision would never learn.
        """
        path = self._sampled("assign_grad")
        assert path.active is not None  # follow() has set it
        if not path.active.any():
            raise RuntimeError(
                "Search.assign_grad: no choice of the model ran on this path; call the model between sample() and this"
            )
        if self.estimator.needs_gate_gradients:
            names = list(self.choices)
            silent = [
                names[edge] for edge in path.active.nonzero().flatten().tolist() if edge not in self._current.gated
            ]
            if silent:
                raise ValueError(
                    f"Search.assign_grad: the value of {', '.join(silent)} was read, and nothing that depends on it went through "
                    "its gate(): it would never learn; write y = choice.gate(f(x, choice.value))"
                )
        before = self.logits.grad
        if accumulate:
            self.logits.grad = self._unprojected(before)
        try:
            self.estimator.assign_grad(path, loss, scale=scale, accumulate=accumulate, group=self.group)
        except BaseException:
            self.logits.grad = before
            raise
        for leaf in path.leaves:
            leaf.grad = None
        self._project_grad()

    def after_step(self) -> None:
        """See :meth:`advnas_ext.Estimator.after_step`: after the step of the logits' optimizer."""
        self.estimator.after_step(self._sampled("after_step"))
        if self.budget is not None:
            self.budget.project(self.estimator)

    def export(self) -> dict[str, int]:
        """The most probable candidate of every decision, by its place; with a budget, those of the most probable path within it."""
        found = self.estimator.argmax() if self.budget is None else self.budget.best_path(self.estimator)
        return dict(zip(self.choices, found.tolist(), strict=True))

    def fix(self, places: dict[str, int] | None = None) -> nn.Module:
        """A copy of the model with candidates in place of the choices: plain PyTorch.

        Args:
            places: of the candidates, by decision; None: those of :meth:`export`.

        Raises:
            ValueError: ``places`` are not those of the decisions; or a choice has hooks or a ``forward`` of its own, which its
                candidate would not have.
        """
        places = self.export() if places is None else places
        self._require_places("fix", places)
        copied = copy.deepcopy(self.model)
        for module in copied.modules():
            if isinstance(module, OnePathChoice):  # without a path, for who holds it elsewhere
                module.bind(Current(), module._edge, str(module._decision))
        return _without_choices(copied, places)

    def state_dict(self) -> dict[str, Any]:
        """The model's and the estimator's, and the candidates of each decision."""
        return {
            "model": self.model.state_dict(),
            "estimator": self.estimator.state_dict(),
            "decisions": self._sizes(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave, for the same decisions.

        Raises:
            ValueError: the decisions are others.
        """
        mine = self._sizes()
        if list(state["decisions"].items()) != list(mine.items()):
            raise ValueError(
                f"Search.load_state_dict: the state is of the decisions {state['decisions']}, and these are {mine}"
            )
        self.model.load_state_dict(state["model"])
        self.estimator.load_state_dict(state["estimator"])
        if self.budget is not None:
            self.budget.project(self.estimator)

    def _bind(self) -> None:
        for edge, (name, places) in enumerate(self.choices.items()):
            for choice in places:
                choice.bind(self._current, edge, name)

    def _led_along(self, path: Path) -> Path:
        """The path that the model follows from now on, another search of the same model or not."""
        self._bind()
        self._current.follow(path)
        return path

    def _project_grad(self) -> None:
        self._projected = None
        if self.budget is not None and self.logits.grad is not None:
            whole = self.logits.grad.clone()
            self.budget.project_grad(self.estimator)
            self._projected = whole, self.logits.grad.clone()

    def _unprojected(self, gradient: Tensor | None) -> Tensor | None:
        """What a gradient was before the budget's projection, which is not linear: that of a sum is not the sum of those of its
        terms. A gradient that somebody has changed since is as it is."""
        if gradient is None or self._projected is None or not torch.equal(gradient, self._projected[1]):
            return gradient
        return self._projected[0]

    def _require_places(self, function: str, places: dict[str, int]) -> None:
        unknown = places.keys() ^ self.choices.keys()
        if unknown:
            raise ValueError(
                f"Search.{function}: places must name the decisions {list(self.choices)}, differs in {sorted(unknown)}"
            )
        for name, place in places.items():
            last = len(self.choices[name][0]) - 1
            if not 0 <= place <= last:
                raise ValueError(f"Search.{function}: {name} must be from 0 to {last}, got {place}")

    def _sizes(self) -> dict[str, int]:
        """The number of candidates of each decision."""
        return {name: len(places[0]) for name, places in self.choices.items()}

    def _sampled(self, function: str) -> Path:
        path = self.path
        if path is None or not path.gates.requires_grad:
            raise RuntimeError(f"Search.{function}: there is no path with gates; call sample() first")
        return path


def _decisions(model: nn.Module) -> dict[str, list[OnePathChoice]]:
    found: dict[str, list[OnePathChoice]] = {}
    for place, module in model.named_modules():
        if isinstance(module, OnePathChoice):
            found.setdefault(module.name or place or "choice", []).append(module)
    if not found:
        raise ValueError("Search: the model holds no OnePathChoice; put one where it decides among modules or values")
    for name, places in found.items():
        kinds = {(len(choice), choice.zero_op) for choice in places}
        if len(kinds) > 1:
            raise ValueError(
                f"Search: choices named {name!r} must have as many candidates and the same zero_op, got (candidates, zero_op) "
                f"{sorted(kinds, key=str)}"
            )
    return found


def _without_choices(module: nn.Module, places: dict[str, int]) -> nn.Module:
    if isinstance(module, OnePathChoice):
        place = places[str(module._decision)]
        _require_plain(module)
        return FixedValue(module.values, place) if module.values else _without_choices(module.candidates[place], places)
    # Not named_children(): a module that stands at two places is replaced at both.
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = _without_choices(child, places)
    return module


def _require_plain(choice: OnePathChoice) -> None:
    hooks = choice._forward_hooks or choice._forward_pre_hooks or choice._backward_hooks or choice._backward_pre_hooks
    if hooks or type(choice).forward is not OnePathChoice.forward:
        raise ValueError(
            f"Search.fix: choice {choice._decision!r} has {'hooks' if hooks else 'a forward of its own'}, which the fixed model "
            "would lose; put them on the candidates or around the choice"
        )
