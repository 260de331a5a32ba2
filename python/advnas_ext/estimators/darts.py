"""DARTS (Liu, Simonyan & Yang, ICLR 2019, arXiv 1806.09055), first order: softmax weights on all operations.

w = softmax(logits),   y_e = sum_k w_{e,k} op_k(x_e)
dL/dlogits_k = w_k (v_k - sum_j w_j v_j),   v = dL/dw
"""

from __future__ import annotations

import torch

from advnas_ext.estimators.relaxed import RelaxedEstimator, RelaxedPath


class DartsEstimator(RelaxedEstimator):
    """All operations of every edge, with softmax(logits) as gates. Nothing is random. Arguments: see :class:`Estimator`."""

    @property
    def picks(self) -> int:
        return self.num_ops

    def _sample(self, generator: torch.Generator | None) -> RelaxedPath:
        return self._dense_path(self._relax(0.0, 1.0), 1.0)
