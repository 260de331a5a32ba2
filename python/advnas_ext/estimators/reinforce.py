"""REINFORCE (Williams 1992) with the moving average of the loss as baseline, as AdvantageNAS (Sato et al. 2021) compares with it.

    b <- L                        the first time
    b <- b + 0.05 (L - b)         later
    dE[L]/dlogits_e ~ (L - b) (onehot(a_e) - p_e)     0 for an edge that was not active: the loss did not depend on it

b takes the current L in first, so in expectation the estimate is 0.95 times the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator
from advnas_ext.path import Path


class ReinforceEstimator(Estimator):
    """One operation an edge; gradient (L - b) (onehot(a_e) - p_e). It needs the loss only, no gradients of gates.

    Args:
        coefficient: of the moving average, in (0, 1).
        Others: see :class:`Estimator`.
    """

    needs_gate_gradients = False
    baseline: Tensor  # scalar
    losses_seen: Tensor  # int64 scalar

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        coefficient: float = 0.05,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, total_steps=total_steps, dtype=dtype)
        self._require("coefficient must be in (0, 1)", coefficient, 0 < coefficient < 1)
        self.coefficient = coefficient
        self.register_buffer("baseline", torch.zeros((), dtype=dtype, device="cpu"))
        self.register_buffer("losses_seen", torch.zeros((), dtype=torch.int64, device="cpu"))

    def _sample(self, generator: torch.Generator | None) -> Path:
        return self._draw(generator)

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        baseline = self.baseline + self.coefficient * (loss - self.baseline) if self.losses_seen else loss
        gradient = (loss - baseline) * self._score(path.ops[:, 0]) * self._active(path)
        return gradient, {"baseline": baseline, "losses_seen": self.losses_seen + 1}
