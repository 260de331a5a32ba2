"""The gate of one picked operation: what turns an existing supernet into one that AdvantageNAS can search."""

import torch
from torch import Tensor

import advnas_ext._C  # noqa: F401  (registers the operators)


def gate(h: Tensor, gate: Tensor) -> Tensor:
    """Multiply an operation's output by its gate, and collect the edge's advantage in the backward pass.

    Equals ``h * gate``; the backward pass computes ``gate.grad = (dy * h).sum()`` together with the gradient of ``h``, in
    one pass over memory. With gates of 1 that sum is the advantage of the edge (Sato et al. 2021, eq. of the gradient estimate).

    Args:
        h: output of the operation, any shape, floating point.
        gate: one element of any shape: ``path.gates[edge, pick]``. For ``h`` on a GPU take ``path.gates_on(h.device)[edge, pick]``:
            then nothing crosses to the host before the backward pass is through.

    Returns:
        A tensor of the shape, dtype, device and layout of ``h``.

    Raises:
        TypeError: ``h`` is not floating point, or an argument is not a tensor.
        ValueError: ``gate`` does not hold exactly one element.
        RuntimeError: in a double backward pass, which is not implemented.
    """
    return torch.ops.advnas_ext.gate(h, gate)
