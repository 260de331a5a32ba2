"""The examples of the documentation, which run as they stand."""

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def run_example(document: str, name: str | int) -> dict[str, Any]:
    """Run a code block that follows ``<!-- example: ... -->``, by its number or by what the comment says. Returns its names."""
    blocks = re.findall(r"<!-- example(.*?) -->\n```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    [code] = [blocks[name][1]] if isinstance(name, int) else [code for title, code in blocks if f" {name}:" in title]
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(code, document, "exec"), names)
    return names
