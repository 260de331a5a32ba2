"""What the compiler makes of every CUDA kernel: registers, shared memory, spills, and the occupancy that follows.

Needs nvcc, and no GPU. Writes cuda-kernels.md to --out.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import ModuleType

import cuda_shapes as shapes
import tyro
from cuda_shapes import Images, Launch
from gpus import GPUS, LIMITS
from report import Sheet

from advnas.report.console import console

ROOT = FilePath(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))
TYPES = {"float": ("float32", 4), "__half": ("float16", 2), "__nv_bfloat16": ("bfloat16", 2)}
CHANNELS = (16, 32, 64)
BATCH, SIZE = 64, 32
# Of a node of a one-path cell, at most: three edges leave it, and the convolutions of three arrive.
SOURCES_OF_NODE, SUMS_OF_NODE = 3, 4


@dataclass(frozen=True)
class Kernel:
    """``file``: where it is; ``type``: of its tensors, or empty; ``pack``: elements of one load, 0 if it has no packs."""

    file: str
    name: str
    type: str = ""
    pack: int = 0

    @property
    def label(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def element(self) -> int:
        return next((size for name, size in TYPES.values() if name == self.type), shapes.FLOAT)


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one target; bytes but for ``registers``."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


Found = dict[Kernel, dict[int, Resources]]  # by target

_ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for 'sm_(?P<target>\d+)a?'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<used>[^\n]*)",
    re.DOTALL,
)
_KERNEL = re.compile(r"(?P<name>\w+?)(?:_kernel)?(?:<(?P<type>\w+)(?:, (?P<pack>\d+))?>)?\(")


def setup_module() -> ModuleType:
    """setup.py, which knows the targets and finds nvcc."""
    spec = importlib.util.spec_from_file_location("advnas_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def version_of(nvcc: FilePath) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text)[1]  # type: ignore[index]


def kernels_of(nvcc: FilePath, targets: Sequence[int]) -> Found:
    """Compile every file for all ``targets``."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            architectures = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
            command = [
                str(nvcc),
                "-std=c++20",
                "-O3",
                "-Xptxas=-v",
                *architectures,
                "-c",
                str(source),
                "-o",
                f"{folder}/kernels.o",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"cuda_kernels.py: nvcc does not compile {source.name}:\n{done.stderr}")
            for kernel, target, resources in parse(done.stderr, source.stem):
                found.setdefault(kernel, {})[target] = resources
    return found


def parse(report: str, file: str) -> list[tuple[Kernel, int, Resources]]:
    """The kernels that `ptxas -v` reports."""
    entries = list(_ENTRY.finditer(report))
    names = _demangle([entry["symbol"] for entry in entries])
    result = []
    for entry, name in zip(entries, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["used"])
        numbers = [int(entry[key]) for key in ("stack", "stores", "loads")]
        resources = Resources(int(entry["registers"]), int(shared[1]) if shared else 0, *numbers)
        result.append((_kernel(name, file), int(entry["target"]), resources))
    return result


def _demangle(symbols: Sequence[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[: len(symbols)]


def _kernel(demangled: str, file: str) -> Kernel:
    found = _KERNEL.search(demangled.replace("(anonymous namespace)", ""))
    assert found is not None, demangled
    type_name = TYPES[found["type"]][0] if found["type"] else ""
    return Kernel(file, found["name"], type_name, int(found["pack"] or 0))


def launch_of(kernel: Kernel, channels: int) -> Launch:
    """Its launch on images of 32x32 with so many channels, or one more where its packs are of one element."""
    element = kernel.element
    channels += kernel.pack == 1
    images = Images(BATCH, SIZE, SIZE, channels)
    pointwise = (images.pixels, channels, channels, element)
    makers = {
        "node: node_forward": lambda: shapes.node_forward(images, element),
        "node: node_backward": lambda: shapes.node_backward(images, element, SOURCES_OF_NODE, SUMS_OF_NODE),
        "node: node_forward_maxima": lambda: shapes.node_forward(images, element),
        "node: node_backward_maxima": lambda: shapes.node_backward(images, element, SOURCES_OF_NODE, SUMS_OF_NODE),
        "norm: statistics": lambda: shapes.norm_statistics(images, element),
        "norm: gradient": lambda: shapes.norm_gradient(images, element),
        "norm: fixed": lambda: shapes.norm_fixed(channels),
        "layout: to_channels_last": lambda: shapes.to_channels_last(images),
        "pointwise: forward": lambda: shapes.pointwise_forward(*pointwise),
        "pointwise: backward": lambda: shapes.pointwise_backward(*pointwise, to_weight=True),
    }
    if kernel.label in makers:
        return makers[kernel.label]()
    # Over one dimension, with static shared memory only.
    assert kernel.file in ("gate", "recurrent"), f"{kernel.label}: how it is launched is not known here"
    return Launch(kernel.name, (1, 1, 1), shapes.BLOCK)


def occupancy(kernel: Kernel, resources: Resources, target: int, channels: int) -> float:
    launch = launch_of(kernel, channels)
    return LIMITS[target].occupancy(launch.block, resources.registers, resources.shared + launch.shared)


def sheet(found: Found) -> Sheet:
    names = " / ".join(gpu.name for gpu in GPUS)
    header = (
        "kernel",
        "type",
        "pack",
        f"registers: {names}",
        "all targets",
        "static",
        "dynamic",
        f"occupancy, %: {names}",
    )
    table = Sheet("Resources of every kernel", header, 2)
    for kernel, by_target in sorted(found.items(), key=lambda item: _order(item[0])):
        registers = [resources.registers for resources in by_target.values()]
        launches = [launch_of(kernel, channels) for channels in CHANNELS]
        worst = [
            min(occupancy(kernel, by_target[gpu.target], gpu.target, channels) for channels in CHANNELS) for gpu in GPUS
        ]
        table.rows.append(
            [
                kernel.label,
                kernel.type,
                str(kernel.pack or ""),
                " / ".join(str(by_target[gpu.target].registers) for gpu in GPUS),
                f"{min(registers)} - {max(registers)}",
                str(max(resources.shared for resources in by_target.values())),
                " / ".join(str(launch.shared) for launch in launches) if launches[-1].shared else "0",
                " / ".join(f"{100 * part:.0f}" for part in worst),
            ]
        )
    return table


def _order(kernel: Kernel) -> tuple[str, int, int]:
    types = [name for name, _ in TYPES.values()]
    return kernel.label, types.index(kernel.type) if kernel.type else 0, -kernel.pack


def registers_in(markdown: str) -> dict[tuple[str, str, str], dict[int, int]]:
    """Of a table that was written: by label, type and pack, then by the targets of ``GPUS``."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.split("\n") if line[:1] == "|"]
    targets = [gpu.target for gpu in GPUS]
    return {
        (row[0], row[1], row[2]): dict(zip(targets, map(int, row[3].split(" / ")), strict=True)) for row in rows[2:]
    }


def describe(found: Found, version: str, targets: Sequence[int]) -> str:
    every = [resources for by_target in found.values() for resources in by_target.values()]
    spills = max(resources.spill_stores + resources.spill_loads for resources in every)
    stack = max(resources.stack for resources in every)
    return (
        f"nvcc {version}, -O3, for {', '.join(f'sm_{target}' for target in targets)}; nvcc 13 no longer compiles for sm_70 (V100). "
        f"Of all kernels on all targets: at most {spills} bytes spilled, {stack} bytes of stack frame, "
        f"{max(resources.registers for resources in every)} registers.\n\n"
        "Pack: elements that one load moves; 1 is for channels that 16 bytes do not divide. Registers: of a thread. "
        "Static, dynamic: bytes of shared memory of a block, dynamic at "
        f"C = {' / '.join(map(str, CHANNELS))} (pack 1: one channel more); node_backward with {SOURCES_OF_NODE} sources and "
        f"{SUMS_OF_NODE - 1} convolutions, the most of a one-path cell. Occupancy: the part of an SM's warps that can run at "
        "once, by the limits in benchmarks/gpus.py, at the worst of these C; it says nothing of whether the grid is large "
        "enough.\n"
    )


@dataclass
class Settings:
    out: FilePath = FilePath(__file__).parent / "results"
    """Folder of the table."""


def main(settings: Settings) -> None:
    setup = setup_module()
    nvcc = setup.find_nvcc()
    if nvcc is None:
        raise SystemExit(
            "cuda_kernels.py: nvcc was not found: install the CUDA toolkit and set CUDA_HOME to its folder"
        )
    found = kernels_of(nvcc, setup.CUDA_TARGETS)
    table = sheet(found)
    console().print(table.rich())
    text = describe(found, version_of(nvcc), setup.CUDA_TARGETS)
    (settings.out / "cuda-kernels.md").write_text(f"{text}\n{table.markdown()}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
