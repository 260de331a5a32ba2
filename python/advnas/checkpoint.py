"""Files that are whole or not there, and checkpoints that are checked before they are used."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import advnas_ext

FORMAT = 2  # raised when a checkpoint of an earlier version could no longer be read


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name under which to write a file so that at any time, also after a crash or on a full disk, ``path`` holds the old
    content or the new one. The file moves to ``path`` where the block ends without an error.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file that is whole or not there; raises as :func:`whole`."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or not there; raises as :func:`whole`."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def save(path: Path, kind: str, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Save a state of nested dicts, lists, tensors and numbers, with what :func:`load` needs to recognise it.

    Args:
        path: in an existing folder.
        kind: what is being trained, such as "search".
        config: the settings on which the state depends.
    """
    buffer = io.BytesIO()
    made_by = {"kind": kind, "format": FORMAT, "version": f"advnas-ext {advnas_ext.__version__}"}
    torch.save({**made_by, "config": dict(config), "state": dict(state)}, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path, kind: str, config: Mapping[str, Any], only: Collection[str] | None = None) -> dict[str, Any]:
    """The state of a checkpoint.

    Args:
        path: its file.
        kind, config: as it was saved with.
        only: the settings that have to agree; None: all that are known here and there. Those of other versions are not.

    Raises:
        ValueError: the file is missing, damaged, not a checkpoint of this kind, or was made with other settings.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path}: there is no checkpoint here; start again without --resume, in another folder"
        ) from None
    try:
        # torch reads an archive with flipped bits without a word.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        payload = torch.load(io.BytesIO(content), "cpu", weights_only=True) if damaged is None else None
    except Exception as error:  # whatever the unpickling of garbage comes to
        raise ValueError(
            f"{path}: not a checkpoint, or a damaged one ({type(error).__name__}); start the run again"
        ) from None
    if damaged is not None:
        raise ValueError(f"{path}: the checkpoint is damaged at {damaged}; start the run again")
    if not isinstance(payload, dict) or payload.get("kind") != kind:
        raise ValueError(f"{path}: not a checkpoint of an advnas {kind}; choose the folder of one")
    if payload.get("format") != FORMAT:
        maker = payload.get("version", "an advnas-ext without a version")
        raise ValueError(
            f"{path}: must have format {FORMAT}, got {payload.get('format')!r}, made by {maker}; go on with that version, "
            "or start again"
        )
    names = [name for name in config if name in payload["config"]] if only is None else only
    other = [name for name in names if config.get(name) != payload["config"].get(name)]
    if other:
        was = ", ".join(f"{name} {payload['config'].get(name)!r}, now {config.get(name)!r}" for name in other)
        raise ValueError(f"{path}: the checkpoint was made with other settings ({was}); restore them")
    return payload["state"]
