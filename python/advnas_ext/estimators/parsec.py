"""PARSEC (Casale, Gordon & Fusi 2019, arXiv 1902.05116): importance-weighted samples.

    a_1 .. a_M ~ p,   M = 8, one gradient for all of them

    weighting "loss":        w = softmax_i(L_i),    gradient =  sum_i w_i (onehot(a_i) - p)
    weighting "likelihood":  w = softmax_i(-L_i),   gradient = -sum_i w_i (onehot(a_i) - p)

The gradient is descended. "loss" moves away from the paths of high loss and is what the code of AdvantageNAS (Sato et al. 2021)
compares with; "likelihood" moves towards those of low loss and is the empirical Bayes rule of the PARSEC paper, with exp(-L) as
likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advnas_ext.estimators.collecting import CollectingEstimator
from advnas_ext.path import Path

SIGN = {"loss": 1, "likelihood": -1}


class ParsecEstimator(CollectingEstimator):
    """One operation an edge; one gradient for every ``num_samples`` calls of ``assign_grad``.

    The calls before the last one set ``logits.grad`` to None, which torch's optimizers skip. It needs the loss only, no
    gradients of gates.

    Args:
        num_samples: M, at least 2.
        weighting: "loss" or "likelihood".
        Others: see :class:`Estimator`.
    """

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        num_samples: int = 8,
        weighting: str = "loss",
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, num_samples=num_samples, total_steps=total_steps, dtype=dtype)
        self._require(f"weighting must be one of {', '.join(SIGN)}", weighting, weighting in SIGN)
        self.weighting = weighting

    def _sample(self, generator: torch.Generator | None) -> Path:
        return self._draw(generator)

    def _weights(self, losses: Tensor) -> Tensor:
        sign = SIGN[self.weighting]
        return sign * torch.softmax(sign * losses, 0)
