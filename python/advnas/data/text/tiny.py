"""An embedded text of about 100,000 words: the reference of Python's language, which every Python has beside its help() command.

It belongs to the Python that runs, so that another version of Python gives a slightly other text.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from advnas.data.text.corpus import UNKNOWN, Corpus

LEAST = 5  # times that a word of the vocabulary occurs
PART = 10  # every tenth paragraph is for validation, and another one for the test


def load(data_dir: Path | None = None) -> Corpus:
    """Paragraphs as lines: words in lower case, numbers as N, runs of one sign as one. ``data_dir`` is not used.

    Raises:
        FileNotFoundError: this Python comes without its reference.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise FileNotFoundError(
            "data: tiny is made of pydoc_data, which this Python lacks; install its standard library in full, or give a "
            "folder of texts"
        ) from None
    text = "\n\n".join(topics[name] for name in sorted(topics)).lower()
    paragraphs = [words for words in map(_words, re.split(r"\n\s*\n", text)) if words]
    counts = Counter(word for words in paragraphs for word in words)
    lines = [" ".join(word if counts[word] >= LEAST else UNKNOWN for word in words) for words in paragraphs]
    valid, test = lines[PART - 2 :: PART], lines[PART - 1 :: PART]
    train = [line for place, line in enumerate(lines) if place % PART < PART - 2]
    return Corpus.of_lines([train, valid, test])


def _words(paragraph: str) -> list[str]:
    found = re.finditer(r"[a-z]+|[0-9]+|([^\sa-z0-9])\1*", paragraph)
    return ["N" if match[0].isdigit() else match[1] or match[0] for match in found]
