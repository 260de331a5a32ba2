"""Supernets of other projects on this one's engine. A new project is one file and one line of ADAPTERS."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from advnas.adapters import xautodl

# Full name of a module's class, as it writes itself -> makes it run on the engine, in its place
ADAPTERS: dict[str, Callable[[nn.Module], None]] = {
    "xautodl.models.cell_searchs.search_cells.NAS201SearchCell": xautodl.adapt_cell,
}


def convert(model: nn.Module) -> nn.Module:
    """Let the supernet of another project run on the fused engine: the same objects, weights, names, forward and training loop.

    Known are xautodl 1.0.0's supernets on NAS-Bench-201: GDAS, SETN, ENAS, DARTS, random.

    Args:
        model: changed in place, while no optimizer has its parameters yet: those of the cells are new ones, of the same values.

    Returns:
        ``model``.

    Raises:
        ValueError: nothing in it is known, or a cell has operations that the engine has not.
    """
    found = [(ADAPTERS[name], module) for module in model.modules() if (name := _name_of(type(module))) in ADAPTERS]
    if not found:
        raise ValueError(
            f"convert: {type(model).__name__} holds no module that is known; known are {', '.join(ADAPTERS)}"
        )
    for adapt, module in found:
        adapt(module)
    return model


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
