"""What a network promises before it is trained: how differently it treats different inputs, at its initial weights.

    codes:      log|det K|,  K_ij = number of ReLUs that are both on or both off for inputs i and j
                (Mellor, Turner, Storkey & Crowley, Neural Architecture Search without Training, ICML 2021)
    jacobians:  -sum_i (log(v_i + k) + 1 / (v_i + k)),  v_i the eigenvalues of the correlations of d(sum of outputs)/d(input i)
                (the same, arXiv 2006.04647v1), k = 1e-5

Both are larger the better, cost one forward and one backward pass, and need no labels.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from advnas_ext import Path

RIDGE = 1e-5


def promises(network: nn.Module, x: Tensor, path: Path | None = None) -> tuple[float, float]:
    """Of codes and of jacobians, for a network whose ReLUs are modules.

    Args:
        network: at its initial weights.
        x: different inputs, [batch, ...], at least 2.
        path: of a supernet; None: the network takes ``x`` alone.
    """
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        on = (output.detach().flatten(1) > 0).float()
        kernel.add_((on @ on.T + (1 - on) @ (1 - on).T).double())

    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, nn.ReLU)]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* has hooks; ")  # our own
            inputs = x.detach().clone().requires_grad_()
            output = network(inputs) if path is None else network(inputs, path)
            # Of cells that let nothing through the outputs do not depend on the inputs.
            (gradient,) = torch.autograd.grad(output.sum(), inputs, materialize_grads=True)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.linalg.slogdet(kernel).logabsdet.item(), _decorrelation(gradient.flatten(1).double())


def ranks(values: Tensor) -> Tensor:
    """The places of values [count, kinds] within each kind, from the smallest, and summed over the kinds: int64 [count]. A value
    that is no number has the first place."""
    known = values.nan_to_num(nan=-torch.inf)
    return known.argsort(dim=0, stable=True).argsort(dim=0).sum(1)


def _decorrelation(rows: Tensor) -> float:
    eigenvalues = torch.linalg.eigvalsh(torch.corrcoef(rows).nan_to_num()).clamp(min=0) + RIDGE
    return -(eigenvalues.log() + 1 / eigenvalues).sum().item()
