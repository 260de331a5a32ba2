"""What the command line makes of its arguments: typed settings, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")


def option(args: Sequence[str], name: str) -> str | None:
    """The last value of an option in the arguments, as ``--name value`` or ``--name=value``."""
    value = None
    for place, word in enumerate(args):
        if word == name and place + 1 < len(args):
            value = args[place + 1]
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value


def flags_of(args: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in args if word.startswith("--")}


def parse(kind: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """The arguments of a command.

    Raises:
        ValueError: they are wrong. The message is one line, where tyro draws a box.
        SystemExit: --help was asked for and is printed.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=prog, args=args, default=tyro.MISSING_NONPROP if default is None else default)
    except SystemExit as end:
        if not end.code:
            raise
    # Without the frame and its title. Rules divide the box: what is wrong; help on it or close options; a pointer to --help.
    lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:-1]]
    groups = itertools.groupby(lines, key=lambda line: set(line) <= {"─", "-"})
    wrong, *rest = [list(group) for is_rule, group in groups if not is_rule]
    close: list[str] = []
    if "Unrecog" in wrong[0]:
        close = [line.split()[0] for part in rest for line in part if line.startswith("--")]
        option = next((word.strip(",") for line in wrong for word in line.split() if word.startswith("--")), "")
        close = difflib.get_close_matches(option, close, n=3, cutoff=0)
    hint = f"; perhaps you meant {' or '.join(close)}" if close else ""
    text = re.sub(r"^Error parsing \w+: ", "", " ".join(wrong))
    raise ValueError(f"{text}{hint}; see {prog} --help")
