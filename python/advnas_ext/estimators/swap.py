"""The swap advantage: what an edge would lose or gain, to first order, if another operation took its place.

    a_e, b_e ~ p_e without replacement,   gates 1 and 0:  the path runs a, and b is only looked at
    D_e = dL/dgate_{a_e} - dL/dgate_{b_e} = <dL/dy_e, op_{a_e}(x_e) - op_{b_e}(x_e)>
    dE[L]/dlogits_e ~ (1 - p_{a_e}) / 2 * D_e (onehot(a_e) - onehot(b_e))

Derivation. For independent a_e, b_e ~ p_e the gradient of edge e is the covariance of the loss with the score,

    dE[L]/dlogits_e = E[(L_a - L_b) (onehot(a_e) - onehot(b_e))] / 2,

pairs with a_e = b_e add nothing, and the others make up the share 1 - p_{a_e} of the probability. D_e is the first-order Taylor
value of L_a - L_b. AdvantageNAS compares a_e with no operation at all, y_e = 0, of which a network that was never trained without
the edge says little; here both ends of the step are operations that the supernet was trained with. The pairs (a, b) and (b, a)
are equally likely and together make the trapezoidal rule for L_a - L_b, so the expectation is exact where L is linear or quadratic
in y_e; elsewhere its bias is of third order in the difference of the outputs. ``none`` needs no rule of its own: it is 0.

Cost: a second operation on every edge, forward, and its product with dL/dy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advnas_ext.estimators.base import Estimator
from advnas_ext.path import Path


class SwapEstimator(Estimator):
    """Two operations an edge, with gates 1 and 0. Arguments: see :class:`Estimator`."""

    @property
    def picks(self) -> int:
        return 2

    def _sample(self, generator: torch.Generator | None) -> Path:
        pair = (self._known_logits() + self._gumbel(generator)).topk(2, 1).indices
        gates = torch.tensor([1, 0], dtype=self.logits.dtype, device="cpu").repeat(self.num_edges, 1)
        return Path(pair, gates.requires_grad_())

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        difference = gate_grad[:, :1] - gate_grad[:, 1:]
        weight = (1 - self.probabilities().gather(1, path.ops[:, :1])) / 2
        return self._by_op(path, weight * difference * torch.tensor([1, -1], device="cpu")), {}
