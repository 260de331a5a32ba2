"""Peak memory of a function's process, which is its own: as a script it calls the function that a JSON request names.

It imports no more than the function needs, so that the peak is the function's.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path as FilePath

import torch

ROOT = FilePath(__file__).parents[2]


def peak_mib() -> float:
    """The largest resident memory of this process so far.

    On Linux from /proc: ``ru_maxrss`` of a fresh process starts at the size of the process that started it.
    """
    status = FilePath("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_own_process(module: str, function: str | None, threads: int, **arguments: object) -> float:
    """Peak MiB of a process that calls a function of a module with ``arguments`` that JSON knows; None: that only imports it."""
    command = [sys.executable, "-m", "benchmarks.steps.peak", json.dumps([module, function, threads, arguments])]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT).stdout
    return float(printed.split()[-1])  # imports may print too


def main(module: str, function: str | None, threads: int, arguments: dict) -> None:
    torch.set_num_threads(threads)
    imported = importlib.import_module(module)
    if function is not None:
        getattr(imported, function)(**arguments)
    print(peak_mib())


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
