"""A decision inside of a model, among modules or values. :class:`advnas_ext.Search` finds and drives them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advnas_ext.gate import checked_baseline, gate
from advnas_ext.path import Path

WATCHED = 16  # backward passes of a choice in which its advantage is looked at
BLIND = 1e-4  # |<dy, h>| / (|dy| |h|) of an edge whose loss does not depend on the scale of h; random vectors of 10^6 have 1e-3


@dataclass(eq=False)
class Current:
    """The path that all choices of a search follow, in all copies of its model."""

    needs_gates: bool = True  # whether the estimator learns from advantages
    path: Path | None = None
    rows: list[list[int]] = field(default_factory=list)  # path.ops
    weights: list[list[float]] = field(default_factory=list)  # path.gates
    gated: set[int] = field(default_factory=set)  # edges whose gate has been used
    parts: dict[tuple[int, ...], Path] = field(default_factory=dict)  # the path of some edges alone

    def follow(self, path: Path | None) -> None:
        self.path, self.gated, self.parts = path, set(), {}
        self.rows = [] if path is None else path.ops.tolist()
        self.weights = [] if path is None else path.gates.tolist()
        if path is not None:
            path.active = torch.zeros(path.num_edges, dtype=torch.bool, device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> Current:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model has no path."""
        return Current(self.needs_gates).__dict__


class OnePathChoice(nn.Module):
    """One of several candidate modules, of which a call runs what the path picks; or one of several values.

    ::

        self.op = OnePathChoice([Conv(3), Conv(5), nn.Identity()])              # y = self.op(x)

        self.width = OnePathChoice(values=[32, 48, 64], name="width")           # n = self.width.value
                                                                                # y = self.width.gate(f(x, n))

    All choices with one name are one decision. The output is multiplied by the gate of its decision, which collects the
    advantage: see :func:`advnas_ext.gate`. What a value changed has to go through ``gate`` once, at the last place where all of
    it is in one tensor.

    Args:
        modules: candidates; they take the same arguments and return a tensor each, of one shape.
        values: candidates that are not modules: kernel sizes, widths, numbers of heads, depths, resolutions, ...
        name: of the decision; None: the name of this module in its model.
        baseline: "input": the advantage is in comparison with the first argument of the call, where it has the shape of the output
            (and without a baseline elsewhere); None: in comparison with no output at all. Of values: see :meth:`gate`.
        zero_op: place of the candidate whose output is always zero, if there is one; only :class:`advnas_ext.AdvantageEstimator`
            treats it in a way of its own, and does not need to where the baseline is the input.

    Attributes:
        candidates: the modules, ``nn.ModuleList``; empty for values.
        values: the values; empty for modules.

    Raises:
        ValueError: there are no candidates or both kinds, or ``baseline`` is unknown.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module] | None = None,
        *,
        values: Sequence[Any] | None = None,
        name: str | None = None,
        baseline: str | None = "input",
        zero_op: int | None = None,
    ) -> None:
        super().__init__()
        if (modules is None) == (values is None):
            raise ValueError("OnePathChoice: give either modules or values")
        self.candidates = nn.ModuleList(() if modules is None else modules)
        self.values = () if values is None else tuple(values)
        self.name = name
        if len(self) == 0:
            raise ValueError("OnePathChoice: needs at least one candidate, got none")
        self.baseline = checked_baseline("OnePathChoice", baseline)
        self.zero_op = zero_op
        self._current = Current()
        self._edge = 0
        self._decision = name  # as its search calls it
        self._watch: Watch | None = Watch()

    def __len__(self) -> int:
        return len(self.candidates) + len(self.values)

    def bind(self, current: Current, edge: int, name: str) -> None:
        """What :class:`advnas_ext.Search` does to every choice that it finds.

        Args:
            name: of the decision, for messages. The name that was given stays, since in another model it may be another decision.
        """
        self._current, self._edge, self._decision = current, edge, name

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The gated output of the picked candidate; of several picks the sum.

        Raises:
            RuntimeError: there is no path; the choice is among values, which are not called; or a candidate has changed the input
                that it is compared with, or that another one takes.
            TypeError: a candidate does not return a tensor.
        """
        if torch.compiler.is_compiling():  # the candidates are graphs then; otherwise each path would be one
            return torch.compiler.disable(self._run, recursive=False)(*arguments, **keywords)
        return self._run(*arguments, **keywords)

    def _run(self, *arguments: Any, **keywords: Any) -> Tensor:
        if self.values:
            raise RuntimeError(
                f"OnePathChoice {self._decision!r}: it is among values; read .value, and pass what depends on it to .gate()"
            )
        path, picks = self._active_picks()
        first = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
        terms = []
        for pick, op in picks:
            if not path.gates.requires_grad and self._current.weights[self._edge][pick] == 0:
                continue
            version = _version(first)
            h = self.candidates[op](*arguments, **keywords)
            if not isinstance(h, Tensor):
                raise TypeError(
                    f"OnePathChoice {self._decision!r}: candidate {op} must return a tensor, got {type(h).__name__}; let the "
                    "choice be inside of it, or return one tensor"
                )
            compared = first if self.baseline == "input" and first is not None and first.shape == h.shape else None
            is_read = len(picks) > 1 or (compared is not None and path.gates.requires_grad)
            if is_read and _version(first) != version:
                raise RuntimeError(
                    f"OnePathChoice {self._decision!r}: candidate {op} changes its input in place, which is still needed; give its "
                    "first layer inplace=False"
                )
            terms.append(self._gated(h, path, pick, compared))
        return self._with_offset(sum(terms[1:], start=terms[0]), path)

    @property
    def value(self) -> Any:
        """The picked value.

        Raises:
            RuntimeError: there is no path; or the choice is among modules.
        """
        if not self.values:
            raise RuntimeError(f"OnePathChoice {self._decision!r}: it is among modules; call it")
        _, picks = self._active_picks()
        return self.values[picks[0][1]]

    @property
    def needs_baseline(self) -> bool:
        """Whether the path collects advantages, so that a baseline which costs something is worth computing.

        Raises:
            RuntimeError: there is no path.
        """
        return self._path().gates.requires_grad

    def gate(self, h: Tensor, baseline: Tensor | None = None) -> Tensor:
        """``h``, gated: for what depends on :attr:`value`.

        Args:
            h: of any shape.
            baseline: of the shape of ``h``, such as the input of a block around which there is no skip connection.
        """
        path, picks = self._active_picks()
        return self._with_offset(self._gated(h, path, picks[0][0], baseline), path)

    def extra_repr(self) -> str:
        return f"name={self.name!r}" + (f", values={self.values}" if self.values else "")

    def _path(self) -> Path:
        path = self._current.path
        if path is None:
            raise RuntimeError(
                f"OnePathChoice {self._decision!r}: there is no path; make a Search of the model and call its sample()"
            )
        return path

    def _active_picks(self) -> tuple[Path, list[tuple[int, int]]]:
        """The path, and which of its picks are which candidates: the decision takes part in it from now on."""
        path = self._path()
        assert path.active is not None  # follow() has set it
        path.active[self._edge] = True
        size = len(self)
        return path, [(pick, op) for pick, op in enumerate(self._current.rows[self._edge]) if op < size]

    def _gated(self, h: Tensor, path: Path, pick: int, baseline: Tensor | None) -> Tensor:
        if not path.gates.requires_grad:
            weight = self._current.weights[self._edge][pick]
            return h if weight == 1 else h * weight
        self._current.gated.add(self._edge)
        y = gate(h, path.gates_on(h.device)[self._edge, pick], baseline)
        if self._watch is not None and self._current.needs_gates and y.requires_grad and path.picks == 1:
            self._watch = self._watch.on(y, h if baseline is None else h - baseline, str(self._decision))
        return y

    def _with_offset(self, y: Tensor, path: Path) -> Tensor:
        offsets = path.offsets_on(y.device)
        return y if offsets is None else y + offsets[self._edge].to(y.dtype)


class FixedValue(nn.Module):
    """What :meth:`advnas_ext.Search.fix` puts in the place of a choice among values; it is used in the same way.

    Attributes:
        values: of the choice.
        place: of the value that was found.
    """

    needs_baseline = False

    def __init__(self, values: tuple[Any, ...], place: int) -> None:
        super().__init__()
        self.values = values
        self.place = place

    def __len__(self) -> int:
        return len(self.values)

    @property
    def value(self) -> Any:
        return self.values[self.place]

    def gate(self, h: Tensor, baseline: Tensor | None = None) -> Tensor:
        return h

    def extra_repr(self) -> str:
        return repr(self.value)


def path_of(choices: Sequence[OnePathChoice | FixedValue]) -> Path:
    """The path of some choices of one search alone, for a module that takes a path: ``cell(x, path_of(self.choices))``.

    Args:
        choices: one for each edge of the module, all of a search or all fixed. Those who ask for the same choices get the same
            path, so that on a GPU all their gates' gradients cross to the host in one copy.

    Raises:
        RuntimeError: there is no path.
        ValueError: there are no choices, or choices of both kinds or of none.
    """
    if not choices:
        raise ValueError("path_of: needs at least one choice, got none")
    searched = [choice for choice in choices if isinstance(choice, OnePathChoice)]
    fixed = [choice.place for choice in choices if isinstance(choice, FixedValue)]
    if len(choices) not in (len(searched), len(fixed)):
        raise ValueError(
            "path_of: takes choices of a search, or what fix() has made of choices among values; got others too"
        )
    if fixed:
        return Path.from_ops(fixed, requires_grad=False)
    current, edges = searched[0]._current, tuple(choice._edge for choice in searched)
    path, _ = searched[0]._active_picks()
    if edges in current.parts:
        return current.parts[edges]
    index = list(edges)
    assert path.active is not None  # follow() has set it
    path.active[index] = True
    current.gated.update(edges)
    offsets = None if path.offsets is None else _rows(path.offsets, index)
    part = Path(path.ops[index], _rows(path.gates, index), offsets)
    if torch.is_grad_enabled() or not path.gates.requires_grad:  # others would do without the gradient
        current.parts[edges] = part
    return part


def _rows(tensor: Tensor, index: Sequence[int]) -> Tensor:
    """``tensor[index]``, through which more than one backward pass can go: nothing is saved for it."""
    return torch.stack([tensor[row] for row in index])


def _version(tensor: Tensor | None) -> int:
    """Changes when the tensor is changed in place. Tensors of inference mode do not count."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


class Watch:
    """Looks at the first backward passes of a choice, and warns where the loss does not depend on the scale of its output."""

    def __init__(self) -> None:
        self.left = WATCHED
        self.largest: Tensor | None = None

    def on(self, y: Tensor, gain: Tensor, name: str) -> Watch | None:
        """Watch the backward pass of ``y``. Returns what is to watch the next one."""
        if self.left == 0:
            return None
        self.left -= 1
        left, gain = self.left, gain.detach()

        def look(dy: Tensor) -> None:
            dy, weighed = dy.detach().flatten().float(), gain.flatten().float()
            # NaN where one of them is 0, which says nothing.
            cosine = (dy @ weighed).abs() / (dy.norm() * weighed.norm())
            known = cosine.nan_to_num(-1.0) if self.largest is None else torch.fmax(self.largest, cosine)
            self.largest = known
            if left == 0 and 0 <= known.item() < BLIND:
                self._warn(name, known.item())

        y.register_hook(look)
        return self

    @staticmethod
    def _warn(name: str, largest: float) -> None:
        warnings.warn(
            f"choice {name!r}: its advantage was below {largest:.0e} of what its size allows in {WATCHED} backward passes, so it "
            "will not learn. A batch or layer norm that follows makes the loss blind to the scale of its output: use "
            'baseline="input" where the shapes agree or give gate() a baseline, place it behind the norm, or take SwapEstimator',
            stacklevel=2,
        )
