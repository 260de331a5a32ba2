"""REINFORCE with an additive critic: what the picks of a path make of the loss on average is taken out of it before it is judged.

    critic    V(a) = b + sum_e q[e, a_e],     fitted to the losses of earlier paths
    paths     a_1 .. a_M ~ p on one batch,    r_i = L_i - V(a_i),   w_i = (r_i - mean of the other r) / M,   w_1 = r_1 for M = 1
    dE[L]/dlogits_e ~ p_e (q_e - <p_e, q_e>) + sum_i w_i (onehot(a_{i,e}) - p_e)

The first term is the exact gradient of E[V], the second one an estimate of that of E[L - V] with a leave-one-out baseline (Kool,
van Hoof & Welling 2019). Together they have the expectation dE[L]/dlogits whatever b and q are, since these are of earlier paths (a
control variate, as in Grathwohl et al. 2018). The noise is that of r: of what the batch adds to every loss, which M > 1 paths on
one batch cancel, and of how the picks of a path act together. Each edge has credit of its own, as in AdvantageNAS, with losses as
they are measured in place of the gates' gradients: no backward pass is needed, no gate in the network, and no Taylor step is taken.

The fit is that of least squares with a small penalty on q, recursively, where earlier paths count less and less. With x = (1,
onehot(a_1), .., onehot(a_E)) and f = exp(-1 / window),

    G <- f G + x x^T,     c <- f c + L x,     (b, q) = (G + diag(0, ridge, .., ridge))^-1 c
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from advnas_ext.estimators.base import through_softmax
from advnas_ext.estimators.collecting import CollectingEstimator
from advnas_ext.path import Path


class CriticEstimator(CollectingEstimator):
    """One operation an edge; one gradient for every ``num_samples`` calls of ``assign_grad``, all on one batch.

    The calls before the last one set ``logits.grad`` to None, which torch's optimizers skip. It needs the loss only, no
    gradients of gates: forward passes without autograd do. An edge that was not active on a path has no gradient from it.

    Args:
        num_samples: M, at least 1. Several paths on one batch cancel what the batch itself adds to the loss.
        window: paths after which an earlier one counts 1/e, above 0. The loss should change little within it, and it should be
            several times the number of operations of all edges.
        ridge: penalty on the critic's values, in paths, above 0.
        Others: see :class:`Estimator`.
    """

    _least_samples: ClassVar[int] = 1
    gram: Tensor  # G, float64 [1 + num_edges * num_ops] twice
    moment: Tensor  # c, float64 [1 + num_edges * num_ops]

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        num_samples: int = 4,
        window: float = 500.0,
        ridge: float = 1.0,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, num_samples=num_samples, total_steps=total_steps, dtype=dtype)
        self._require("window must be a number above 0", window, 0 < window < math.inf)
        self._require("ridge must be a number above 0", ridge, 0 < ridge < math.inf)
        self.window = window
        self.ridge = ridge
        size = 1 + self.logits.numel()
        self.register_buffer("gram", torch.zeros(size, size, dtype=torch.float64, device="cpu"))
        self.register_buffer("moment", torch.zeros(size, dtype=torch.float64, device="cpu"))

    @property
    def paths_per_batch(self) -> int:
        return self.num_samples

    def _sample(self, generator: torch.Generator | None) -> Path:
        return self._draw(generator)

    def _weights(self, losses: Tensor) -> Tensor:
        """Each beside the mean of the others; one alone as it is."""
        others = (losses.sum() - losses) / max(self.num_samples - 1, 1)
        return (losses - others) / self.num_samples

    def _gradient(self, ops: Tensor, active: Tensor, losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        picked = nn.functional.one_hot(ops, self.num_ops).flatten(1).double()
        features = torch.cat([picked.new_ones(self.num_samples, 1), picked], 1)
        critic = self._critic()
        known = through_softmax(self.probabilities(), critic[1:].reshape(self.logits.shape).to(self.logits.dtype))
        unexplained = (losses - features @ critic).to(self.logits.dtype)
        by_path = known / self.num_samples + self._weights(unexplained)[:, None, None] * self._score(ops)
        kept = math.exp(-self.num_samples / self.window)
        remembered = {
            "gram": kept * self.gram + features.T @ features,
            "moment": kept * self.moment + features.T @ losses.double(),
        }
        return (by_path * active[..., None]).sum(0), remembered

    def _critic(self) -> Tensor:
        """b and the rows of q; 0 before there was a path."""
        if not self.moment.any():
            return torch.zeros_like(self.moment)
        penalty = torch.full_like(self.moment, self.ridge)
        penalty[0] = 0
        factor = torch.linalg.cholesky(self.gram + penalty.diag())
        return torch.cholesky_solve(self.moment[:, None], factor)[:, 0]
