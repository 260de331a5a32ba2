"""AdvantageNAS (Sato, Sakuma & Akimoto, AAAI 2021, arXiv 2012.06138): credit for each edge on its own.

    A_e = dL/dgate_e = <dL/dy_e, op_{a_e}(x_e)>            the advantage of edge e on the path a
    dE[L]/dlogits_e ~ A_e (onehot(a_e) - p_e)

A_e is the first-order Taylor value of L(a) - L(a with y_e = 0): REINFORCE with a baseline of its own for each edge. The
baseline does not depend on a_e, so the estimate is unbiased where L is linear in each y_e; elsewhere its bias is that of the Taylor
step.

Zero operation. Its output is 0, so the rule gives it A_e = 0, which is no statement about it. With ``zero_op`` = k a moving average
of A is kept for every operation k' of every edge, as in the authors' code. Of the operation that a step picks it becomes

    average[e, k'] <- A_e                                             in the first step; all others are 0 then
    average[e, k'] <- average[e, k'] + 0.05 (A_e - average[e, k'])    later; all others stay

and where k is picked, A_e := max_k' average[e, k'], that of k included, which is 0: dropping an edge is judged as its worst
operation. An edge that was not active on the path changes nothing. The averages add up gradients of many steps, so these must all
be of the loss in one unit: give ``assign_grad`` the scale of a ``GradScaler``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator
from advnas_ext.path import Path


class AdvantageEstimator(Estimator):
    """One operation an edge; gradient A_e (onehot(a_e) - p_e). See the module for the formulas.

    Args:
        zero_op: operation whose advantage is replaced by the worst average of its edge; None: no operation is special.
        coefficient: of the moving average, in (0, 1].
        Others: see :class:`Estimator`.
    """

    average: Tensor  # [num_edges, num_ops], 0 where never picked and for zero_op
    started: Tensor  # bool, whether there was a step

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
        self._require("coefficient must be in (0, 1]", coefficient, 0 < coefficient <= 1)
        self.coefficient = coefficient
        self.register_buffer("average", torch.zeros_like(self.logits, requires_grad=False))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool, device="cpu"))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        earlier = state_dict.pop(f"{prefix}picked", None)  # of versions that started an average at its own first pick
        if earlier is not None:
            state_dict[f"{prefix}started"] = earlier.any()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _sample(self, generator: torch.Generator | None) -> Path:
        return self._draw(generator)

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        advantage, remembered = gate_grad, {}
        if self.zero_op is not None:
            old = self.average.gather(1, path.ops)
            new = old + self.coefficient * (advantage - old) if self.started else advantage
            active, is_zero = self._active(path), self._is_zero_op.gather(1, path.ops)
            average = self.average.scatter(1, path.ops, torch.where(active, torch.where(is_zero, 0, new), old))
            worst = average.masked_fill(self.padding, -torch.inf).amax(1, keepdim=True)
            advantage = torch.where(is_zero & active, worst, advantage)
            remembered = {"average": average, "started": torch.ones_like(self.started)}
        return advantage * self._score(path.ops[:, 0]), remembered
