"""How quickly a table is opened and asked: ``python -m benchmarks.steps.tables FILE.parquet`` (made by ``advnas table convert``).

Times are processor times, the best of five; memory is what the process has more than before, pyarrow's libraries included in the
first.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def memory() -> float:
    """Resident memory of this process, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def best(call: Callable[[], Any], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main(path: Path) -> None:
    import torch  # noqa: F401, what advnas has anyway

    before = memory()
    from advnas.tables import Table, open_benchmark
    from advnas.tables.parquet import metadata, opened

    imported = memory()
    start = time.process_time()
    table = Table.load(path)
    first, loaded = time.process_time() - start, memory()
    print(f"memory of the imports           {imported - before:8.0f} MB")
    print(f"Table.load, first               {first:8.3f} s, {loaded - imported:.0f} MB")
    print(f"Table.load                      {best(lambda: Table.load(path)):8.3f} s")
    draw = random.Random(0)
    archs = draw.choices(list(table.rows), k=100_000)
    numbers = [str(number) for number in draw.choices(list(table.index), k=100_000)]
    for what, cells in (("string", archs), ("number", numbers)):
        seconds = best(lambda cells=cells: [table.lookup(cell) for cell in cells])
        print(f"Table.lookup by {what}          {len(cells) / seconds:8,.0f} a second")
    if not metadata(opened(path), path)["hps"]:
        return
    before = memory()
    start = time.process_time()
    benchmark = open_benchmark(path)
    first, loaded = time.process_time() - start, memory()
    print(f"open_benchmark, first           {first:8.3f} s, {loaded - before:.0f} MB")
    print(f"open_benchmark                  {best(lambda: open_benchmark(path)):8.3f} s")
    hp, ask = benchmark.hps[-1], benchmark.get_more_info
    start = time.process_time()
    benchmark.get_more_info(0, "cifar10", hp=hp)
    print(f"get_more_info, first            {time.process_time() - start:8.3f} s, {memory() - loaded:.0f} MB")
    for what, cells in (("string", archs), ("number", [int(number) for number in numbers])):
        for how, option in (("drawn", True), ("mean", False)):
            seconds = best(
                lambda cells=cells, option=option: [ask(cell, "cifar10", None, hp, option) for cell in cells]
            )
            print(f"get_more_info by {what}, {how:5}  {len(cells) / seconds:8,.0f} a second")
    print(f"find_best                       {best(lambda: benchmark.find_best('cifar10', 'test', hp=hp)):8.3f} s")
    few = draw.choices(range(len(benchmark)), k=20)
    seconds = best(lambda: [benchmark.get_more_info(cell, "cifar100", draw.randrange(int(hp)), hp) for cell in few])
    print(f"get_more_info of any epoch      {len(few) / seconds:8,.0f} a second")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.steps.tables FILE.parquet")
    main(Path(sys.argv[1]))
