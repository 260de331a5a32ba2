"""The commands around benchmark tables: ``advnas query`` and ``advnas table``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from advnas.arguments import parse
from advnas.config import OptionalSpace, Space
from advnas.report.console import console, facts, print_table
from advnas.spaces import SPACES

SHOWN = 10  # cells that are the same network, unless all are asked for

TABLE_USAGE = """usage: advnas table convert SOURCE DEST [OPTIONS]

One Parquet file of a benchmark, for advnas query, --table and advnas.tables.

  advnas table convert   from NAS-Bench-201's .pth, NATS-Bench's folder or file, HW-NAS-Bench's pickle, or CSV

advnas table convert --help explains the options.
"""


@dataclass(frozen=True, kw_only=True)
class QueryArguments:
    """Look cells up in a benchmark table."""

    file: Positional[Annotated[Path, arg(metavar="FILE")]]
    """The table (CSV or Parquet)."""
    arch: Annotated[str | None, arg(metavar="CELL")] = None
    """The cell, such as "|nor_conv_3x3~0|+|none~0|...|", or its number: what it has, and which others are the same network."""
    same: FlagCreatePairsOff[bool] = False
    """With --arch: list all cells that are the same network, not the first ten."""
    top: Annotated[int | None, arg(metavar="INT")] = None
    """Print that many of the best cells."""
    by: str | None = None
    """Column that says which cells are best; None: the table's usual one."""
    space: OptionalSpace = None
    """Search space of the table; None: the one that a Parquet file names, nasbench201 for CSV."""


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Make one Parquet file of a benchmark, quick to open: from NAS-Bench-201's .pth, NATS-Bench's folder or file (topology, size),
    HW-NAS-Bench's pickle, or a CSV table. What SOURCE is, its content says. Pickles are read as data; nothing in them is run.

    For example: advnas table convert NAS-Bench-201-v1_1-096897.pth nasbench201.parquet
    """

    source: Positional[Annotated[Path, arg(metavar="SOURCE")]]
    """File or folder."""
    dest: Positional[Annotated[Path, arg(metavar="DEST")]]
    """The new file, .parquet. One that is there is replaced."""
    space: Space = "nasbench201"
    """Search space of a CSV table."""


def query(args: Sequence[str]) -> None:
    from advnas.tables import Table

    given = parse(QueryArguments, args, "advnas query")
    if (given.arch is None) == (given.top is None):
        raise ValueError("give one of --arch and --top")
    table = Table.load(given.file, None if given.space is None else SPACES[given.space])
    space = table.space
    if given.arch is not None:
        arch = table.named(given.arch)
        facts({"cell": arch, **{name: f"{value:g}" for name, value in table.lookup(arch).items()}})
        for sameness, others in space.alike(arch).items():
            shown = others if given.same else others[:SHOWN]
            print(f"\n{sameness}: {len(others) or 'no'} other cell{'s' * (len(others) != 1)}", *shown, sep="\n")
            if len(shown) < len(others):
                print(f"... and {len(others) - len(shown)} more; --same lists all")
        return
    by = given.by or space.columns[0]
    columns = [name for name in dict.fromkeys([by, *space.columns]) if name in table.columns]
    rows = [[arch, *(f"{row[name]:g}" for name in columns)] for arch, row in table.top(given.top or 0, by)]
    print_table(f"the best by {by}", ["cell", *columns], rows)


def table(args: Sequence[str]) -> None:
    action, *rest = args or [""]
    if action in ("-h", "--help"):
        print(TABLE_USAGE, end="")
        return
    if action != "convert":
        raise ValueError(f"give advnas table convert SOURCE DEST{f', got {action!r}' if action else ''}")
    from advnas.tables.convert import convert

    given = parse(ConvertArguments, rest, "advnas table convert")
    facts(convert(given.source, given.dest, SPACES[given.space], console()))
