"""ProxylessNAS (Cai, Zhu & Han, ICLR 2019, arXiv 1812.00332): two operations an edge.

    i, j ~ p without replacement,   q = softmax(logits_i, logits_j),   active c = i or j by q
    gate_c = 1, the other gate 0;   v = dL/dgate of both
    dE[L]/dlogits_i ~ q_i (v_i - q_i v_i - q_j v_j) = q_i q_j (v_i - v_j),   the opposite for j

After the optimizer's step, for the two operations S of each edge,

    logits_S <- logits_S - (logsumexp(logits_S) - logsumexp(old logits_S)),   logits_k <- old logits_k for the others

so that only how the two share their probability changes. The second half matters where momentum or weight decay moves
the logits of operations that were not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator, through_softmax
from advnas_ext.path import Path


class ProxylessEstimator(Estimator):
    """Two operations an edge, the active one first, with gates 1 and 0. Arguments: see :class:`Estimator`."""

    logits_before: Tensor  # [num_edges, num_ops], the logits that an optimizer is about to step; NaN when none is

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
        self.register_buffer("logits_before", torch.full_like(self.logits, torch.nan, requires_grad=False))

    @property
    def picks(self) -> int:
        return 2

    def _sample(self, generator: torch.Generator | None) -> Path:
        noise = self._gumbel(generator)
        logits = self._known_logits()
        pair = (logits + noise).topk(2, 1).indices
        uniform = torch.rand(self.num_edges, 1, generator=generator, dtype=self.logits.dtype, device="cpu")
        first_is_active = uniform < torch.softmax(logits.gather(1, pair), 1)[:, :1]
        ops = torch.where(first_is_active, pair, pair.flip(1))
        gates = torch.tensor([1, 0], dtype=self.logits.dtype, device="cpu").repeat(self.num_edges, 1)
        return Path(ops, gates.requires_grad_())

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        share = torch.softmax(self._known_logits().gather(1, path.ops), 1)
        return self._by_op(path, through_softmax(share, gate_grad)), {"logits_before": self.logits}

    def _after_step(self, path: Path) -> None:
        before = self.logits_before
        if before.isnan().any():
            return
        new = self._known_logits().gather(1, path.ops)
        old = before.masked_fill(self.padding, -torch.inf).gather(1, path.ops)
        shift = new.logsumexp(1, keepdim=True) - old.logsumexp(1, keepdim=True)
        self.logits.copy_(torch.where(self.padding, before, before.scatter(1, path.ops, new - shift)))
        before.fill_(torch.nan)
