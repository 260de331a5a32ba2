"""NASP (Yao, Xu, Tu & Zhu, AAAI 2020, arXiv 1905.13577): proximal iterations.

a_e = argmax_k logits_{e,k},   gate_{e,k} = 1 for k = a_e, else 0           (projection on the one-hot vectors)
gradient_{e,k} = dL/dgate_{e,k} for every k
logits <- min(max(logits - step, 0), 1)                                     (projection on the box)
"""

from __future__ import annotations

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator
from advnas_ext.path import Path


class NaspEstimator(Estimator):
    """All operations of every edge, with a gate of 1 for the largest logit and 0 for the others.

    Among equal logits one is drawn: were it always the first, a search that begins with ``none`` everywhere would stay there,
    since a network that puts nothing out has no gradient. Only the gradients of the gates need the other operations; on
    ``path.detach()`` a cell runs the one. Arguments: see :class:`Estimator`.
    """

    @property
    def picks(self) -> int:
        return self.num_ops

    def policy(self, logits: Tensor) -> Tensor:
        """One-hot: the gates. Equal logits share it."""
        known = logits.masked_fill(self.padding, -torch.inf)
        largest = (known == known.amax(-1, keepdim=True)).to(logits.dtype)
        return largest / largest.sum(-1, keepdim=True)

    def _sample(self, generator: torch.Generator | None) -> Path:
        picked = torch.multinomial(self.policy(self.logits), 1, generator=generator)
        gates = torch.zeros_like(self.logits).scatter_(1, picked, 1)
        return Path(self._all_ops(), gates.requires_grad_())

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        return self._by_op(path, gate_grad), {}

    def _after_step(self, path: Path) -> None:
        self.logits.clamp_(0, 1)
