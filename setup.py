"""Builds advnas_ext._C with ninja: the CPU kernels for each instruction set, the CUDA kernels if wanted, then the rest.

torch's own BuildExtension has no flags for a single file; here each file has the flags of its folder, and only what
changed is built.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# The first set needs no flags, and every CPU of the architecture runs it; NEON is part of 64-bit ARM.
ISA_FLAGS = {"neon" if platform.machine() in ("aarch64", "arm64") else "baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS |= {"avx2": "-mavx2 -mfma", "avx512": "-mavx512f -mavx512bw -mavx512vl -mfma"}
CUDA_TARGETS = (75, 80, 86, 89, 90, 100, 120)  # what nvcc 13 compiles for
INFO = "_build.json"  # beside the extension: what advnas_ext checks at import and advnas_ext.info prints

RULES = """
warnings = -Wall -Wextra -Wno-psabi -Wno-unknown-pragmas
rule cxx
  command = {cxx} -MMD -MF $out.d -fPIC -std=c++20 -fvisibility=hidden $warnings $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CXX $out
rule nvcc
  command = {nvcc} -MD -MF $out.d -std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = NVCC $out
rule link
  command = {cxx} -shared $in -o $out $flags
  description = LINK $out
"""


def stop(message: str) -> None:
    sys.exit(f"advnas-ext: {message}")


def import_torch():
    try:
        import torch
    except ImportError:
        stop("torch is needed to build: pip install torch, then pip install --no-build-isolation .")
    return torch


def find_compiler() -> str:
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else [sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    for name in filter(None, wanted):
        if path := shutil.which(name.split()[0]):
            return path
    return stop(
        f"no C++ compiler was found (looked for {', '.join(filter(None, wanted))}): install g++, or name one in CXX"
    )


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else ["/usr/local/cuda/bin/nvcc", shutil.which("nvcc") or ""]
    return next((Path(nvcc).resolve() for nvcc in candidates if Path(nvcc).is_file()), None)


def cuda_nvcc(torch) -> Path | None:
    """nvcc if the extension is to be built for CUDA: where torch has CUDA. ADVNAS_CUDA=0 or 1 decides by hand."""
    choice, cuda, nvcc = os.environ.get("ADVNAS_CUDA", ""), torch.version.cuda, find_nvcc()
    if choice not in ("", "0", "1"):
        stop(
            f"ADVNAS_CUDA must be 0 or 1, got {choice!r}; unset it to build for CUDA where torch has CUDA and nvcc is found"
        )
    if choice == "0" or (choice == "" and cuda is None):
        return None
    if cuda is None:
        stop(
            f"ADVNAS_CUDA=1, but torch {torch.__version__} has no CUDA: install a CUDA build of torch, or unset ADVNAS_CUDA"
        )
    if nvcc is None:
        stop(
            f"torch {torch.__version__} has CUDA {cuda}, but nvcc was not found: install the CUDA toolkit and set "
            "CUDA_HOME to its folder, or set ADVNAS_CUDA=0 to build for the CPU only"
        )
    return nvcc


class Build(build_ext):
    def run(self) -> None:
        self.in_source = bool(self.inplace or self.editable_mode)  # setuptools clears inplace while it builds
        super().run()

    def build_extension(self, extension: Extension) -> None:
        torch = import_torch()
        cxx, nvcc = find_compiler(), cuda_nvcc(torch)
        # In place, ninja keeps its objects for the next build.
        folder = ROOT / "build" / f"torch-{torch.__version__}" if self.in_source else Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(self.ninja_file(torch, cxx, nvcc, folder))
        import ninja

        if subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", folder]).returncode != 0:
            stop(f"compiling with {cxx} failed; its message is above")
        info = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda if nvcc else None,
            "cuda_targets": [f"sm_{t}" for t in CUDA_TARGETS] if nvcc else [],
            "compiler": subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout.split("\n")[0],
            "machine": platform.machine(),
        }
        # A process that runs the old extension keeps its file: replace, never overwrite.
        for name, content in (
            (target, (folder / "_C.so").read_bytes()),
            (target.parent / INFO, json.dumps(info).encode()),
        ):
            partial = name.with_name(name.name + ".partial")
            partial.write_bytes(content)
            partial.replace(name)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        self.copy_file(str(Path(self.build_lib, "advnas_ext", INFO)), str(ROOT / "python" / "advnas_ext" / INFO))

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, "advnas_ext", INFO))]

    def ninja_file(self, torch, cxx: str, nvcc: Path | None, folder: Path) -> str:
        from torch.utils.cpp_extension import include_paths, library_paths

        csrc, lines = ROOT / "csrc", [RULES.format(cxx=cxx, nvcc=nvcc)]
        objects: list[str] = []

        def add(rule: str, source: Path, flags: str, variant: str = "") -> None:
            objects.append(f"{source.relative_to(csrc if csrc in source.parents else ROOT)}.{variant}o")
            lines.append(f"build {objects[-1]}: {rule} {source}\n  flags = {flags}")

        for source in sorted((csrc / "kernels" / "cpu").glob("*.cpp")):
            if source.stem == "isa":
                add("cxx", source, "-O2")
                continue
            for isa, flags in ISA_FLAGS.items():
                # Some zeros at a frame's border are better stored than given to memset.
                add("cxx", source, f"-O3 -fno-tree-loop-distribute-patterns -DADVNAS_ISA={isa} {flags}", f"{isa}.")
        include = [*include_paths("cpu"), sysconfig.get_path("include")]
        if nvcc:  # of the toolkit, or of the packages that torch brings
            include += [nvcc.parents[1] / "include", *Path(torch.__file__).parents[1].glob("nvidia/cu*/include")]
        includes = [f"-isystem {p}" for p in include]
        # OpenMP for at::parallel_for. Neither it nor the CUDA runtime is linked: the symbols are those that torch has loaded.
        flags = f"-O2 -fopenmp -DTORCH_EXTENSION_NAME=_C {'-DADVNAS_CUDA' if nvcc else ''} {' '.join(includes)}"
        kernels = sorted((csrc / "kernels" / "cuda").glob("*.cu"))
        libraries = ["c10", "torch", "torch_cpu", "torch_python"]
        paths = " ".join(f"-L{p}" for p in library_paths("cpu"))
        link = "build {}: link {}\n  flags = " + f"{paths} {' '.join(f'-l{name}' for name in libraries)}"

        # For tests: the passes for CUDA on the host, their kernels on the shim. Only `ninja shim.so` builds it.
        common, objects = objects, []
        host = f"-O2 -DADVNAS_SHIM -I{ROOT / 'tests' / 'cuda_shim'}"
        for source in (*kernels, ROOT / "tests" / "cuda_shim" / "shim.cpp"):
            add("cxx", source, f"{host} -x c++", "shim.")
        shared = [*sorted(csrc.glob("*.cpp")), *sorted((csrc / "cpu").glob("*.cpp"))]
        own = [source for source in shared if source != csrc / "gate.cpp"]  # registers operators
        for source in (*own, *sorted((csrc / "cuda").glob("*.cpp"))):
            add("cxx", source, f"{host} {flags}", "shim.")
        lines.append(link.format("shim.so", " ".join([*common, *objects])))

        objects = common
        for source in shared:
            add("cxx", source, flags)
        if nvcc:
            targets = [f"-gencode arch=compute_{t},code=sm_{t}" for t in CUDA_TARGETS]
            targets.append(f"-gencode arch=compute_{CUDA_TARGETS[-1]},code=compute_{CUDA_TARGETS[-1]}")
            for source in sorted((csrc / "cuda").glob("*.cpp")):
                add("cxx", source, flags)
            for source in kernels:
                add("nvcc", source, " ".join(targets))
            link += " -lc10_cuda -ltorch_cuda"
        lines.append(link.format("_C.so", " ".join(objects)))
        return "\n".join(lines) + "\ndefault _C.so\n"


if __name__ == "__main__":
    setup(ext_modules=[Extension("advnas_ext._C", [])], cmdclass={"build_ext": Build})
