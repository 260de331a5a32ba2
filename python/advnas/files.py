"""Files as people name them."""

from __future__ import annotations

import os
from pathlib import Path


def at_home(path: str | Path) -> Path:
    """With ``~`` as the home folder. Of a user that nobody knows it stays, so that the message on the missing file names it;
    :meth:`pathlib.Path.expanduser` raises RuntimeError."""
    return Path(os.path.expanduser(path))
