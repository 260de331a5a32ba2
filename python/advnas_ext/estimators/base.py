"""What all estimators share: logits, checks, sampling, and a gradient that is assigned whole or not at all.

    p_e = softmax(logits_e),   edges independent

Edges may have different numbers of operations. Logits are [num_edges, num_ops] all the same, for the largest number; the entries
beyond an edge's own operations are padding: of probability 0, never drawn, and with a gradient of 0.

An estimator knows the picked operations, their gates, the gates' gradient and the loss; it never sees the network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advnas_ext.estimators import parallel
from advnas_ext.path import Path


class Estimator(nn.Module, ABC):
    """A distribution over paths, and an estimate of how the loss depends on its logits.

    One architecture step is ``path = sample()``, a forward and a backward pass on ``path``, ``assign_grad(path, loss)``, a
    step of any torch optimizer on ``logits``, ``after_step(path)``. Everything lives on the host.

    Attributes:
        logits: Parameter [num_edges, num_ops], starts at 0.
        num_ops: of the edge that has most.
        padding: bool [num_edges, num_ops], which entries are beyond their edge's operations.
        learns: whether the method changes its logits at all.
        needs_gate_gradients: whether ``assign_grad`` reads ``path.gates.grad``. Where it does not, no backward pass is needed.

    Args:
        num_edges: number of decisions, at least 1.
        num_ops: candidate operations of each: one number for all, at least 2, or one for each edge, at least 1 and one of them 2.
        zero_op: index of the operation whose output is zero, if there is one; or one for each edge. Only
            :class:`AdvantageEstimator` treats it in a way of its own.
        total_steps: architecture steps of the whole search, for the estimators that have a schedule.
        dtype: of the logits, of the gates of sampled paths and of all that is remembered: torch.float32 or torch.float64.

    Raises:
        ValueError: an argument is out of range.
    """

    learns: ClassVar[bool] = True
    needs_gate_gradients: ClassVar[bool] = True
    _path_type: ClassVar[type[Path]] = Path
    _needs_total_steps: ClassVar[bool] = False
    padding: Tensor
    _is_zero_op: Tensor  # bool [num_edges, num_ops]

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self._require("num_edges must be an integer >= 1", num_edges, is_integer(num_edges, 1))
        sizes = self._checked_sizes(num_edges, num_ops)
        zero_ops = self._zero_ops(sizes, zero_op)
        optional = "" if self._needs_total_steps else "None or "
        self._require(
            f"total_steps, the architecture steps of the whole search, must be {optional}an integer >= 0",
            total_steps,
            is_integer(total_steps, 0) or (total_steps is None and not self._needs_total_steps),
        )
        self._require("dtype must be torch.float32 or torch.float64", dtype, dtype in (torch.float32, torch.float64))
        self.num_edges = num_edges
        self.num_ops = max(sizes)
        self.zero_op = zero_op
        self.total_steps = total_steps
        self.logits = nn.Parameter(torch.zeros(num_edges, self.num_ops, dtype=dtype, device="cpu"))
        places = torch.arange(self.num_ops, device="cpu")
        # Not in the state: they are arguments.
        self.register_buffer("padding", places >= torch.tensor(sizes, device="cpu")[:, None], persistent=False)
        self.register_buffer("_is_zero_op", places == torch.tensor(zero_ops, device="cpu")[:, None], persistent=False)

    @property
    def sizes(self) -> list[int]:
        """The number of operations of each edge."""
        return (~self.padding).sum(1).tolist()

    @property
    def picks(self) -> int:
        """Operations that a sampled path runs on each edge. Where an edge has fewer, the rest are padding: operations beyond
        its own, which do not run."""
        return 1

    @property
    def paths_per_batch(self) -> int:
        """Paths that are to be measured on one batch, one after the other: calls of ``assign_grad`` for one gradient."""
        return 1

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None, *, group: dist.ProcessGroup | None = None) -> Path:
        """Draw a path.

        Args:
            generator: source of the randomness; None: torch's global one.
            group: processes of ``torch.distributed`` that train one network on parts of a batch each: all get the path that the
                first of them draws. Call it in all of them.

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
        if group is None:
            parallel.warn_without_group(f"{self._name}.sample")
            return self._sample(generator)
        return self._sample(parallel.shared_generator(generator, group))

    @torch.no_grad()
    def assign_grad(
        self,
        path: Path,
        loss: Tensor | float,
        *,
        scale: float = 1.0,
        accumulate: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Set ``logits.grad``, replacing what was there, to the estimate of dE[loss]/dlogits from one path.

        Args:
            path: from :meth:`sample`, after the backward pass.
            loss: one number, the loss of that path.
            scale: what the loss was multiplied by before its backward pass, such as ``scaler.get_scale()`` of a ``GradScaler``;
                gradients of gates are divided by it, so that those of different steps have one unit.
            accumulate: add to ``logits.grad`` instead, as ``backward()`` does: over several paths or batches, before one step of
                the optimizer. Gradients of gates add up, too: for several batches on one path, one call each, set those of
                ``path.leaves`` to None in between, as :class:`advnas_ext.Search` does.
            group: as for :meth:`sample`. Gradients of gates and losses become their means over all processes, and an edge is
                active that is so in one of them. Call it in all of them.

        Raises:
            FloatingPointError: the loss, a gradient of a gate or the estimate is infinite or not a number.
            TypeError: ``path`` is not a path of the kind that :meth:`sample` returns, or ``loss`` is not a number.
            ValueError: ``path`` does not fit this estimator, ``path.gates.grad`` is missing, ``loss`` is not one number, or
                ``scale`` is not positive.
            RuntimeError: processes of ``group`` have different paths.
            After an error the logits, ``logits.grad`` and everything remembered are as they were.
        """
        self._check_path("assign_grad", path)
        value = self._loss_value(loss)
        self._require("scale must be a number above 0", scale, 0 < scale < math.inf)
        gate_grad = self._gate_gradients(path)
        if group is not None:
            gate_grad, value = self._averaged(path, gate_grad, value, group)
        self._require_finite(gate_grad, value)
        gradient, remembered = self._estimate(path, gate_grad / scale, value)
        for result in (gradient, *remembered.values()):
            if result is not None and not result.isfinite().all():
                raise FloatingPointError(
                    f"{self._name}.assign_grad: the gradient of the logits overflows; scale the loss down"
                )
        for name, new in remembered.items():
            self.get_buffer(name).copy_(new)
        self._add_grad(gradient, self.logits.grad if accumulate else None)

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
        return self._known_logits().argmax(1)

    @torch.no_grad()
    def topology(self, nodes: Sequence[Sequence[int]], inputs: int = 2, zero_op: int | None = None) -> Tensor:
        """The cell that DARTS derives (Liu, Simonyan & Yang 2019, section 2.4): each node keeps its strongest incoming edges. The
        strength of an edge is the probability of its best operation other than the zero operation.

        Args:
            nodes: the incoming edges of each node.
            inputs: edges that a node keeps, or all where it has fewer.
            zero_op: place of an operation that puts out zeros, where the estimator was not told of it.

        Returns:
            int64 [num_edges]: the operation of an edge that is kept, never the zero operation, and -1 for one that is not. Among
            equals the first one is kept. Edges that no node names are not kept.

        Raises:
            ValueError: an edge does not exist, or has no operation besides the zero operation.
        """
        named = [edge for edges in nodes for edge in edges]
        holds = sorted(set(named)) == sorted(named) and all(0 <= edge < self.num_edges for edge in named)
        self._require(f"nodes must name edges from 0 to {self.num_edges - 1}, each once", nodes, holds)
        left_out = self.padding | self._is_zero_op
        if zero_op is not None:
            left_out = left_out | (torch.arange(self.num_ops, device="cpu") == zero_op)
        strength, best = self.probabilities().masked_fill(left_out, -1).max(1)
        kept = torch.full((self.num_edges,), -1, device="cpu")
        for edges in nodes:
            for edge in sorted(edges, key=lambda edge: -strength[edge].item())[:inputs]:
                self._require("an edge needs an operation besides the zero operation", edge, strength[edge].item() >= 0)
                kept[edge] = best[edge]
        return kept

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """softmax(logits), [num_edges, num_ops]; 0 for padding."""
        return torch.softmax(self._known_logits(), 1)

    def policy(self, logits: Tensor) -> Tensor:
        """The probability of every operation on a path that :meth:`sample` draws with these logits, or its weight there where all
        run: softmax(logits) for most. Both [..., num_edges, num_ops]."""
        return torch.softmax(logits.masked_fill(self.padding, -math.inf), -1)

    def entropy(self) -> float:
        """Mean over the edges of the entropy of softmax(logits), in nats: for uniform logits that of log(operations)."""
        return torch.special.entr(self.probabilities()).sum(1).mean().item()

    def extra_repr(self) -> str:
        num_ops = self.sizes if self.padding.any() else self.num_ops
        return f"num_edges={self.num_edges}, num_ops={num_ops}"

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Estimator:
        """Conversions of a module that holds this one: the dtype may follow, all stays on the host."""

        def on_host(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if result.device.type == "cpu" and result.dtype in (torch.float32, torch.float64, tensor.dtype):
                return result
            return tensor.to(result.dtype) if result.dtype in (torch.float32, torch.float64) else tensor

        return super()._apply(on_host, recurse)

    def _checked_sizes(self, num_edges: int, num_ops: int | Sequence[int]) -> list[int]:
        """The operations of each edge."""
        if not isinstance(num_ops, Sequence):
            self._require("num_ops must be an integer >= 2", num_ops, is_integer(num_ops, 2))
            return [num_ops] * num_edges
        holds = len(num_ops) == num_edges and all(is_integer(size, 1) for size in num_ops) and max(num_ops) >= 2
        self._require(f"num_ops must be {num_edges} integers >= 1, one of them >= 2", num_ops, holds)
        return [int(size) for size in num_ops]

    def _zero_ops(self, sizes: list[int], zero_op: int | Sequence[int | None] | None) -> list[int]:
        """The zero operation of each edge, or -1."""
        each = zero_op if isinstance(zero_op, Sequence) else [zero_op] * len(sizes)
        self._require(f"zero_op must be one for each of {len(sizes)} edges", zero_op, len(each) == len(sizes))
        for size, op in zip(sizes, each, strict=True):
            holds = op is None or (is_integer(op, 0) and op < size)
            self._require(f"zero_op must be None or an integer from 0 to {size - 1}", op, holds)
        return [-1 if op is None else op for op in each]

    def _known_logits(self) -> Tensor:
        """The logits, with -inf for padding whatever the parameter holds there."""
        return self.logits.masked_fill(self.padding, -math.inf)

    def _gumbel(self, generator: torch.Generator | None) -> Tensor:
        """Independent standard Gumbel noise, [num_edges, num_ops]."""
        return torch.empty_like(self.logits).exponential_(generator=generator).log_().neg_()

    def _draw(self, generator: torch.Generator | None) -> Path:
        """One operation an edge from softmax(logits): the Gumbel-max trick."""
        noisy = self._known_logits() + self._gumbel(generator)
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

    def _active(self, path: Path) -> Tensor:
        """Which edges took part in the loss, bool [num_edges, 1]."""
        return (
            torch.ones(self.num_edges, 1, dtype=torch.bool, device="cpu")
            if path.active is None
            else path.active[:, None]
        )

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
        return value.detach().reshape(()).to("cpu", self.logits.dtype)

    def _gate_gradients(self, path: Path) -> Tensor:
        gradient = path.gates.grad
        if gradient is None:
            if not self.needs_gate_gradients:
                return torch.zeros_like(path.gates, dtype=self.logits.dtype)
            raise ValueError(
                f"{self._name}.assign_grad: path.gates.grad is missing; call loss.backward() first, on a loss that depends "
                "on the gates of this very path"
            )
        return gradient.detach().to(self.logits.dtype)

    def _averaged(self, path: Path, gate_grad: Tensor, loss: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        """Means over the processes of a group. Before any value is looked at, so that all go on or none."""
        active = self._active(path)[:, 0]
        mine = torch.cat([path.ops.flatten(), active, gate_grad.flatten(), loss[None]])
        sizes = [path.ops.numel(), active.numel(), gate_grad.numel(), 1]
        ops, active, gradient, mean_loss = parallel.mean(mine, group).split(sizes)
        if not torch.equal(ops, path.ops.flatten().to(ops)):
            raise RuntimeError(
                f"{self._name}.assign_grad: the processes of the group have different paths; pass the group to sample() too, "
                "and start them from the same state"
            )
        path.active = active > 0
        return gradient.reshape(gate_grad.shape), mean_loss[0]

    def _require_finite(self, gate_grad: Tensor, loss: Tensor) -> None:
        require_finite(f"{self._name}.assign_grad: loss", loss)
        require_finite(f"{self._name}.assign_grad: path.gates.grad", gate_grad)

    def _add_grad(self, gradient: Tensor | None, earlier: Tensor | None) -> None:
        """Make the sum of both, where there are any, the gradient of the logits; padding has none."""
        if gradient is not None:
            gradient = gradient.masked_fill(self.padding, 0)
        known = [part for part in (earlier, gradient) if part is not None]
        self.logits.grad = sum(known[1:], start=known[0]) if known else None


def through_softmax(p: Tensor, values: Tensor) -> Tensor:
    """d<p, values>/dlogits for p = softmax(logits) over the last dimension: p (values - <p, values>), of the shape of both."""
    return p * (values - (p * values).sum(-1, keepdim=True))


def require_finite(what: str, value: Tensor) -> None:
    if not value.isfinite().all():
        found = f"is {value.item()}" if value.dim() == 0 else "has infinite or NaN entries"
        raise FloatingPointError(f"{what} {found}; skip this step, or lower the learning rate of the weights")


def is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
