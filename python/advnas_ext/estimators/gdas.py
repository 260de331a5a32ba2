"""GDAS (Dong & Yang, CVPR 2019, arXiv 1910.04465): straight-through Gumbel-softmax.

    w = softmax((logits + Gumbel noise) / temperature),   a_e = argmax_k w_{e,k}
    forward: the operation a_e with a gate of 1;   backward: as if its gate, and those of all other operations, were w

    v_{e,a_e} = dL/dgate_e,   v_{e,k} = 0 (unpicked="zero") or sum dL/dy_e (unpicked="sum") for k != a_e
    dL/dlogits_{e,k} = w_k (v_k - sum_j w_j v_j) / temperature

"sum" is what the authors' code does: it does not run an unpicked operation and puts the number w_k in its place, which adds to
every element of y_e. The temperature falls linearly from 10 to 0.1 over ``total_steps`` steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advnas_ext.estimators.base import require_finite
from advnas_ext.estimators.relaxed import AnnealedEstimator, RelaxedPath
from advnas_ext.path import Path


class GdasEstimator(AnnealedEstimator):
    """One operation an edge, drawn from softmax(logits); the gradient reaches all logits through the relaxed weights.

    With ``unpicked="sum"`` the path carries ``offsets`` [num_edges], zeros that require a gradient, and the network adds
    them: ``y = advnas_ext.gate(op(x), path.gates[e, 0]) + path.offsets[e]``. Their gradient has to be asked for, by
    ``loss.backward()`` or ``loss.backward(inputs=[path.gates, path.offsets])``.

    Args:
        total_steps: steps over which the temperature falls; it stays at 0.1 afterwards. Required.
        unpicked: "zero" or "sum", the gradient of an unpicked operation's gate.
        Others: see :class:`Estimator`.
    """

    def __init__(
        self,
        num_edges: int,
        num_ops: int | Sequence[int],
        zero_op: int | Sequence[int | None] | None = None,
        *,
        unpicked: str = "zero",
        total_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_edges, num_ops, zero_op, total_steps=total_steps, dtype=dtype)
        self._require("unpicked must be one of zero, sum", unpicked, unpicked in ("zero", "sum"))
        self.unpicked = unpicked

    @property
    def temperature(self) -> float:
        """Of the next sample."""
        return 10 - 9.9 * min(int(self.step) / max(self.total_steps, 1), 1)

    def _sample(self, generator: torch.Generator | None) -> RelaxedPath:
        noise, temperature = self._gumbel(generator), self.temperature
        ops = (self._known_logits() + noise).argmax(1, keepdim=True)
        offsets = None
        if self.unpicked == "sum":
            offsets = torch.zeros(self.num_edges, dtype=self.logits.dtype, requires_grad=True, device="cpu")
        gates = torch.ones(self.num_edges, 1, dtype=self.logits.dtype, requires_grad=True, device="cpu")
        weights = self._relax(noise, temperature)
        return RelaxedPath(ops, gates, offsets, weights=weights, temperature=temperature)

    def _estimate(self, path: Path, gate_grad: Tensor, loss: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        picked, unpicked = gate_grad.split(1, 1)
        weight_grad = unpicked.repeat(1, self.num_ops).scatter_(1, path.ops, picked)
        return self._through_softmax(path, weight_grad), {}

    def _gate_gradients(self, path: Path) -> Tensor:
        """[num_edges, 2]: of the gate, and of what all operations that did not run have in common."""
        picked = super()._gate_gradients(path)
        unpicked = self._offset_gradients(path)[:, None] if self.unpicked == "sum" else torch.zeros_like(picked)
        return torch.cat([picked, unpicked], 1)

    def _require_finite(self, gate_grad: Tensor, loss: Tensor) -> None:
        super()._require_finite(gate_grad[:, :1], loss)
        require_finite(f"{self._name}.assign_grad: path.offsets.grad", gate_grad[:, 1:])

    def _offset_gradients(self, path: Path) -> Tensor:
        gradient = None if path.offsets is None else path.offsets.grad
        if gradient is None:
            raise ValueError(
                f"{self._name}.assign_grad: path.offsets.grad is missing; unpicked='sum' needs a network that adds "
                "path.offsets[edge] to the output of every edge, and loss.backward(); use unpicked='zero' with others"
            )
        return gradient.detach().to(self.logits.dtype)
