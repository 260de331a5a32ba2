"""The README's example runs as it stands."""

import re
from pathlib import Path

import torch
from examples import run_example

README = Path(__file__).parents[1] / "README.md"


def test_the_drop_in_example():
    names = run_example("README.md", 0)
    assert names["est"].logits.shape == (6, 5)
    assert names["est"].logits.abs().sum() > 0
    assert names["path"].gates.grad.shape == (6, 1)
    assert names["est"].argmax().dtype == torch.int64


def test_the_example_of_a_model():
    names = run_example("README.md", 1)
    search = names["search"]
    assert search.logits.shape == (2, 3)
    assert search.logits.any()
    assert not any(isinstance(module, names["OnePathChoice"]) for module in names["network"].modules())


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z0-9-]+)", README.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README names make {target}"
