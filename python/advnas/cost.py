"""What a network costs: parameters and multiply-adds of what runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Trainable parameters, and multiply-adds for one example, the benchmarks' FLOPs."""

    params: int
    flops: int


def cost(network: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Cost:
    """Parameters of a fixed network, and FLOPs of one call of it in evaluation.

    They are counted as NAS-Bench-201 does: one for a multiplication and its addition, of convolutions and matrix products, a
    product's bias included. The benchmark's own numbers are these, but for 150 of its 15,625 cells, where it has those of another
    cell that computes the same function. Nothing is computed: the network is copied to torch's meta device.

    Args:
        network: called with one tensor.
        shape, dtype: of that tensor, one example.
    """
    on_meta = copy.deepcopy(network).to("meta").eval()
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm: _product_with_bias})
    with torch.no_grad(), counter, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "advnas_ext: no native kernels for meta")  # shapes alone
        on_meta(torch.empty(*shape, dtype=dtype, device="meta"))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)


def _product_with_bias(
    bias: Sequence[int], left: Sequence[int], right: Sequence[int], *args: object, **kwargs: object
) -> int:
    """Twice the multiply-adds of ``bias + left @ right``, given by their shapes."""
    return 2 * (left[0] * left[1] * right[1] + left[0] * right[1])
