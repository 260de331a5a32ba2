"""Loads the compiled part, and says what to do where that cannot work: a wrong torch would be an undefined symbol otherwise."""

import json
from importlib import metadata
from pathlib import Path

import torch

REBUILD = "rebuild it: pip install --no-build-isolation --force-reinstall --no-deps . in the folder of its source"


def _build_info() -> dict:
    path = Path(__file__).with_name("_build.json")
    if not path.exists():
        raise ImportError(
            f"advnas_ext: the compiled part is missing in {path.parent}; build it with pip install --no-build-isolation -e ., "
            "or leave the source folder if the package is installed elsewhere"
        )
    return json.loads(path.read_text())


def check(built: str, installed: str) -> None:
    """Raise ImportError if the extension was built for another release of torch; "+cpu" and the like do not matter."""
    if built.split("+")[0] != installed.split("+")[0]:
        raise ImportError(f"advnas_ext was built for torch {built}, but torch {installed} is installed; {REBUILD}")


BUILD = _build_info()
VERSION = metadata.version("advnas-ext")
check(BUILD["torch"], torch.__version__)
if BUILD["cuda"] and not torch.version.cuda:
    raise ImportError(
        f"advnas_ext was built for CUDA {BUILD['cuda']}, but torch {torch.__version__} has no CUDA; {REBUILD}"
    )
