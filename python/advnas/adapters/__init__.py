"""Supernets of other projects on this one's engine. A new project is one file and one line of ADAPTERS.

An adapter is imported when it meets a module of its project, so that nothing here needs a project that is not there.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

# Full name of a class -> module of this package and function that makes a module of it, or of a subclass, run on the engine
ADAPTERS = {
    "xautodl.models.cell_searchs.search_cells.NAS201SearchCell": ("xautodl", "adapt_cell"),
    "nni.nas.nn.pytorch.base.ModelSpace": ("nni", "adapt_space"),
}


def convert(model: nn.Module) -> nn.Module:
    """Let the supernet of another project run on the fused engine, or be searched by :class:`advnas_ext.Search`.

    xautodl 1.0.0's supernets of such cells (GDAS, SETN, ENAS, DARTS, random) stay the same objects, with their weights, names,
    forward and training loop. A ModelSpace of NNI 3.0 becomes a supernet in place, whose decisions :class:`advnas_ext.Search`
    drives in a loop of your own; :class:`advnas.adapters.nni.AdvantageNas` is the same as a strategy of NNI.

    Args:
        model: changed in place, while no optimizer has its parameters yet: some are new ones, of the same values.

    Returns:
        ``model``.

    Raises:
        ValueError: nothing in it is known, or what is known cannot be converted.
    """
    found = [(module, *ADAPTERS[name]) for module in model.modules() if (name := _known_name(module)) is not None]
    if not found:
        raise ValueError(
            f"convert: {type(model).__name__} holds no module that is known; known are {', '.join(ADAPTERS)}"
        )
    for module, adapter, function in found:
        getattr(import_module(f"advnas.adapters.{adapter}"), function)(module)
    return model


def _known_name(module: nn.Module) -> str | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((name for name in names if name in ADAPTERS), None)
