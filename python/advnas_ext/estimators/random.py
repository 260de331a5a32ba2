"""Uniform paths and no learning: random search, and supernet training in SPOS (Guo et al., ECCV 2020, arXiv 1904.00420).

a_e uniform among the operations, whatever the logits;   no gradient
"""

from __future__ import annotations

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator
from advnas_ext.path import Path


class RandomEstimator(Estimator):
    """One operation an edge, uniformly, whatever the logits; ``assign_grad`` sets ``logits.grad`` to None.

    Arguments: see :class:`Estimator`.
    """

    learns = False
    needs_gate_gradients = False

    def _sample(self, generator: torch.Generator | None) -> Path:
        ops = [int(torch.randint(size, (), generator=generator, device="cpu")) for size in self.sizes]
        return Path.from_ops(ops, dtype=self.logits.dtype)

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        return None, {}
