"""Where the time of a weight step and of an architecture step goes on a GPU, kernel by kernel: torch's profiler.

With --once it takes the two steps between the marks that ncu starts and stops at, and prints nothing.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
import tyro
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.cuda.machines import Cuda, Host, Machine
from benchmarks.cuda.own import is_on
from benchmarks.cuda.predict import CONVOLUTIONS, PROFILED, PROFILED_CASE, read_kernels
from benchmarks.cuda.smallest import device_of
from benchmarks.sheet import Page, Sheet
from benchmarks.steps import sides
from benchmarks.steps.sides import STEPS
from benchmarks.steps.work import Case

LARGEST = 5
TURNS = 5

Kernels = dict[str, list[float]]  # microseconds of each launch, by name


@dataclass
class Settings:
    channels: int = 16
    cells: int = 5
    batch_size: int = 64
    image_size: int = 32
    dtype: str = "float32"
    once: bool = False
    """Take the steps, for another profiler."""
    largest: FilePath | None = None
    """File to write the names of the kernels that take the most time to, as ncu takes them: a|b|c."""
    dry: bool = False
    """On the host: operators in place of kernels, and a small network."""

    def case(self) -> Case:
        if self.dry:
            return Case(4, 1, 2, 8)
        return Case(self.channels, self.cells, self.batch_size, self.image_size)


def make_step(settings: Settings, device: str) -> Callable[[bool], object]:
    """An architecture step or not, warmed up."""
    network, batch = sides.make_network(settings.case())
    dtype = getattr(torch, settings.dtype)
    network = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = sides.Ours(network, batch.to(dtype, device))
    for _ in range(3):
        for to_gates in STEPS:
            ours.step(PROFILED, to_gates)
    return lambda to_gates: ours.step(PROFILED, to_gates)


def kernels_of(step: Callable[[], object], dry: bool) -> Kernels:
    """What one step launches; on the host the operators that it calls."""
    activities = [ProfilerActivity.CPU] if dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        step()
        if not dry:
            torch.cuda.synchronize()
    wanted = DeviceType.CPU if dry else DeviceType.CUDA
    found: Kernels = defaultdict(list)
    for event in profiler.events() or []:
        if event.device_type == wanted:
            found[base_name(event.name)].append(event.time_range.elapsed_us())
    return found


def base_name(kernel: str) -> str:
    """Without its return type, namespaces, template arguments and parameters, as ncu names it."""
    name = kernel.removeprefix("void ")
    while (shorter := re.sub(r"<[^<>]*>|\([^()]*\)", "", name)) != name:
        name = shorter
    return name.split("::")[-1].strip() or kernel


def sheet(found: Kernels, whole_ms: float, title: str, megabytes: Mapping[str, float]) -> Sheet:
    """``megabytes``: of our own kernels, those that the model counts; empty where it knows none."""
    busy = sum(map(sum, found.values()))
    part = f"kernels {busy / 1e3:.2f} ms of {whole_ms:.2f} ms between two events: {busy / 1e1 / whole_ms:.0f} %"
    table = Sheet(f"{title}: {part}", ("kernel", "launches", "us", "us a launch", "part", "MB", "GB/s"))
    for name, us in sorted(found.items(), key=lambda item: -sum(item[1])):
        numbers = (f"{sum(us):.0f}", f"{statistics.mean(us):.1f}", f"{100 * sum(us) / busy:.1f} %")
        moved = megabytes.get(name)
        speed = ["", ""] if moved is None else [f"{moved:.0f}", f"{1e3 * moved / sum(us):.0f}"]
        table.rows.append([name[:70], str(len(us)), *numbers, *speed])
    return table


def main(settings: Settings) -> None:
    with device_of(settings.dry) as device:
        step = make_step(settings, device)
        if settings.once:
            take_once(step, settings.dry)
            return
        machine: Machine = Host() if settings.dry else Cuda()
        page, together = Page(), Kernels()
        page.console.print(
            f"{machine.name}, {settings.case()}, {settings.dtype}, path {PROFILED.tolist()}, "
            f"3x3 convolutions: {CONVOLUTIONS[is_on()]}",
            markup=False,
        )
        for to_gates, name in STEPS.items():
            whole = 1e3 * statistics.median(machine.clock(lambda: step(to_gates)) for _ in range(TURNS))  # noqa: B023
            found = kernels_of(lambda: step(to_gates), settings.dry)  # noqa: B023
            is_known = settings.case() == PROFILED_CASE and settings.dtype in ("float32", "bfloat16")
            megabytes = read_kernels(settings.dtype, to_gates, is_on()) if is_known else {}
            page.show(sheet(found, whole, f"{name} step", megabytes))
            for kernel, us in found.items():
                together.setdefault(kernel, []).extend(us)
        if settings.largest is not None:
            names = sorted(together, key=lambda name: -sum(together[name]))
            settings.largest.write_text("|".join([name for name in names if not name.startswith("Mem")][:LARGEST]))


def take_once(step: Callable[[bool], object], dry: bool) -> None:
    if not dry:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for to_gates in STEPS:
        step(to_gates)
    if not dry:
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
