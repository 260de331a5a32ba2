"""What all estimators share: logits, checks, sampling, and a gradient that is assigned whole or not at all.

    p_e = softmax(logits_e),   edges independent

An estimator knows the picked operations, their gates, the gates' gradient and the loss; it never sees the network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from advnas_ext.path import Path


class Estimator(nn.Module, ABC):
    """A distribution over paths, and an estimate of how the loss depends on its logits.

    One architecture step is ``path = sample()``, a forward and a backward pass on ``path``, ``assign_grad(path, loss)``, a
    step of any torch optimizer on ``logits``, ``after_step(path)``. Everything lives on the host.

    Attributes:
        logits: Parameter [num_edges, num_ops], starts at 0.
        learns: whether the method changes its logits at all.
        needs_gate_gradients: whether ``assign_grad`` reads ``path.gates.grad``. Where it does not, no backward pass is needed.

    Args:
        num_edges: number of decisions, at least 1.
        num_ops: candidate operations of each, at least 2.
        zero_op: index of the operation whose output is zero, if there is one. Only :class:`AdvantageEstimator` treats it in a
            way of its own.
        total_steps: architecture steps of the whole search, for the estimators that have a schedule.
        dtype: of the logits, of the gates of sampled paths and of all that is remembered: torch.float32 or torch.float64.

    Raises:
        ValueError: an argument is out of range.
    """

    learns: ClassVar[bool] = True
    needs_gate_gradients: ClassVar[bool] = True
    _path_type: ClassVar[type[Path]] = Path
    _needs_total_steps: ClassVar[bool] = False

    def __init__(
        self,
        num_edges: int,
        num_ops: int,
        zero_op: int | None = None,
        *,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self._require("num_edges must be an integer >= 1", num_edges, is_integer(num_edges, 1))
        self._require("num_ops must be an integer >= 2", num_ops, is_integer(num_ops, 2))
        self._require(
            f"zero_op must be None or an integer from 0 to {num_ops - 1}",
            zero_op,
            zero_op is None or (is_integer(zero_op, 0) and zero_op < num_ops),
        )
        optional = "" if self._needs_total_steps else "None or "
        self._require(
            f"total_steps, the architecture steps of the whole search, must be {optional}an integer >= 0",
            total_steps,
            is_integer(total_steps, 0) or (total_steps is None and not self._needs_total_steps),
        )
        self._require("dtype must be torch.float32 or torch.float64", dtype, dtype in (torch.float32, torch.float64))
        self.num_edges = num_edges
        self.num_ops = num_ops
        self.zero_op = zero_op
        self.total_steps = total_steps
        self.logits = nn.Parameter(torch.zeros(num_edges, num_ops, dtype=dtype, device="cpu"))

    @property
    def picks(self) -> int:
        """Operations that a sampled path runs on each edge."""
        return 1

    @property
    def paths_per_batch(self) -> int:
        """Paths that are to be measured on one batch, one after the other: calls of ``assign_grad`` for one gradient."""
        return 1

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> Path:
        """Draw a path.

        Args:
            generator: source of the randomness; None: torch's global one.

        Returns:
            A path of ``num_edges`` edges and ``picks`` picks whose gates require a gradient.

        Raises:
            FloatingPointError: the logits are not numbers.
            ValueError: the logits are not on the host.
        """
        self._require("logits must stay on the host", self.logits.device, self.logits.device.type == "cpu")
        if self.probabilities().isnan().any():
            raise FloatingPointError(
                f"{self._name}.sample: the logits are not finite; lower their learning rate, or resume from a checkpoint"
            )
        return self._sample(generator)

    @torch.no_grad()
    def assign_grad(self, path: Path, loss: Tensor | float, *, scale: float = 1.0) -> None:
        """Set ``logits.grad``, replacing what was there, to the estimate of dE[loss]/dlogits from one path.

        Args:
            path: from :meth:`sample`, after the backward pass.
            loss: one number, the loss of that path.
            scale: what the loss was multiplied by before its backward pass, such as ``scaler.get_scale()`` of a ``GradScaler``;
                gradients of gates are divided by it, so that those of different steps have one unit.

        Raises:
            FloatingPointError: the loss, a gradient of a gate or the estimate is infinite or not a number.
            TypeError: ``path`` is not a path of the kind that :meth:`sample` returns, or ``loss`` is not a number.
            ValueError: ``path`` does not fit this estimator, ``path.gates.grad`` is missing, ``loss`` is not one number, or
                ``scale`` is not positive.
            After an error the logits, ``logits.grad`` and everything remembered are as they were.
        """
        self._check_path("assign_grad", path)
        value = self._loss_value(loss)
        self._require("scale must be a number above 0", scale, 0 < scale < math.inf)
        gradient, remembered = self._estimate(path, self._gate_gradients(path) / scale, value)
        for result in (gradient, *remembered.values()):
            if result is not None and not result.isfinite().all():
                raise FloatingPointError(
                    f"{self._name}.assign_grad: the gradient of the logits overflows; scale the loss down"
                )
        for name, new in remembered.items():
            self.get_buffer(name).copy_(new)
        self.logits.grad = gradient

    @torch.no_grad()
    def after_step(self, path: Path) -> None:
        """What the method does to the logits after the optimizer's step, and its schedule. Nothing for most.

        Args:
            path: the one that ``assign_grad`` got.
        """
        self._check_path("after_step", path)
        self._after_step(path)

    def advance_to(self, step: int) -> None:
        """Put the schedule, where the method has one, where it is after ``step`` calls of :meth:`after_step`."""

    @torch.no_grad()
    def argmax(self) -> Tensor:
        """The most probable operation of every edge, int64 [num_edges]; the first one among equals."""
        return self.logits.argmax(1)

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """softmax(logits), [num_edges, num_ops]."""
        return torch.softmax(self.logits, 1)

    def entropy(self) -> float:
        """Mean over the edges of the entropy of softmax(logits), in nats: log(num_ops) for uniform logits."""
        return torch.special.entr(self.probabilities()).sum(1).mean().item()

    def extra_repr(self) -> str:
        return f"num_edges={self.num_edges}, num_ops={self.num_ops}"

    @abstractmethod
    def _sample(self, generator: torch.Generator | None) -> Path:
        """See :meth:`sample`; the logits are known to be finite."""

    @abstractmethod
    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The gradient of the logits, and new values of buffers by name. Changes nothing itself.

        Args:
            path: known to fit.
            gate_grad: finite, [num_edges, picks], in the dtype of the logits; 0 where the estimator does not need it
                and no backward pass was run.
            loss: finite scalar in the dtype of the logits.
        """

    def _after_step(self, path: Path) -> None:
        """See :meth:`after_step`; the path is known to fit."""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _require(self, requirement: str, value: object, holds: bool) -> None:
        if not holds:
            raise ValueError(f"{self._name}: {requirement}, got {value!r}")

    def _gumbel(self, generator: torch.Generator | None) -> Tensor:
        """Independent standard Gumbel noise, [num_edges, num_ops]."""
        return torch.empty_like(self.logits).exponential_(generator=generator).log_().neg_()

    def _draw(self, generator: torch.Generator | None) -> Path:
        """One operation an edge from softmax(logits): the Gumbel-max trick."""
        noisy = self.logits + self._gumbel(generator)
        return Path.from_ops(noisy.argmax(1), dtype=self.logits.dtype)

    def _all_ops(self) -> Tensor:
        """Every operation of every edge in order, int64 [num_edges, num_ops]."""
        return torch.arange(self.num_ops, device="cpu").repeat(self.num_edges, 1)

    def _by_op(self, path: Path, values: Tensor) -> Tensor:
        """[num_edges, picks] values of the picks, put where their operations are: [num_edges, num_ops], 0 elsewhere."""
        return torch.zeros_like(self.logits).scatter_(1, path.ops, values)

    def _score(self, ops: Tensor) -> Tensor:
        """dlog p(a)/dlogits = onehot(a) - p for one operation an edge: [..., num_edges] to [..., num_edges, num_ops]."""
        onehot = nn.functional.one_hot(ops, self.num_ops).to(self.logits.dtype)
        return onehot - self.probabilities()

    def _check_path(self, function: str, path: Path) -> None:
        where = f"{self._name}.{function}: path"
        if not isinstance(path, self._path_type):
            raise TypeError(
                f"{where} must be a {self._path_type.__name__}, got {type(path).__name__}; take it from sample()"
            )
        if path.num_edges != self.num_edges or path.picks != self.picks:
            raise ValueError(
                f"{where} must have {self.num_edges} edges with {self.picks} picks, got {path.num_edges} with "
                f"{path.picks}; take it from sample()"
            )
        if int(path.ops.max()) >= self.num_ops:
            raise ValueError(f"{where}.ops must be below {self.num_ops}, got {path.ops.tolist()}")

    def _loss_value(self, loss: Tensor | float) -> Tensor:
        where = f"{self._name}.assign_grad: loss"
        if not isinstance(loss, (Tensor, int, float)):
            raise TypeError(f"{where} must be a tensor or a number, got {type(loss).__name__}")
        value = loss if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64, device="cpu")
        if value.numel() != 1:
            raise ValueError(f"{where} must be one number, got shape {list(value.shape)}; take its mean")
        value = value.detach().reshape(()).to("cpu", self.logits.dtype)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{where} is {value.item()}; skip this step, or lower the learning rate of the weights"
            )
        return value

    def _gate_gradients(self, path: Path) -> Tensor:
        gradient = path.gates.grad
        if gradient is None:
            if not self.needs_gate_gradients:
                return torch.zeros_like(path.gates, dtype=self.logits.dtype)
            raise ValueError(
                f"{self._name}.assign_grad: path.gates.grad is missing; call loss.backward() first, on a loss that depends "
                "on the gates of this very path"
            )
        return finite(f"{self._name}.assign_grad: path.gates.grad", gradient).to(self.logits.dtype)


def finite(what: str, gradient: Tensor) -> Tensor:
    """``gradient``, detached.

    Raises:
        FloatingPointError: an entry is infinite or not a number.
    """
    gradient = gradient.detach()
    if not gradient.isfinite().all():
        raise FloatingPointError(
            f"{what} has infinite or NaN entries; skip this step, or lower the learning rate of the weights"
        )
    return gradient


def is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
