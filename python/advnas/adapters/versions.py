"""Which releases of other projects were tried, and what to install."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

# By the name of the distribution; `make test-peers` installs them.
TRIED = {"nni": ("3.0",), "whittle": ("0.6.0",), "xautodl": ("1.0.0",)}


@contextmanager
def peer(name: str) -> Iterator[None]:
    """Around the imports from another project whose name is an extra of this one.

    Raises:
        ImportError: something of it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise ImportError(
            f'advnas.adapters: {missing.name} is not installed; pip install "advnas-ext[{name}]"'
        ) from missing
    check(name)


def check(name: str) -> None:
    """Warn where the installed release of a project was not tried. At the import of its adapter, which is once."""
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout
        return
    if installed not in TRIED[name]:
        warnings.warn(
            f"advnas.adapters: {name} {installed} was not tried, {', '.join(TRIED[name])} was; compare a step with its own",
            stacklevel=2,
        )
