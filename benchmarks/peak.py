"""Peak memory of one side in a process of its own: run as a script with a JSON request, it prints MiB.

It imports no more than a step needs, so that the peak is the side's.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path as FilePath

import sides
import torch
from torch import Tensor
from work import Case


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


def in_own_process(side: str | None, to_gates: bool, case: Case, paths: Tensor, threads: int) -> float:
    """Peak MiB of a process that takes a step of ``side`` on each path; None: that only imports."""
    request = {"side": side, "to_gates": to_gates, "case": asdict(case), "paths": paths.tolist(), "threads": threads}
    command = [sys.executable, __file__, json.dumps(request)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main(request: dict) -> None:
    torch.set_num_threads(request["threads"])
    if request["side"] is not None:
        case = Case(**request["case"])
        side = sides.make_side(request["side"], *sides.make_network(case), case)
        for ops in request["paths"]:
            side.seconds(torch.tensor(ops), request["to_gates"])
    print(peak_mib())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
