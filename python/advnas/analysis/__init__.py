"""Measurements at fixed supernet weights: what the estimators' signals are worth, and how well the supernet ranks cells."""

from __future__ import annotations

from pathlib import Path

import torch

from advnas.run import CHECKPOINT, restore
from advnas.search import SearchState


def searched(checkpoint: Path, threads: int | None = None) -> tuple[Path, SearchState]:
    """The run folder of a search, and its state as it was saved last.

    Args:
        checkpoint: a run folder, or the checkpoint in it.
        threads: CPU threads from now on; None: as many as the search had.

    Raises:
        FileNotFoundError: there is no search.
        ValueError: its checkpoint is damaged or does not fit its settings or its data, or ``checkpoint`` is another file.
    """
    folder = checkpoint
    if checkpoint.is_file():
        folder = checkpoint.absolute().parent.parent
        if checkpoint.absolute() != folder / CHECKPOINT:
            raise ValueError(f"{checkpoint}: must be the run folder of a search or the {CHECKPOINT} in one")
    state, _ = restore(folder, with_table=False)
    if threads is not None:
        torch.set_num_threads(threads)
    return folder, state
