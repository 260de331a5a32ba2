"""Installation as users do it, and what they read when something is missing."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import rotation
from packaging.requirements import Requirement

from advnas import cli
from advnas.__main__ import main
from advnas_ext import _C, _load, info

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup_py():
    spec = importlib.util.spec_from_file_location("advnas_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_ext(tmp_path, **environment):
    """What `python setup.py build_ext` prints on stderr at the end; the build is expected to stop."""
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-temp",
        tmp_path / "temp",
        "--build-lib",
        tmp_path / "lib",
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.strip().split("\n")[-1]


def test_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    assert build_ext(tmp_path, PYTHONPATH=str(tmp_path)) == (
        "advnas-ext: torch is needed to build: pip install torch, then pip install --no-build-isolation ."
    )


def test_without_a_compiler(tmp_path):
    assert build_ext(tmp_path, CXX="/nowhere/g++") == (
        "advnas-ext: no C++ compiler was found (looked for /nowhere/g++): install g++, or name one in CXX"
    )


CUDA_TORCH = SimpleNamespace(__version__="2.14.1", version=SimpleNamespace(cuda="13.0"))
CPU_TORCH = SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=None))


NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_100\\n' ;;
esac
"""


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A folder that CUDA_HOME names, with an nvcc in it."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("ADVNAS_CUDA", raising=False)
    return nvcc.resolve()


def test_cuda_exactly_where_torch_has_it(setup_py, toolkit, monkeypatch):
    assert setup_py.cuda_nvcc(CUDA_TORCH) == toolkit
    assert setup_py.cuda_nvcc(CPU_TORCH) is None
    monkeypatch.setenv("ADVNAS_CUDA", "0")
    assert setup_py.cuda_nvcc(CUDA_TORCH) is None
    monkeypatch.setenv("ADVNAS_CUDA", "1")
    assert setup_py.cuda_nvcc(CUDA_TORCH) == toolkit


@pytest.mark.parametrize(
    "fake, choice, text",
    [
        (CUDA_TORCH, "", "torch 2.14.1 has CUDA 13.0, but nvcc was not found: install the CUDA toolkit"),
        (CUDA_TORCH, "1", "nvcc was not found"),
        (
            CPU_TORCH,
            "1",
            "ADVNAS_CUDA=1, but torch 2.13.0 has no CUDA: install a CUDA build of torch, or unset ADVNAS_CUDA",
        ),
        (CPU_TORCH, "yes", "ADVNAS_CUDA must be 0 or 1, got 'yes'"),
    ],
)
def test_cuda_that_cannot_be_built(setup_py, toolkit, monkeypatch, fake, choice, text):
    toolkit.unlink()
    monkeypatch.setenv("ADVNAS_CUDA", choice)
    with pytest.raises(SystemExit, match=text):
        setup_py.cuda_nvcc(fake)


def test_a_toolkit_of_another_version_than_torchs(setup_py, toolkit):
    toolkit.write_text(NVCC.replace("13.0", "12.4"))
    with pytest.raises(SystemExit, match=r"nvcc is of CUDA 12\.4, but torch 2\.14\.1 has CUDA 13\.0: set CUDA_HOME"):
        setup_py.cuda_nvcc(CUDA_TORCH)


def test_targets_are_those_that_nvcc_knows(setup_py, toolkit, monkeypatch):
    assert setup_py.cuda_targets(toolkit) == [
        *(f"-gencode arch=compute_{target},code=sm_{target}" for target in (75, 80, 90, 100)),
        "-gencode arch=compute_100,code=compute_100",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    assert setup_py.cuda_targets(toolkit) == [
        "-gencode arch=compute_80,code=sm_80",
        "-gencode arch=compute_90,code=sm_90",
        "-gencode arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 12.0")
    with pytest.raises(
        SystemExit, match=r"TORCH_CUDA_ARCH_LIST: .*nvcc \(CUDA 13\.0\) does not compile for 12\.0; it does for 7\.5"
    ):
        setup_py.cuda_targets(toolkit)


def test_the_compiler_may_have_arguments(setup_py, tmp_path, monkeypatch):
    ccache = tmp_path / "ccache"
    ccache.write_text('#!/bin/sh\nexec "$@"\n')
    ccache.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{ccache}' g++ -DNAME='a b'")
    monkeypatch.setenv("CXXFLAGS", "-g -DPRICE='$5'")
    monkeypatch.setenv("LDFLAGS", "-Wl,-z,now")
    cxx = setup_py.find_compiler()
    assert cxx == [str(ccache), "g++", "-DNAME=a b"]
    written = setup_py.ninja_file(torch, cxx, None)
    assert f"command = {ccache} g++ '-DNAME=a b' -MMD" in written
    assert "$flags -g '-DPRICE=$$5' -c $in" in written
    assert "$flags -Wl,-z,now\n" in written


def test_clang_gets_no_flag_of_gcc(setup_py, tmp_path):
    clang = tmp_path / "clang++"
    clang.write_text("#!/bin/sh\necho 'Debian clang version 14.0.6'\n")
    clang.chmod(0o755)
    written = setup_py.ninja_file(torch, [str(clang)], None)
    assert "-fno-tree-loop-distribute-patterns" not in written
    assert "-fno-tree-loop-distribute-patterns" in setup_py.ninja_file(torch, setup_py.find_compiler(), None)


def test_any_ninja_will_do(setup_py, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="ninja is needed to build: pip install ninja"):
        setup_py.find_ninja()
    (tmp_path / "ninja").touch(mode=0o755)
    assert setup_py.find_ninja() == str(tmp_path / "ninja")


def test_an_old_setuptools_is_named(tmp_path):
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").write_text("__version__ = '65.5.0'\nExtension = setup = None\n")
    (tmp_path / "setuptools" / "command").mkdir()
    (tmp_path / "setuptools" / "command" / "__init__.py").touch()
    (tmp_path / "setuptools" / "command" / "build_ext.py").write_text("build_ext = object\n")
    assert build_ext(tmp_path, PYTHONPATH=str(tmp_path)) == (
        'advnas-ext: setuptools 77 or later is needed, got 65.5.0: pip install --upgrade "setuptools>=77" ninja'
    )


def test_no_openmp_of_the_compilers_own_is_linked():
    """torch's is used by its name, whatever the compiler: see csrc/cpu/parallel.h."""
    nm, readelf = shutil.which("nm"), shutil.which("readelf")
    if sys.platform != "linux" or nm is None or readelf is None:
        pytest.skip("needs Linux and binutils")
    linked = subprocess.run([readelf, "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    assert "omp" not in linked
    names = subprocess.run([nm, "-D", "-u", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\b(?:GOMP|omp|__kmpc)_\w+", names)
    assert sorted(needed) == ["GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num"]


def test_another_torch_is_named_at_import():
    _load.check("2.13.0+cpu", "2.13.0+cu130")
    with pytest.raises(ImportError, match=r"was built for torch 2\.13\.0, but torch 2\.14\.1 is installed; rebuild it"):
        _load.check("2.13.0", "2.14.1")


def test_info_names_what_was_built():
    report = info.report()
    for fact in (torch.__version__, "instruction set", "compiled:", "CUDA kernels", "threads"):
        assert fact in report


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    [archive] = out.glob("*.tar.gz")
    return archive


def test_sdist_holds_every_source(sdist):
    tracked = subprocess.run(["git", "ls-files", "csrc", "python"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert set(tracked.stdout.split()) <= inside


def used_from(python, folder, **environment):
    """Where advnas_ext was imported from, after a step with it."""
    program = (
        "import advnas.adapters, advnas_ext, torch;"
        "path = advnas_ext.Path.from_ops([3, 1, 2, 4, 2, 3]);"
        "advnas_ext.OnePathCell(8)(torch.randn(2, 8, 6, 6), path).square().sum().backward();"
        "assert path.gates.grad.isfinite().all();"
        "print(advnas_ext.__file__)"
    )
    done = subprocess.run(
        [python, "-c", program], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    True not in rotation((True, False, False), 3), reason="builds everything again: every third day, and make test-full"
)
def test_installed_from_the_sdist_it_works_elsewhere(sdist, tmp_path):
    """Built where paths have a space, a dollar sign and a colon."""
    target = tmp_path / "site $packages"
    building = tmp_path / "a b $c:d"
    building.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--quiet",
        "--target",
        target,
        sdist,
    ]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"TMPDIR": str(building)})
    assert used_from(sys.executable, tmp_path, PYTHONPATH=str(target)).startswith(str(target))


def needed_by(name):
    """Distributions that a distribution needs here, by name, itself included."""
    found, left = {}, [name]
    while left:
        distribution = metadata.distribution(left.pop())
        if distribution.name not in found:
            found[distribution.name] = distribution
            wanted = [Requirement(text) for text in distribution.requires or ()]
            left += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def with_torch_alone(tmp_path_factory):
    """The Python of a fresh environment that has, by links, torch and what torch needs, and in it what `make wheel` made."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = sorted(ROOT.glob(f"dist/*-{tag}-*.whl"), key=os.path.getmtime)
    if not wheels:
        pytest.skip("needs make wheel")
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder)
    [site] = folder.glob("lib/*/site-packages")
    for distribution in needed_by("torch"):
        tops = {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            (site / top).symlink_to(distribution.locate_file(top))
    python = folder / "bin" / "python"
    # With --no-index pip installs only what needs nothing more than is there.
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheels[-1]]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(python=python, site=site, wheel=wheels[-1])


def test_the_wheel_brings_no_library_of_torch(with_torch_alone):
    with zipfile.ZipFile(with_torch_alone.wheel) as wheel:
        assert not [name for name in wheel.namelist() if re.search(r"lib(torch|c10|gomp|omp|iomp)", name)]


def test_the_wheel_works_beside_torch_alone(with_torch_alone, tmp_path):
    assert used_from(with_torch_alone.python, tmp_path, PYTHONPATH="").startswith(str(with_torch_alone.site))


@pytest.mark.parametrize("command", [["python", "-m", "advnas"], ["advnas", "search"]], ids=" ".join)
def test_the_command_line_without_its_extra(with_torch_alone, tmp_path, command):
    done = subprocess.run(
        [with_torch_alone.python.with_name(command[0]), *command[1:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r'advnas: \w+ is not installed; pip install "advnas-ext\[search\]" brings what the commands need\n', done.stderr
    )


def test_an_import_of_ours_that_fails_is_no_missing_package(monkeypatch):
    def fails():
        raise ModuleNotFoundError("No module named 'advnas.nothing'", name="advnas.nothing")

    monkeypatch.setattr(cli, "main", fails)
    with pytest.raises(ModuleNotFoundError, match=r"advnas\.nothing"):
        main()
