"""PARSEC (Casale, Gordon & Fusi 2019, arXiv 1902.05116): importance-weighted samples.

    a_1 .. a_M ~ p,   M = 8, one gradient for all of them

    weighting "loss":        w = softmax_i(L_i),    gradient =  sum_i w_i (onehot(a_i) - p)
    weighting "likelihood":  w = softmax_i(-L_i),   gradient = -sum_i w_i (onehot(a_i) - p)

The gradient is descended. "loss" moves away from the paths of high loss and is what the code of AdvantageNAS (Sato et al. 2021)
compares with; "likelihood" moves towards those of low loss and is the empirical Bayes rule of the PARSEC paper, with exp(-L) as
likelihood.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator, is_integer
from advnas_ext.path import Path

SIGN = {"loss": 1, "likelihood": -1}


class ParsecEstimator(Estimator):
    """One operation an edge; one gradient for every ``num_samples`` calls of ``assign_grad``.

    The calls before the last one set ``logits.grad`` to None, which torch's optimizers skip. It needs the loss only, no
    gradients of gates.

    Args:
        num_samples: M, at least 2.
        weighting: "loss" or "likelihood".
        Others: see :class:`Estimator`.
    """

    needs_gate_gradients = False
    ops: Tensor  # int64 [num_samples, num_edges]
    losses: Tensor  # [num_samples]
    collected: Tensor  # int64 scalar

    def __init__(
        self,
        num_edges: int,
        num_ops: int,
        zero_op: int | None = None,
        *,
        num_samples: int = 8,
        weighting: str = "loss",
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, total_steps=total_steps, dtype=dtype)
        self._require("num_samples must be an integer >= 2", num_samples, is_integer(num_samples, 2))
        self._require(f"weighting must be one of {', '.join(SIGN)}", weighting, weighting in SIGN)
        self.num_samples = num_samples
        self.weighting = weighting
        self.register_buffer("ops", torch.zeros(num_samples, num_edges, dtype=torch.int64))
        self.register_buffer("losses", torch.zeros(num_samples, dtype=dtype))
        self.register_buffer("collected", torch.zeros((), dtype=torch.int64))

    def _sample(self, generator: torch.Generator | None) -> Path:
        return self._draw(generator)

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        index = int(self.collected)
        ops, losses = self.ops.clone(), self.losses.clone()
        ops[index], losses[index] = path.ops[:, 0], loss
        if index + 1 < self.num_samples:
            return None, {"ops": ops, "losses": losses, "collected": self.collected + 1}
        sign = SIGN[self.weighting]
        weights = sign * torch.softmax(sign * losses, 0)
        gradient = (weights[:, None, None] * self._score(ops)).sum(0)
        return gradient, {"ops": ops, "losses": losses, "collected": torch.zeros_like(self.collected)}
