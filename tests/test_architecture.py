"""Which room knows which: the loops name no data set, no space and no loss, and arrows run downwards only."""

import ast
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[1] / "python"
LOOPS = ("search.py", "state.py", "halving.py", "retrain.py", "training.py")


def imports(file: Path) -> set[str]:
    """Every module that a file imports from anywhere in it, and every name as module.name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(name == p or name.startswith(f"{p}.") for p in packages)}


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_know_no_data_no_space_and_no_loss(loop):
    names = imports(PYTHON / "advnas" / loop)
    assert not below(names, "advnas.data", "advnas.spaces", "advnas.networks", "advnas.tables", "advnas.tasks.image")
    assert not below(names, "advnas.tasks.language", "torch.nn.functional")
    text = (PYTHON / "advnas" / loop).read_text()
    for word in ("cross_entropy", "nasbench201", "accuracy", "perplexity", "RandomEstimator"):
        assert word not in text, word


def test_the_compiled_package_does_not_know_the_search():
    for file in (PYTHON / "advnas_ext").rglob("*.py"):
        assert not below(imports(file), "advnas"), file


@pytest.mark.parametrize("space", sorted((PYTHON / "advnas" / "spaces").glob("*.py")), ids=lambda path: path.stem)
def test_only_the_registry_names_a_space(space):
    if space.stem in ("__init__", "base"):
        pytest.skip("is no space")
    for file in (PYTHON / "advnas").rglob("*.py"):
        if file.parent.name != "spaces":
            assert not below(imports(file), f"advnas.spaces.{space.stem}"), file


def test_reports_and_analysis_are_not_asked_by_the_loops():
    for loop in LOOPS:
        assert not below(imports(PYTHON / "advnas" / loop), "advnas.report", "advnas.analysis")
