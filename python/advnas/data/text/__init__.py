"""Text data: sets by name, a vocabulary, windows that can be resumed.

A new set is one file and one line of TEXTS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from advnas.data.text import tiny
from advnas.data.text.corpus import Corpus, load_folder
from advnas.data.text.windows import TextBatch, Windows
from advnas.files import at_home

# name -> loader(data_dir)
TEXTS: dict[str, Callable[[Path | None], Corpus]] = {
    "tiny": tiny.load,
    "ptb": load_folder,
}


def load(name: str, data_dir: Path | None = None) -> Corpus:
    """A text in memory.

    Args:
        name: a name in ``TEXTS``, or a folder with train.txt, valid.txt and test.txt.
        data_dir: where the files of a named set lie.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is empty, is not UTF-8, or has a word that the training text lacks.
    """
    if name in TEXTS:
        return TEXTS[name](data_dir)
    texts = at_home(name)
    if not texts.is_dir():
        raise FileNotFoundError(
            f"data: must be one of {', '.join(TEXTS)}, or a folder with train.txt, valid.txt and test.txt; there is no "
            f"folder {name}"
        )
    return load_folder(texts)


__all__ = ["TEXTS", "Corpus", "TextBatch", "Windows", "load"]
