"""The gate of one picked operation: what turns an existing supernet into one that AdvantageNAS can search."""

from __future__ import annotations

import torch
from torch import Tensor

import advnas_ext._C  # noqa: F401  (registers the operators)


def gate(h: Tensor, gate: Tensor, baseline: Tensor | None = None) -> Tensor:
    """Multiply an operation's output by its gate, and collect the edge's advantage in the backward pass.

    The value is ``h * gate``. The backward pass computes ``gate.grad = (dy * (h - baseline)).sum()`` together with the gradient
    of ``h``, in one pass over memory. With gates of 1 that sum is the advantage of the edge (Sato et al. 2021, eq. of the gradient
    estimate), the first-order Taylor value of L - L(baseline in place of h).

    Which baseline. Without one an operation is compared with no output at all. Any baseline that does not depend on the pick may
    take its place: for a loss that is linear in h, E[<dL/dh, op_a(x) - b> (onehot(a) - p)] is the exact gradient whatever b is,
    for E[onehot(a) - p] = 0. Elsewhere the error of the Taylor step grows with ||op_a(x) - b||; on average the step is shortest
    to the mean of the candidates' outputs, sum_k p_k op_k(x), which would cost running them all. The input of the edge, what a
    skip connection would give, is free where shapes agree. And where a batch or layer norm follows that sees this output alone,
    the loss does not depend on the scale of h: <dL/dh, h> is exactly 0, the edge has no advantage without a baseline, and never
    learns. docs/theory.md has the derivations.

    Args:
        h: output of the operation, any shape, floating point.
        gate: one element of any shape: ``path.gates[edge, pick]``. For ``h`` on a GPU take ``path.gates_on(h.device)[edge, pick]``:
            then nothing crosses to the host before the backward pass is through.
        baseline: of the shape and on the device of ``h``, floating point; it gets no gradient. None: zeros.

    Returns:
        A tensor of the shape, dtype, device and layout of ``h``.

    Raises:
        TypeError: ``h`` or ``baseline`` is not floating point, or an argument is not a tensor.
        ValueError: ``gate`` does not hold exactly one element, or ``baseline`` has not the shape or the device of ``h``.
        RuntimeError: in a double backward pass, which is not implemented.
    """
    return torch.ops.advnas_ext.gate(h, gate, baseline)


def checked_baseline(where: str, baseline: str | None) -> str | None:
    """What a module's operations are compared with: "input", or None for no output at all.

    Raises:
        ValueError: it is something else.
    """
    if baseline not in ("input", None):
        raise ValueError(f'{where}: baseline must be "input" or None, got {baseline!r}')
    return baseline
