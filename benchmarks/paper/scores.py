"""Scores of untrained networks that searches without training go by, besides :func:`advnas.untrained.promises`.

    synflow:  sum_w |w dR/dw|,  R = sum of the outputs for an input of ones, weights |w|, no batch norm
              (Tanaka, Kunin, Yamins & Ganguli, NeurIPS 2020; for cells Abdelfattah et al., ICLR 2021)
    zico:     sum_layers log sum_w E|g_w| / std g_w,  g_w the gradients of the loss on different batches
              (Li, Yang, Bhardwaj & Marculescu, ICLR 2023)

Both are larger the better.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def synflow(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Args: the network, which is not changed, and the shape of one input. In float64; 0 where nothing gets through."""
    network = copy.deepcopy(network).double()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    weights = list(network.parameters())
    with torch.no_grad():
        for weight in weights:
            weight.abs_()
    flow = network(torch.ones(1, *shape, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    return sum((w * g).abs().sum().item() for w, g in zip(weights, gradients, strict=True) if g is not None)


def zico(network: nn.Module, loss: Callable[[Any], Tensor], batches: Iterable[Any]) -> float:
    """Of the weights of convolutions and linear layers.

    Args:
        network: at its initial weights.
        loss: of the network on a batch.
        batches: at least two.
    """
    layers = [module.weight for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    by_batch = [torch.autograd.grad(loss(batch), layers, allow_unused=True) for batch in batches]
    score = 0.0
    for gradients in zip(*by_batch, strict=True):
        if gradients[0] is not None:
            found = torch.stack(gradients).double()
            deviation = found.std(0, unbiased=False)
            known = deviation > 0
            total = (found.abs().mean(0)[known] / deviation[known]).sum().item()
            score += math.log(total) if total > 0 else 0.0
    return score
