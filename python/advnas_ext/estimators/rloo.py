"""REINFORCE with a leave-one-out baseline (Kool, van Hoof & Welling 2019), on stratified paths that are measured on one batch.

    a_1 .. a_M ~ p,   each L_i on the same batch
    gradient = 1/(M - 1) sum_i (L_i - mean L) (onehot(a_i) - p)  =  1/M sum_i (L_i - mean of the other L) (onehot(a_i) - p)

What the batch adds to every loss cancels, and what is left is how the paths differ. For independent paths the estimate is unbiased.

Stratified: for each edge, with its operations in a random order and u uniform in [0, 1), the picks are those at the quantiles (u
+ i) / M of p, i = 0 .. M - 1, dealt out to the paths at random. Every path by itself still has the distribution p, and the edges
of a path are independent; but an operation is picked in proportion to its probability in every M paths, not only on average,
which takes noise out of the comparison. The baseline is then no longer independent of a path. With an additive loss and uniform p
the estimate is num_ops/(num_ops - 1) times the gradient for M up to num_ops, and M/(M - 1) times it for multiples of num_ops;
otherwise it is about once the gradient or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from advnas_ext.estimators.collecting import CollectingEstimator
from advnas_ext.path import Path


class RlooEstimator(CollectingEstimator):
    """One operation an edge; one gradient for every ``num_samples`` calls of ``assign_grad``, all on one batch.

    The calls before the last one set ``logits.grad`` to None, which torch's optimizers skip. It needs the loss only, no
    gradients of gates: forward passes without autograd do. After a loss that is no number the next :meth:`sample` begins with M
    new paths, for it would draw the same one again otherwise.

    Args:
        num_samples: M, at least 2.
        stratified: whether the M paths share out the operations of each edge; otherwise they are independent.
        Others: see :class:`Estimator`.
    """

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        num_samples: int = 4,
        stratified: bool = True,
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, num_samples=num_samples, total_steps=total_steps, dtype=dtype)
        self.stratified = stratified
        self._refused = False  # whether the last loss was no number

    @property
    def paths_per_batch(self) -> int:
        return self.num_samples

    def assign_grad(self, path: Path, loss: Tensor | float, **options: Any) -> None:
        try:
            super().assign_grad(path, loss, **options)
        except FloatingPointError:
            self._refused = True
            raise

    def _sample(self, generator: torch.Generator | None) -> Path:
        """The next of the M paths; while none of them is measured, the first of M new ones."""
        if self._refused:
            self.collected.zero_()
            self._refused = False
        index = int(self.collected)
        if index == 0:
            self.ops.copy_(self._paths(generator))
        return Path.from_ops(self.ops[index].clone(), dtype=self.logits.dtype)

    def _paths(self, generator: torch.Generator | None) -> Tensor:
        """M paths, int64 [num_samples, num_edges]."""
        if not self.stratified:
            return torch.stack([self._draw(generator).ops[:, 0] for _ in range(self.num_samples)])
        # In a random order, so that any two operations can meet; padding first, so that rounding cannot reach it at the end.
        order = torch.rand(self.logits.shape, generator=generator, device="cpu").masked_fill_(self.padding, -1)
        shuffled = order.argsort(1)
        cumulative = self.probabilities().double().gather(1, shuffled).cumsum(1)
        offset = torch.rand(self.num_edges, 1, generator=generator, dtype=torch.float64, device="cpu")
        quantiles = (offset + torch.arange(self.num_samples, device="cpu")) / self.num_samples * cumulative[:, -1:]
        strata = torch.searchsorted(cumulative, quantiles, right=True).clamp_(max=self.num_ops - 1)
        picks = shuffled.gather(1, strata)
        dealt = torch.rand(picks.shape, generator=generator, device="cpu").argsort(1)
        return picks.gather(1, dealt).T

    def _weights(self, losses: Tensor) -> Tensor:
        return (losses - losses.mean()) / (self.num_samples - 1)
