"""What all adapters share; each has its own test in tests/peers."""

import re
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn

from advnas.adapters import ADAPTERS, convert, versions

ROOT = Path(__file__).parents[1]


def test_no_project_is_imported_unasked():
    program = "import advnas.adapters, sys; print({name.split('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "torch" in names
    assert not any(f"'{name}'" in names for name in versions.TRIED)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_exist(name):
    adapter, function = ADAPTERS[name]
    assert adapter in versions.TRIED
    module = f"advnas.adapters.{adapter}"
    if adapter == "xautodl" or find_spec(adapter) is not None:  # which imports nothing of xautodl
        assert callable(getattr(import_module(module), function))
    else:
        with pytest.raises(ImportError, match=rf'is not installed; pip install "advnas-ext\[{adapter}\]"'):
            import_module(module)


@pytest.mark.parametrize(
    "name", sorted(versions.TRIED.keys() - {"xautodl"})
)  # it asks for a numpy that no torch here takes
def test_every_project_has_an_extra_and_an_environment(name):
    assert re.search(rf"^{name} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.search(rf"^PEERS := .*\b{name}\b", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (ROOT / "tests" / "peers" / f"test_{name}.py").exists()


def test_what_is_missing_is_named():
    with (
        pytest.raises(ImportError, match=r'no_such_project is not installed; pip install "advnas-ext\[nni\]"'),
        versions.peer("nni"),
    ):
        import no_such_project  # noqa: F401


def test_a_release_that_was_not_tried_is_named(monkeypatch):
    monkeypatch.setattr(versions.metadata, "version", lambda name: "9.0")
    with pytest.warns(UserWarning, match=r"nni 9\.0 was not tried, 3\.0 was; compare a step with its own") as found:
        versions.check("nni")
    assert len(found) == 1
    monkeypatch.setattr(versions.metadata, "version", lambda name: "3.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check("nni")


def test_a_model_of_nobody_is_refused():
    with pytest.raises(
        ValueError, match=r"convert: Linear holds no module that is known; known are xautodl\.models.*, nni\.nas"
    ):
        convert(nn.Linear(2, 2))
