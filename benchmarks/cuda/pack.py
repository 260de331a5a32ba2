"""One archive for a GPU machine without network: the tree of git's HEAD, and the wheels that such a machine may lack.

It is expected to have Python 3.12, a CUDA build of PyTorch with its toolkit and a C++ compiler, ninja, numpy, scipy, scikit-learn,
tensorboard, matplotlib, pillow, pyarrow, rich, PyYAML, py-cpuinfo, pytest and hypothesis. Unpack the archive there and run
benchmarks/cuda/quarter_hour.sh in it.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path as FilePath

import tyro

from benchmarks.sheet import ROOT

PYTHON = "3.12"
# setuptools: ours asks for a recent one. xautodl: the peer; what it asks for is never imported.
WHEELS = (
    *("tyro", "docstring-parser", "typeguard", "typing-extensions"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("setuptools", "xautodl"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
FOLDER = "advnas-ext"
LIMIT = 40 << 20  # bytes


def download(folder: FilePath) -> None:
    """The wheels, in the versions that are installed here.

    Raises:
        SystemExit: one cannot be had.
    """
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    where = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON, *where]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    if subprocess.run([*command, "--dest", str(folder), *wanted]).returncode != 0:
        raise SystemExit(f"cuda/pack.py: pip did not download wheels for Python {PYTHON}: {' '.join(wanted)}")


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def foreign(wheel: str) -> bool:
    """Whether a wheel is for another Python than ``PYTHON``."""
    pythons, abi, _ = wheel.removesuffix(".whl").split("-")[-3:]
    return not (abi == "none" and "py3" in pythons.split(".")) and pythons != f"cp{PYTHON.replace('.', '')}"


def make(archive: FilePath, wheels: FilePath, limit: int = LIMIT) -> list[tuple[str, int]]:
    """Write the archive; returns what is in it, names and bytes.

    Raises:
        SystemExit: it is larger than ``limit`` bytes, or a wheel is for another Python.
    """
    found = sorted(wheels.glob("*.whl"))
    wrong = [wheel.name for wheel in found if foreign(wheel.name)]
    if wrong:
        raise SystemExit(f"cuda/pack.py: wheels must be for Python {PYTHON}, got {', '.join(wrong)}")
    tree = git("archive", f"--prefix={FOLDER}/", "HEAD")
    archive.parent.mkdir(parents=True, exist_ok=True)
    commit = git("rev-parse", "HEAD")
    with tarfile.open(archive, "w:gz") as out:
        with tarfile.open(fileobj=io.BytesIO(tree)) as source:
            for member in source.getmembers():
                out.addfile(member, source.extractfile(member) if member.isfile() else None)
        said = tarfile.TarInfo(f"{FOLDER}/COMMIT")
        said.size = len(commit)
        out.addfile(said, io.BytesIO(commit))
        for wheel in found:
            out.add(wheel, f"{FOLDER}/wheels/{wheel.name}")
        contents = [(member.name, member.size) for member in out.getmembers() if member.isfile()]
    size = archive.stat().st_size
    if size > limit:
        archive.unlink()
        raise SystemExit(f"cuda/pack.py: the archive must have at most {limit} bytes, got {size}: leave a wheel out")
    return contents


def summary(contents: list[tuple[str, int]]) -> str:
    """A line for each wheel, and one for each folder of the tree."""
    sizes: dict[str, list[int]] = {}
    for name, size in contents:
        parts = name.split("/")[1:]
        label = "files of the root" if len(parts) == 1 else "/".join(parts) if parts[0] == "wheels" else parts[0]
        sizes.setdefault(label, []).append(size)
    return "\n".join(f"{sum(each) / 1024:9.0f} KiB  {len(each):4d}  {name}" for name, each in sizes.items())


@dataclass
class Settings:
    archive: FilePath = ROOT / "build" / "advnas-gpu-pack.tar.gz"
    """File to write."""


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        download(FilePath(folder))
        contents = make(settings.archive, FilePath(folder))
    print(summary(contents))
    print(f"{settings.archive}: {settings.archive.stat().st_size / 2**20:.1f} MiB")
    if git("status", "--porcelain"):
        print("the tree is that of the last commit; what is not committed is not in it")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
