"""Measurements at fixed supernet weights: what the estimators' signals are worth, and how well the supernet ranks cells."""

from __future__ import annotations

from pathlib import Path

import torch

from advnas.device import gpus
from advnas.run.folder import RunFolder
from advnas.run.search import Search, restore


def searched(checkpoint: Path, threads: int | None = None) -> tuple[RunFolder, Search]:
    """The run folder of a search, and the search as its checkpoint has it; on the CPU where there is no GPU.

    Args:
        checkpoint: a run folder, or the checkpoint in it.
        threads: CPU threads from now on; None: as many as the search had.

    Raises:
        FileNotFoundError: there is no search.
        ValueError: its checkpoint is damaged or does not fit its settings or its data, it has trained no supernet yet, or
            ``checkpoint`` is another file.
    """
    folder = RunFolder.of(checkpoint)
    run = restore(folder, {"table": None, **({} if gpus() else {"device": "cpu"})})
    if run.state.work == 0:
        raise ValueError(f"{folder.path}: has no trained supernet; give a search that was begun, of one limit at most")
    if threads is not None:
        torch.set_num_threads(threads)
    return folder, run
