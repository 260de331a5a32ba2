"""Builds advnas_ext._C with ninja: the CPU kernels for each instruction set, the CUDA kernels if wanted, then the rest.

torch's own BuildExtension has no flags for a single file; here each file has the flags of its folder, and only what
changed is built.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
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
  command = {cxx} -MMD -MF $out.d -fPIC -std=c++20 -fvisibility=hidden $warnings $flags {cxxflags} -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CXX $out
rule nvcc
  command = {nvcc} -MD -MF $out.d -std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = NVCC $out
rule link
  command = {cxx} -shared $in -o $out $flags {ldflags}
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


def find_compiler() -> list[str]:
    """The command of the compiler, with the arguments that CXX has."""
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else [sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    for command in filter(None, wanted):
        name, *arguments = shlex.split(command)
        if path := shutil.which(name):
            return [path, *arguments]
    return stop(
        f"no C++ compiler was found (looked for {', '.join(filter(None, wanted))}): install g++, or name one in CXX"
    )


def version_of(cxx: list[str]) -> str:
    return subprocess.run([*cxx, "--version"], capture_output=True, text=True).stdout.split("\n")[0]


def find_ninja() -> str:
    """That of the package, else any."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja") or stop("ninja is needed to build: pip install ninja")
    return str(Path(ninja.BIN_DIR, "ninja"))


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
    version, major = version_of_nvcc(nvcc), cuda.split(".")[0]
    if version.split(".")[0] != major:
        stop(
            f"{nvcc} is of CUDA {version}, but torch {torch.__version__} has CUDA {cuda}: set CUDA_HOME to the folder of a "
            f"toolkit {major}.x, or set ADVNAS_CUDA=0 to build for the CPU only"
        )
    return nvcc


def version_of_nvcc(nvcc: Path) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return (
        found[1] if found else stop(f"{nvcc} does not say its version; set CUDA_HOME to the folder of a CUDA toolkit")
    )


def cuda_targets(nvcc: Path) -> list[str]:
    """The options of nvcc: those of TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"), else all that it knows of ours, and the newest as PTX."""
    said = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = {int(target) for target in re.findall(r"sm_(\d+)$", said, re.MULTILINE)}
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not asked:
        targets = [target for target in CUDA_TARGETS if target in known]
        return [*map(sass, targets), ptx(targets[-1])]
    options = []
    for name in asked:
        number = name.removesuffix("+PTX").replace(".", "")
        if not number.isdecimal() or int(number) not in known:
            stop(
                f"TORCH_CUDA_ARCH_LIST: {nvcc} (CUDA {version_of_nvcc(nvcc)}) does not compile for {name}; it does for "
                f"{', '.join(f'{target / 10:.1f}' for target in sorted(known))}"
            )
        options += [sass(int(number)), *([ptx(int(number))] if name.endswith("+PTX") else [])]
    return options


def sass(target: int) -> str:
    return f"-gencode arch=compute_{target},code=sm_{target}"


def ptx(target: int) -> str:
    return f"-gencode arch=compute_{target},code=compute_{target}"


def quoted(words) -> str:
    """Words of a command, as ninja and then the shell read them."""
    return " ".join(shlex.quote(str(word)) for word in words).replace("$", "$$")


def listed(file: Path) -> str:
    """A path, as ninja reads it where it lists files."""
    return re.sub(r"([$ :])", r"$\1", str(file))


def objects_folder(torch) -> Path:
    """Where ninja keeps its objects, for whatever is built next from this source: in place, installed or as a wheel."""
    return ROOT / "build" / f"torch-{torch.__version__}-{sys.implementation.cache_tag}"


class Build(build_ext):
    def build_extension(self, extension: Extension) -> None:
        torch = import_torch()
        cxx, nvcc, ninja = find_compiler(), cuda_nvcc(torch), find_ninja()
        folder = objects_folder(torch)
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(torch, cxx, nvcc))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([ninja, *jobs, "-C", folder]).returncode != 0:
            stop(f"compiling with {shlex.join(cxx)}{f' and {nvcc}' if nvcc else ''} failed; the message is above")
        info = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda if nvcc else None,
            "cuda_targets": re.findall(r"code=(\w+)", " ".join(cuda_targets(nvcc))) if nvcc else [],
            "compiler": version_of(cxx),
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


def ninja_file(torch, cxx: list[str], nvcc: Path | None) -> str:
    """What is compiled how."""
    from torch.utils.cpp_extension import include_paths, library_paths

    environment = {name.lower(): quoted(shlex.split(os.environ.get(name, ""))) for name in ("CXXFLAGS", "LDFLAGS")}
    csrc, lines = ROOT / "csrc", [RULES.format(cxx=quoted(cxx), nvcc=quoted([nvcc]), **environment)]
    objects: list[str] = []

    def add(rule: str, source: Path, flags: str, variant: str = "") -> None:
        objects.append(f"{source.relative_to(csrc if csrc in source.parents else ROOT)}.{variant}o")
        lines.append(f"build {objects[-1]}: {rule} {listed(source)}\n  flags = {flags}")

    # Some zeros at a frame's border are better stored than given to memset.
    loops = "" if "clang" in version_of(cxx) else "-fno-tree-loop-distribute-patterns"
    for source in sorted((csrc / "kernels" / "cpu").glob("*.cpp")):
        if source.stem == "isa":
            add("cxx", source, "-O2")
            continue
        for isa, flags in ISA_FLAGS.items():
            add("cxx", source, f"-O3 {loops} -DADVNAS_ISA={isa} {flags}", f"{isa}.")
    include = [*include_paths("cpu"), sysconfig.get_path("include")]
    if nvcc:  # of the toolkit, or of the packages that torch brings
        include += [nvcc.parents[1] / "include", *Path(torch.__file__).parents[1].glob("nvidia/cu*/include")]
    # Neither OpenMP (csrc/cpu/parallel.h) nor the CUDA runtime is linked: the symbols are those that torch has loaded.
    defined = ["TORCH_EXTENSION_NAME=_C", f"_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    defined += ["ADVNAS_CUDA"] if nvcc else []
    flags = quoted(["-O2", *(f"-D{name}" for name in defined), *(word for p in include for word in ("-isystem", p))])
    kernels = sorted((csrc / "kernels" / "cuda").glob("*.cu"))
    libraries = ["c10", "torch", "torch_cpu", "torch_python"]
    link_words = [*(f"-L{p}" for p in library_paths("cpu")), *(f"-l{name}" for name in libraries)]
    link_words += ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []  # as Linux does unasked
    link = "build {}: link {}\n  flags = " + quoted(link_words)

    # What knows nothing of where the CUDA kernels run is compiled once for the extension and for the shim.
    shared = [*sorted(csrc.glob("*.cpp")), *sorted((csrc / "cpu").glob("*.cpp"))]
    of_device = [source for source in shared if '#include "device.h"' in source.read_text("utf-8")]
    for source in shared:
        if source not in of_device:
            add("cxx", source, flags)

    # For tests: the passes for CUDA on the host, their kernels on the shim. Only `ninja shim.so` builds it.
    common, objects = objects, []
    host = quoted(["-O2", "-DADVNAS_SHIM", f"-I{ROOT / 'tests' / 'cuda_shim'}"])
    for source in (*kernels, ROOT / "tests" / "cuda_shim" / "shim.cpp"):
        add("cxx", source, f"{host} -x c++", "shim.")
    own = [source for source in of_device if source != csrc / "gate.cpp"]  # registers operators
    for source in (*own, *sorted((csrc / "cuda").glob("*.cpp"))):
        add("cxx", source, f"{host} {flags}", "shim.")
    lines.append(link.format("shim.so", " ".join([*common, *objects])))

    objects = common
    for source in of_device:
        add("cxx", source, flags)
    if nvcc:
        targets = " ".join(cuda_targets(nvcc))
        for source in sorted((csrc / "cuda").glob("*.cpp")):
            add("cxx", source, flags)
        for source in kernels:
            add("nvcc", source, targets)
        link += " -lc10_cuda -ltorch_cuda"
    lines.append(link.format("_C.so", " ".join(objects)))
    return "\n".join(lines) + "\ndefault _C.so\n"


if __name__ == "__main__":
    if int(setuptools.__version__.split(".")[0]) < 77:
        stop(
            f'setuptools 77 or later is needed, got {setuptools.__version__}: pip install --upgrade "setuptools>=77" ninja'
        )
    setup(ext_modules=[Extension("advnas_ext._C", [])], cmdclass={"build_ext": Build})
