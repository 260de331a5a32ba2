"""What of a model runs natively, and what keeps the rest from it."""

from __future__ import annotations

from torch import nn

from advnas_ext import native
from advnas_ext.cell import OnePathCell
from advnas_ext.darts import DartsCell, operation_obstacle
from advnas_ext.fidelity import Obstacle
from advnas_ext.head import NormReluMean
from advnas_ext.recurrent import _RecurrentCell


def explain(model: nn.Module) -> dict[str, Obstacle]:
    """Every operation, block, head and recurrent cell of a model that advnas_ext could run, by its name among
    ``model.named_modules()``, with what keeps it from running natively: a sentence such as "op.0 is a SiLU, not a ReLU", or None.

    It asks of the modules only. A device, a type or a context that has no native kernels (autocast on the host, a transform of
    ``torch.func``, an export) keeps all of them from it.
    """
    return {
        f"{name}.{part}".strip("."): obstacle
        for name, module in model.named_modules()
        for part, obstacle in _obstacles_of(module).items()
    }


def _obstacles_of(module: nn.Module) -> dict[str, Obstacle]:
    """By the name of the part; "" is the module itself."""
    if isinstance(module, (OnePathCell, DartsCell)):
        return {part: operation_obstacle(op) for part, op in module.operations()}
    if isinstance(module, native.Block):
        return {"": module.obstacle(None)}
    if isinstance(module, (NormReluMean, _RecurrentCell)):
        return {"": module.obstacle()}
    return {}
