"""Estimators that compare several paths: one gradient for M losses.

gradient = sum_i weight_i (onehot(a_i) - p),   weights a function of the losses L_1 .. L_M

The term of a path is 0 for the edges that were not active on it: its loss did not depend on them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator, is_integer
from advnas_ext.path import Path


class CollectingEstimator(Estimator):
    """Base of the estimators that give one gradient for every ``num_samples`` calls of ``assign_grad``.

    The calls before the last one set ``logits.grad`` to None, which torch's optimizers skip. They need the losses only, no
    gradients of gates.

    Args:
        num_samples: M, at least 2.
        Others: see :class:`Estimator`.
    """

    needs_gate_gradients = False
    _least_samples: ClassVar[int] = 2
    ops: Tensor  # int64 [num_samples, num_edges], valid up to ``collected``
    active: Tensor  # bool [num_samples, num_edges]
    losses: Tensor  # [num_samples]
    collected: Tensor  # int64 scalar

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        num_samples: int,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, total_steps=total_steps, dtype=dtype)
        least = self._least_samples
        self._require(f"num_samples must be an integer >= {least}", num_samples, is_integer(num_samples, least))
        self.num_samples = num_samples
        self.register_buffer("ops", torch.zeros(num_samples, num_edges, dtype=torch.int64, device="cpu"))
        self.register_buffer("active", torch.ones(num_samples, num_edges, dtype=torch.bool, device="cpu"))
        self.register_buffer("losses", torch.zeros(num_samples, dtype=dtype, device="cpu"))
        self.register_buffer("collected", torch.zeros((), dtype=torch.int64, device="cpu"))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}active", self.active)  # of versions whose edges were always active
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @abstractmethod
    def _weights(self, losses: Tensor) -> Tensor:
        """Of the scores of the paths, from their losses; both [num_samples]."""

    def _gradient(self, ops: Tensor, active: Tensor, losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """From all paths, as :meth:`_estimate`.

        Args:
            ops, active: [num_samples, num_edges].
            losses: [num_samples].
        """
        return (self._weights(losses)[:, None, None] * self._score(ops) * active[..., None]).sum(0), {}

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        index = int(self.collected)
        collected = {"ops": self.ops.clone(), "active": self.active.clone(), "losses": self.losses.clone()}
        ops, active, losses = collected.values()
        ops[index], active[index], losses[index] = path.ops[:, 0], self._active(path)[:, 0], loss
        if index + 1 < self.num_samples:
            return None, {**collected, "collected": self.collected + 1}
        gradient, remembered = self._gradient(ops, active, losses)
        return gradient, {**collected, **remembered, "collected": torch.zeros_like(self.collected)}
