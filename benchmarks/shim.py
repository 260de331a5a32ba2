"""The passes for CUDA on the host: launches are counted, and nothing is timed. Built beside the extension; see tests/cuda_shim."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from types import ModuleType

import torch
from cuda_shapes import Launch

import advnas_ext
from advnas_ext import OnePathCell, Path, head, native


def load() -> ModuleType:
    """Build the passes with their kernels on the shim, and import them.

    Raises:
        SystemExit: the extension was not built in place.
        RuntimeError: the shim does not compile.
    """
    import ninja

    built = json.loads(FilePath(advnas_ext.__file__).with_name("_build.json").read_text())["torch"]
    folder = FilePath(__file__).parents[1] / "build" / f"torch-{built}"
    if not (folder / "build.ninja").exists():
        raise SystemExit("the shim needs a build in place: pip install --no-build-isolation -e .")
    command = [str(FilePath(ninja.BIN_DIR, "ninja")), "-C", str(folder), "shim.so"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the shim does not compile:\n{done.stdout}")
    spec = importlib.util.spec_from_file_location("advnas_shim._C", folder / "shim.so")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Launches:
    """Sends what runs natively to the passes for CUDA while a ``with counted()`` lasts."""

    def __init__(self) -> None:
        self.module = load()
        with self.counted():  # what is made once and kept
            OnePathCell(1, num_nodes=2)(torch.ones(1, 1, 2, 2), Path.from_ops([3]))

    @contextmanager
    def counted(self) -> Iterator[Counter[Launch]]:
        """A counter that holds the launches of the ``with`` block at its end."""
        found: Counter[Launch] = Counter()
        host, types = native._run, native._TYPES
        native._run, native._TYPES = self.module.cell, {"cpu": types["cuda"]}
        heads, head._DEVICES = head._DEVICES, ()
        self.module.clear_launch_counts()
        try:
            yield found
        finally:
            native._run, native._TYPES = host, types
            head._DEVICES = heads
        for (kernel, grid, block, shared), count in self.module.launch_counts().items():
            found[Launch(kernel.strip("()").split("<")[0], grid, block, shared)] += count
