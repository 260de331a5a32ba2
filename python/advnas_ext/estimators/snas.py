"""SNAS (Xie, Zheng, Liu & Lin, ICLR 2019, arXiv 1812.09926): Gumbel-softmax weights on all operations.

    w = softmax((logits + Gumbel noise) / temperature),   y_e = sum_k w_{e,k} op_k(x_e)
    dL/dlogits_k = w_k (v_k - sum_j w_j v_j) / temperature,   v = dL/dw

The temperature of step t is (1 + cos(pi t / total_steps)) / 2 = cos(pi/2 t / total_steps)^2: from 1 towards 0.
"""

from __future__ import annotations

import math

import torch

from advnas_ext.estimators.relaxed import AnnealedEstimator, RelaxedPath


class SnasEstimator(AnnealedEstimator):
    """All operations of every edge, with random weights as gates.

    Args:
        total_steps: steps over which the temperature falls; it stays at its last value, above 0, afterwards. Required.
        Others: see :class:`Estimator`.
    """

    @property
    def picks(self) -> int:
        return self.num_ops

    @property
    def temperature(self) -> float:
        """Of the next sample."""
        step = min(int(self.step), self.total_steps - 1)
        return math.cos(math.pi / 2 * step / self.total_steps) ** 2 if step > 0 else 1.0

    def _sample(self, generator: torch.Generator | None) -> RelaxedPath:
        temperature = self.temperature
        return self._dense_path(self._relax(self._gumbel(generator), temperature), temperature)
