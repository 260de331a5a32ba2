"""A text as numbers: every line is its words and an end-of-sentence, as Mikolov et al. (2010) prepared Penn Treebank."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

EOS, UNKNOWN = "<eos>", "<unk>"
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Corpus:
    """A training, a validation and a test text.

    Attributes:
        words: the vocabulary, in the order in which the training text has them.
        train, valid, test: int64 [tokens], places in ``words``.
    """

    words: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    @classmethod
    def of_lines(cls, parts: Sequence[Iterable[str]], names: Sequence[str] = PARTS) -> Corpus:
        """The vocabulary is that of the first part. Words of the others that it lacks become <unk>, if it has that.

        Args:
            parts: lines of the training, the validation and the test text, words between spaces.
            names: of the parts, for messages.

        Raises:
            ValueError: a part has no words, or a word is unknown; with its line.
        """
        places: dict[str, int] = {}
        train = _numbers(parts[0], names[0], lambda word, line: places.setdefault(word, len(places)))

        def known(name: str) -> Tensor:
            def place(word: str, line: int) -> int:
                found = places.get(word, places.get(UNKNOWN))
                if found is None:
                    raise ValueError(
                        f"{name}, line {line}: must have words of {names[0]}, got {word!r}; replace it by {UNKNOWN} in "
                        f"both, or add it to {names[0]}"
                    )
                return found

            return _numbers(parts[names.index(name)], name, place)

        valid, test = (known(name) for name in names[1:])
        return cls(tuple(places), train, valid, test)


def _numbers(lines: Iterable[str], name: str, place: Callable[[str, int], int]) -> Tensor:
    tokens: list[int] = []
    count = 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        count += len(words)
        tokens += [place(word, number) for word in (*words, EOS)]
    if count == 0:
        raise ValueError(f"{name}: must hold words, got an empty text")
    return torch.tensor(tokens)


def load_folder(folder: Path | None) -> Corpus:
    """The texts of a folder: train.txt, valid.txt and test.txt, or the same names behind one prefix, as in ptb.train.txt.

    Raises:
        FileNotFoundError: there is no such folder or no such file in it.
        ValueError: no folder is given, there are several files for a part, or see :meth:`Corpus.of_lines`; or a file is not UTF-8.
    """
    if folder is None:
        raise ValueError("data_dir: needed to find the text; give the folder that holds train.txt (--data-dir)")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it must hold train.txt, valid.txt and test.txt")
    files = [_file(folder, part) for part in PARTS]
    return Corpus.of_lines([_lines(file) for file in files], [str(file) for file in files])


def _file(folder: Path, part: str) -> Path:
    found = sorted({*folder.glob(f"{part}.txt"), *folder.glob(f"*.{part}.txt")})
    if not found:
        raise FileNotFoundError(
            f"{folder / part}.txt: no such file; the folder must hold train.txt, valid.txt and test.txt"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{folder}: must hold one text for {part}, got {names}; move the others away")
    return found[0]


def _lines(file: Path) -> list[str]:
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise ValueError(f"{file}, line {line}: must be UTF-8, got byte {byte:#x}; convert the file") from None
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
