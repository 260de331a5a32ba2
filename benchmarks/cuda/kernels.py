"""What the compiler makes of every CUDA kernel: registers, shared memory, spills, and the occupancy that follows.

Needs nvcc, and no GPU. Writes cuda-kernels.md to --out.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path as FilePath

import torch
import tyro

from advnas_ext import OnePathCell, Path
from benchmarks.cuda.gpus import GPUS, LIMITS
from benchmarks.cuda.own import own_conv3x3
from benchmarks.cuda.shim import Launch, launches, setup_module
from benchmarks.sheet import RESULTS, ROOT, Page, Sheet

SOURCES = sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))
TYPES = {"float": torch.float32, "__half": torch.float16, "__nv_bfloat16": torch.bfloat16}
NAMES = {code: str(dtype).removeprefix("torch.") for code, dtype in TYPES.items()}
CHANNELS = (16, 32, 64)
BATCH, SIZE = 64, 32
BLOCK = 256


@dataclass(frozen=True)
class Kernel:
    """``file``: where it is; ``type``: of its tensors, or empty; ``pack``: elements of one load, 0 if it has no packs; ``slice``:
    channels of the output that a block has, 0 if that is not fixed."""

    file: str
    name: str
    type: str = ""
    pack: int = 0
    slice: int = 0

    @property
    def launched_as(self) -> str:
        return f"{self.name.split(',')[0]}_kernel"

    def runs_at(self, channels: int) -> bool:
        return self.slice in (0, 32 if channels % 32 == 0 else 16)

    @property
    def label(self) -> str:
        return f"{self.file}: {self.name}"


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
_KERNEL = re.compile(
    r"(?P<name>\w+?)(?:_kernel)?(?:<(?P<type>\w+)(?:, (?P<pack>\d+))?(?:, (?P<baseline>true|false))?>)?\("
)


def version_of(nvcc: FilePath) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text)[1]  # type: ignore[index]


def kernels_of(nvcc: FilePath, targets: Sequence[int]) -> Found:
    """Compile every file for all ``targets``."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            architectures = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
            options = ["-std=c++20", "-O3", "-Xptxas=-v", *architectures, "-c", str(source)]
            command = [str(nvcc), *options, "-o", f"{folder}/kernels.o"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"cuda/kernels.py: nvcc does not compile {source.name}:\n{done.stderr}")
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
    type_name = NAMES[found["type"]] if found["type"] else ""
    if file == "conv3x3" and found["pack"]:
        return Kernel(file, f"{found['name']}, {found['pack']} channels", type_name, slice=int(found["pack"]))
    name = f"{found['name']}, baseline" if found["baseline"] == "true" else found["name"]
    return Kernel(file, name, type_name, int(found["pack"] or 0))


# Of a cell of seven nodes: three operations arrive at node 3 and three leave it, the most of a one-path cell.
ARRIVING = {(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)}
LEAVING = {(4, 3), (5, 3), (6, 3), (6, 4), (6, 5)}
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
PICKED = (*((op, op) for op in OPS[1:]), ("nor_conv_3x3", "max_pool_3x3"))  # arriving, leaving


@cache
def cell_launches(channels: int, dtype: torch.dtype) -> dict[str, Launch]:
    """The launch with the most shared memory of every kernel that cells launch, in training and evaluation."""
    cell = OnePathCell(channels, OPS, num_nodes=7, track_running_stats=True).to(dtype)
    edges = [(target, source) for target in range(7) for source in range(target)]
    x = torch.randn(
        BATCH, channels, SIZE, SIZE, dtype=dtype, requires_grad=True
    )  # not in channels_last, so that it is turned
    found: dict[str, Launch] = {}
    for (arriving, leaving), training in product(PICKED, (True, False)):
        picked = [arriving if edge in ARRIVING else leaving if edge in LEAVING else "none" for edge in edges]
        path = Path.from_ops(torch.tensor(list(map(OPS.index, picked))))
        for way in (contextlib.nullcontext(), own_conv3x3()):
            with way:
                launched = launches().launched(partial(run, cell.train(training), x, path))
            for launch in launched:
                found[launch.kernel] = max(found.get(launch.kernel, launch), launch, key=lambda each: each.shared)
    return found


def run(cell: OnePathCell, x: torch.Tensor, path: Path) -> None:
    cell(x, path).sum().backward()


def launch_of(kernel: Kernel, channels: int) -> tuple[int, int]:
    """Threads and dynamic shared memory of a block, on images with so many channels, or one more where packs have one element."""
    if kernel.file in ("gate", "recurrent"):  # over one dimension, with static shared memory only
        return BLOCK, 0
    dtype = getattr(torch, kernel.type or "float32")
    launch = cell_launches(channels + (kernel.pack == 1), dtype)[kernel.launched_as]
    return launch.block, launch.shared


def occupancy(kernel: Kernel, resources: Resources, target: int, channels: int) -> float:
    block, shared = launch_of(kernel, channels)
    return LIMITS[target].occupancy(block, resources.registers, resources.shared + shared)


def sheet(found: Found) -> Sheet:
    names = " / ".join(gpu.name for gpu in GPUS)
    columns = (f"registers: {names}", "all targets", "static", "dynamic", f"occupancy, %: {names}")
    table = Sheet("Resources of every kernel", ("kernel", "type", "pack", *columns), 2)
    for kernel, by_target in sorted(found.items(), key=lambda item: _order(item[0])):
        registers = [resources.registers for resources in by_target.values()]
        at = list(filter(kernel.runs_at, CHANNELS))
        dynamic = [launch_of(kernel, channels)[1] for channels in at]
        worst = [min(occupancy(kernel, by_target[gpu.target], gpu.target, channels) for channels in at) for gpu in GPUS]
        table.rows.append(
            [
                kernel.label,
                kernel.type,
                str(kernel.pack or ""),
                " / ".join(str(by_target[gpu.target].registers) for gpu in GPUS),
                f"{min(registers)} - {max(registers)}",
                str(max(resources.shared for resources in by_target.values())),
                " / ".join(map(str, dynamic)) if dynamic[-1] else "0",
                " / ".join(f"{100 * part:.0f}" for part in worst),
            ]
        )
    return table


def _order(kernel: Kernel) -> tuple[str, int, int]:
    types = list(NAMES.values())
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
        f"C = {' / '.join(map(str, CHANNELS))} (pack 1: one channel more) where it runs, as the shim writes it down; "
        "node_backward with "
        "3 sources and 3 convolutions, the most of a one-path cell. Occupancy: the part of an SM's warps that can run at "
        "once, by the limits in benchmarks/cuda/gpus.py, at the worst of these C; it says nothing of whether the grid is large "
        "enough."
    )


@dataclass
class Settings:
    out: FilePath = RESULTS
    """Folder of the table."""


def main(settings: Settings) -> None:
    setup = setup_module()
    nvcc = setup.find_nvcc()
    if nvcc is None:
        raise SystemExit(
            "cuda/kernels.py: nvcc was not found: install the CUDA toolkit and set CUDA_HOME to its folder"
        )
    found = kernels_of(nvcc, setup.CUDA_TARGETS)
    page = Page()
    page.show(sheet(found))
    page.write(settings.out / "cuda-kernels.md", describe(found, version_of(nvcc), setup.CUDA_TARGETS))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
