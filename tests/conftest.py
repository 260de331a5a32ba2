"""Shared by all tests: the tolerance table, and where the data that the project does not carry lies."""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

# Relative to the largest entry of the expected tensor.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}


T = TypeVar("T")
FULL = os.environ.get("ADVNAS_FULL") == "1"


def rotation(items: Sequence[T], share: int) -> list[T]:
    """Every ``share``-th of what is slow, others from day to day; all of it with ADVNAS_FULL=1, as in ``make test-full``."""
    if FULL:
        return list(items)
    today = datetime.datetime.now(datetime.timezone.utc).date().toordinal()
    return list(items[today % min(share, len(items)) :: share])


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    what: str = "",
    *,
    dtype: torch.dtype | None = None,
    at_least: float = 1e-3,
) -> None:
    """Equal within the tolerance of ``dtype`` (default: that of ``actual``).

    The tolerance is relative to the largest entry of ``expected``, or to ``at_least`` where that is larger.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    scale = expected.abs().max().item() if expected.numel() else 0.0
    tolerance = TOLERANCE[dtype or actual.dtype] * max(scale, at_least)
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


@pytest.fixture
def close():
    return assert_close


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with CIFAR-10, Penn Treebank and the NAS-Bench-201 table."""
    folder = Path(os.environ.get("ADVNAS_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the data folder: {folder} does not exist; set ADVNAS_SHARED")
    return folder


@pytest.fixture
def advnas(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: exit code, standard output, standard error."""
    from advnas import cli

    def call(*args: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as end:  # of --help
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def jobs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of an experiment are made in this process, which spares each the imports; one at a time (``workers=1``)."""
    from benchmarks.paper.jobs import Job

    from advnas import cli

    def start(job: Job) -> None:
        assert cli.main(list(job.command)) == 0

    monkeypatch.setattr(Job, "start", start)


@pytest.fixture(autouse=True)
def kept_threads() -> Iterator[None]:
    """The number of threads is afterwards what it was: with more of them than cores every later test would be slower."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def launches() -> Any:
    """Runs the passes for CUDA on the host and counts their launches; see benchmarks/cuda/shim.py."""
    from benchmarks.cuda import shim

    try:
        return shim.launches()
    except SystemExit as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def made_up_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NAS-Bench-201 table of every cell, with made-up accuracies."""
    from advnas.spaces.nasbench201 import NASBENCH201

    path = tmp_path_factory.mktemp("table") / "table.csv"
    cells = torch.cartesian_prod(*[torch.arange(len(NASBENCH201.ops))] * NASBENCH201.num_edges)
    columns = "cifar10_test_200,cifar100_test_200,imagenet16_120_test_200"
    rows = [f"{i},{NASBENCH201.format(ops)},{i / 200},{i / 300},{i / 400}" for i, ops in enumerate(cells)]
    path.write_text("\n".join([f"index,arch_str,{columns}", *rows]) + "\n")
    return path


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, int, int], None]:
    """Someone asks a training of some kind to stop, the first time that it is at an epoch and a step."""
    from advnas.run.watch import Watch

    def ask(kind: type, epoch: int, step: int) -> None:
        real, asked = Watch.after_step, False

        def after_step(watch: Watch) -> None:
            nonlocal asked
            state = watch.state
            if not asked and isinstance(state, kind) and (state.epoch, state.step) == (epoch, step):
                watch.stop = asked = True
            real(watch)

        monkeypatch.setattr(Watch, "after_step", after_step)

    return ask
