"""The passes for CUDA on the host: what they launch is written down, and nothing is timed. See tests/cuda_shim."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import torch

from advnas_ext import OnePathCell, Path, fidelity, head, native, recurrent
from benchmarks.cuda.operators import Operators, Work
from benchmarks.sheet import ROOT


class Launch(NamedTuple):
    """``least``, ``moved``, ``flops``: as of a :class:`Work`; 0 of kernels outside of cells."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared: int
    least: int
    moved: int
    flops: int

    @property
    def work(self) -> Work:
        assert self.moved > 0, f"{self.kernel}: tests/cuda_shim/work.h does not know its bytes"
        return Work(self.kernel, self.least, self.moved, self.flops, own=True)


def import_file(name: str, path: FilePath) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def setup_module() -> ModuleType:
    """setup.py, which knows the compilers, the targets and what is compiled how."""
    return import_file("advnas_setup", ROOT / "setup.py")


def load() -> ModuleType:
    """Build the passes with their kernels on the shim, and import them.

    Raises:
        SystemExit: there is no compiler.
        RuntimeError: the shim does not compile.
    """
    setup = setup_module()
    folder = setup.objects_folder(torch)
    if not (folder / "build.ninja").exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = setup.ninja_file(torch, setup.find_compiler(), None)
        (folder / "build.ninja").write_text(text)
    command = [setup.find_ninja(), "-C", str(folder), "shim.so"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the shim does not compile:\n{done.stdout}")
    return import_file("advnas_shim._C", folder / "shim.so")


class Launches:
    """Sends what runs natively to the passes for CUDA while a ``with counted()`` lasts."""

    def __init__(self) -> None:
        self.module = load()
        with self.counted():  # what is made once and kept
            OnePathCell(1, num_nodes=2)(torch.ones(1, 1, 2, 2), Path.from_ops([3]))

    @contextmanager
    def counted(self, dry: bool = False) -> Iterator[list[Launch]]:
        """A list that holds the launches of the ``with`` block at its end. ``dry``: they are not run."""
        found: list[Launch] = []
        self.module.clear_launches()
        self.module.run_kernels(not dry)
        with (
            patch.object(native, "_run", self.module.cell),
            patch.object(recurrent, "_run", torch.ops.advnas_shim.recurrent.default),
            patch.object(native, "TYPES", {"cpu": native.TYPES["cuda"]}),
            patch.object(head, "DEVICES", ()),
            patch.object(fidelity, "context_obstacle", lambda: None),  # counting operators is a mode
        ):
            try:
                yield found
            finally:
                self.module.run_kernels(True)
        found += [Launch(re.match(r"\W*(\w+)", kernel)[1], *rest) for kernel, *rest in self.module.launches()]  # type: ignore[index]

    def launched(self, step: Callable[[], object]) -> list[Launch]:
        """What ``step`` launches. Nothing large is computed."""
        with self.counted(dry=True) as found, Operators(dry=True):
            step()
        return found

    def work(self, step: Callable[[], object]) -> list[Work]:
        """What ``step`` would cost on a GPU: its launches and PyTorch's operators. Nothing large is computed."""
        with self.counted(dry=True) as found, Operators(dry=True) as operators:
            step()
        return [*(launch.work for launch in found), *operators.found]


@functools.cache
def launches() -> Launches:
    return Launches()
