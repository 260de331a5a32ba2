"""Estimators whose gradient goes through a softmax of the logits: DARTS, SNAS, GDAS.

w = softmax((logits + noise) / temperature)
dL/dlogits_k = w_k (v_k - sum_j w_j v_j) / temperature,   v = dL/dw
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator, through_softmax
from advnas_ext.path import Path


@dataclass(eq=False, slots=True, kw_only=True)
class RelaxedPath(Path):
    """A path that remembers the softmax it came from.

    Attributes:
        weights: [num_edges, num_ops], rows sum to 1.
        temperature: of the softmax.
        Others: see :class:`advnas_ext.Path`.
    """

    weights: Tensor
    temperature: float


class RelaxedEstimator(Estimator):
    """Base of the estimators that draw a :class:`RelaxedPath`."""

    _path_type = RelaxedPath

    def _relax(self, noise: Tensor | float, temperature: float) -> Tensor:
        return torch.softmax((self._known_logits() + noise) / temperature, 1)

    def _dense_path(self, weights: Tensor, temperature: float) -> RelaxedPath:
        """All operations, with the weights as their gates."""
        return RelaxedPath(self._all_ops(), weights.clone().requires_grad_(), weights=weights, temperature=temperature)

    @staticmethod
    def _through_softmax(path: Path, weight_grad: Tensor) -> Tensor:
        """From dL/dw to dL/dlogits, both [num_edges, num_ops]."""
        path = cast(RelaxedPath, path)  # checked at the public edge
        return through_softmax(path.weights, weight_grad) / path.temperature

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        return self._through_softmax(path, self._by_op(path, gate_grad)), {}


class AnnealedEstimator(RelaxedEstimator):
    """Base of the estimators whose temperature falls over ``total_steps`` calls of ``after_step``."""

    _needs_total_steps = True
    total_steps: int
    step: Tensor  # int64 scalar, calls of after_step

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, total_steps=total_steps, dtype=dtype)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device="cpu"))

    def advance_to(self, step: int) -> None:
        self.step.fill_(step)

    def _after_step(self, path: Path) -> None:
        self.step += 1
