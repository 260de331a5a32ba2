"""What the losses of some cells tell of each of them: a Gaussian process over operations and pairs of them.

Two cells are alike by the edges on which they have the same operation, and by the pairs of such edges,

    k(a, b) = n + n (n - 1) / 8,  n the number of edges e with a_e = b_e,

which is the kernel of a function that adds values of operations and of pairs of operations, the variance of a pair a
quarter of that of an operation (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, 2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

NOISE = 0.3  # variance of what the function does not explain, of that of the losses


def smoothed(cells: Tensor, losses: Tensor) -> Tensor:
    """The posterior mean at cells whose losses are known, so that the noise of each is averaged over cells that are like it.

    Args:
        cells: int64 [count, num_edges].
        losses: [count].

    Returns:
        float64 [count].
    """
    same = (cells[:, None] == cells).sum(-1).double()
    kernel = same + same * (same - 1) / 8
    kernel /= kernel.diagonal().mean()
    mean = losses.double().mean()
    left = torch.linalg.solve(kernel + NOISE * torch.eye(len(cells), dtype=torch.float64), losses.double() - mean)
    return mean + kernel @ left
