"""Kernels of our own for 3x3 convolutions in place of the library's, whatever ADVNAS_CUDA_CONV says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

from torch import Tensor, nn

from advnas_ext import _C, Path
from benchmarks.cuda import shim
from benchmarks.steps.sides import OURS

OURS_OWN = f"{OURS}, own 3x3"


def _modules() -> list[ModuleType]:
    """Where passes for CUDA run: on a GPU, or on the shim where it is loaded or there is nothing else."""
    on_shim = not _C.cuda or shim.launches.cache_info().currsize > 0
    return [*([_C] if _C.cuda else []), *([shim.launches().module] if on_shim else [])]


def is_on() -> bool:
    return any(module.uses_own_conv3x3() for module in _modules())


@contextlib.contextmanager
def own_conv3x3() -> Iterator[None]:
    """Passes that begin in here; a backward pass goes as its forward pass went."""
    before = [(module, module.uses_own_conv3x3()) for module in _modules()]
    for module, _ in before:
        module.use_own_conv3x3(True)
    try:
        yield
    finally:
        for module, own in before:
            module.use_own_conv3x3(own)


class WithOwnConv3x3(nn.Module):
    """A network that runs so."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, path: Path) -> Tensor:
        with own_conv3x3():
            return self.network(images, path)
