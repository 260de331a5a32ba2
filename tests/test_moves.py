"""Runs that move, machines that differ: other folders, locales, file systems, many at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from advnas.cli import main
from advnas.data.images import Batches, Evaluation, load
from advnas.run import search as run
from advnas.run.folder import first_free
from advnas.tables import Table
from advnas.tasks.image import ImageSearchConfig

SHORT = [
    "--epochs",
    "2",
    "--steps-per-epoch",
    "2",
    "--valid-batches",
    "1",
    "--channels",
    "4",
    "--cells",
    "1",
    "--threads",
    "1",
]


def make_images(folder: Path, size: int = 8, count: int = 12) -> Path:
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number:02}.png")
    return folder


def advnas(*arguments, cwd=None, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "advnas", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """The folder of a search on images, stopped after an epoch, started with relative paths from another folder."""
    make_images(tmp_path / "there" / "images")
    monkeypatch.chdir(tmp_path / "there")
    config = ImageSearchConfig(
        data="images",
        epochs=2,
        steps_per_epoch=2,
        valid_batches=1,
        channels=4,
        cells=1,
        batch_size=4,
        threads=1,
        out=Path("run"),
    )

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.Search, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run.start(config)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "there" / "run"


def test_a_search_goes_on_from_another_working_directory(interrupted):
    assert main(["search", "--resume", str(interrupted)]) == 0
    assert Path(yaml.safe_load((interrupted / "config.yaml").read_text())["data"]).is_absolute()


def test_a_search_goes_on_after_its_data_moved(interrupted, tmp_path, capsys):
    moved = (interrupted.parent / "images").rename(tmp_path / "moved")
    assert main(["search", "--resume", str(interrupted)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["search", "--resume", str(interrupted), "--data", str(moved)]) == 0
    assert yaml.safe_load((interrupted / "config.yaml").read_text())["data"] == str(moved)


def test_other_data_is_noticed(interrupted, tmp_path, capsys):
    other = make_images(tmp_path / "other")
    Image.new("RGB", (8, 8)).save(other / "train" / "a" / "03.png")
    assert main(["search", "--resume", str(interrupted), "--data", str(other)]) == 2
    assert "made with other settings (content" in capsys.readouterr().err


def test_with_resume_there_is_no_other_flag(interrupted, capsys):
    assert main(["search", "--resume", str(interrupted), "--epochs", "5"]) == 2
    assert "leave the other flags out" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images")
    file = tmp_path / "settings.yaml"
    file.write_text("data: ~/images\nout: ~/runs/a\n")
    assert main(["search", "--config=~/settings.yaml", "--batch-size", "4", *SHORT]) == 0
    assert (tmp_path / "runs" / "a" / "result.json").exists()
    assert main(["search", "--data=~/images", "--out=~/runs/b", "--batch-size", "4", *SHORT]) == 0
    assert (tmp_path / "runs" / "b" / "result.json").exists()
    assert main(["retrain", "~/runs/b", "--epochs", "1", "--channels", "4", "--cells", "1", "--out=~/runs/c"]) == 0
    assert (tmp_path / "runs" / "c" / "retrain.json").exists()
    assert not (tmp_path / "~").exists()


def test_many_starts_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: first_free(tmp_path / "runs" / "digits"), range(128)))
    assert len(set(made)) == 128
    assert {path.name for path in made} == {"digits", *(f"digits-{number}" for number in range(2, 129))}


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://no_such_package.backend"},
        {"MPLBACKEND": "nonsense"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["a backend without its package", "no backend", "an ASCII locale"],
)
def test_other_environments(environment, tmp_path):
    folder = tmp_path / "Läufe ☃"
    done = advnas("search", *SHORT, "--batch-size", "16", "--out", folder, **environment)
    assert done.returncode == 0, done.stderr
    assert (folder / "result.json").exists()
    assert advnas("retrain", folder, "--epochs", "1", "--channels", "4", "--cells", "1", **environment).returncode == 0


def test_a_figure_that_fails_loses_no_result(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(run, "curves", broken)
    assert main(["search", *SHORT, "--batch-size", "16", "--out", str(tmp_path / "run")]) == 0
    assert "curves.png was not drawn: RuntimeError: no fonts" in capsys.readouterr().out
    assert {"result.json", "cell.svg"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_errors_of_the_operating_system_name_the_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["search", *SHORT, "--out", str(tmp_path / "file" / "run")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after"), [(b"\xef\xbb\xbf", b""), (b"", b"\n"), (b"", b"\r\n")], ids=["BOM", "blank", "CRLF"]
)
def test_tables_of_other_editors(tmp_path, before, after):
    from advnas.spaces import SPACES

    space = SPACES["nasbench201"]
    arch = space.format(torch.zeros(6, dtype=torch.int64))
    file = tmp_path / "table.csv"
    file.write_bytes(before + f"arch_str,{space.columns[0]}\n{arch},93.5\n".encode() + after)
    assert Table.load(file, space).lookup(arch) == {space.columns[0]: 93.5}


def test_images_lie_deep_and_have_many_formats(tmp_path):
    folder = make_images(tmp_path / "images", count=3)
    deep = folder / "train" / "a" / "more" / "of" / "them"
    deep.mkdir(parents=True)
    for suffix in ("gif", "tiff", "tif", "pgm"):
        Image.new("L", (8, 8)).save(deep / f"image.{suffix}")
    (deep / "notes.txt").write_text("not an image")
    (deep / ".hidden").write_text("nobody's business")
    with pytest.warns(UserWarning, match=r"1 files are left out, since they are not .*\.txt, such as .*notes\.txt"):
        data = load(str(folder))
    assert torch.bincount(data.train.labels).tolist() == [7, 3]


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (8, [4, 4]), (10, [4, 4, 2]), (1, [1]), (5, [5]), (4, [4])])
def test_no_last_batch_of_one_image(tmp_path, count, sizes):
    data = load("digits")
    index = torch.arange(count)
    batches = Batches(data, index, 4, generator=torch.Generator().manual_seed(0))
    assert [len(y) for _, y in batches] == sizes
    assert len(batches) == len(sizes)
    assert [len(y) for _, y in Evaluation(data, data.test, index, 4)(99)] == sizes


def test_a_search_on_images_of_one_pixel_at_the_end(tmp_path):
    """4x4 pixels, halved twice: batch norm of a single such image would have one value."""
    folder = make_images(tmp_path / "images", size=4, count=9)
    flags = ["--epochs", "2", "--valid-batches", "9", "--channels", "4", "--cells", "1", "--batch-size", "8"]
    assert main(["search", "--data", str(folder), *flags, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("command", [["--help"], ["search", "--help"], ["info"]], ids=" ".join)
def test_a_reader_that_has_seen_enough(command):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "advnas", *command],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.stderr == ""
