"""Instruction sets: which one is chosen, that all give the same results, and that none leaks out of its own functions.

A function that the linker takes from a file compiled for AVX2 kills the process on a CPU without it, and only there: hence the look
at the machine code itself. `make test-isa` runs the kernels on other CPUs under qemu.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.cuda.shim import setup_module

from advnas_ext import _C

ROOT = Path(__file__).parents[1]
ISAS = _C.isas().split()
AVX = re.compile(r"advnas::cpu::(avx2|avx512)::")
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64 machine")

# What objdump prints: "<symbol>:", then lines of "address: TAB bytes TAB instruction". A VEX prefix is c4 or c5 and an EVEX prefix
# is 62: in 64-bit code nothing else begins with these bytes. Before them only a segment and an address size prefix may stand.
SYMBOL = re.compile(r"^[0-9a-f]+ <(.*)>:$")
VEX = re.compile(r"^ *[0-9a-f]+:\t(?:(?:2e|36|3e|26|64|65|67) )*(?:c4|c5|62) ")


def tool(name: str, package: str) -> str:
    return shutil.which(name) or pytest.skip(f"needs {name} (Debian package {package})")


def with_avx(binary: Path) -> set[str]:
    """Names of the functions of a binary in which there is an instruction of AVX or a later set."""
    objdump = tool("objdump", "binutils")
    code = subprocess.run(
        [objdump, "--disassemble", "--demangle", "--insn-width=16", binary], capture_output=True, text=True, check=True
    ).stdout
    found, symbol = set(), ""
    for line in code.splitlines():
        if match := SYMBOL.match(line):
            symbol = match[1]
        elif VEX.match(line):
            found.add(symbol)
    return found


def linkable(binary: Path) -> set[str]:
    """Names that the linker may use for callers in other files: global and weak definitions."""
    listed = subprocess.run(
        [tool("nm", "binutils"), "--demangle", "--defined-only", "--extern-only", binary],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {line.split(maxsplit=2)[2] for line in listed.splitlines() if line}


def outside(names: set[str]) -> set[str]:
    return {name for name in names if not AVX.search(name)}


@on_x86
def test_avx_stays_in_its_functions_in_the_extension():
    extension = Path(_C.__file__)
    names = subprocess.run([tool("nm", "binutils"), extension], capture_output=True, text=True).stdout
    if not names:
        pytest.skip("the extension is stripped: it has no names of functions")
    found = with_avx(extension)
    assert found, "no AVX at all: the check looks at the wrong thing"
    assert not outside(found)


@on_x86
def test_avx_stays_in_its_functions_in_every_object():
    objects = sorted(setup_module().objects_folder(torch).rglob("*.o"))
    if not objects:
        pytest.skip("needs the objects of an editable installation")
    for path in objects:
        assert not outside(with_avx(path)), path.name
        if ".avx" in path.name:
            # Even without AVX inside now: another compiler, or another call, could put it there.
            assert linkable(path), path.name
            assert not outside(linkable(path)), path.name


@on_x86
def test_a_leak_is_seen(tmp_path):
    source, binary = tmp_path / "leak.cpp", tmp_path / "leak.o"
    source.write_text("""
        template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }
        extern volatile float outside;
        float initial = twice(outside) * 3;
        namespace advnas::cpu::avx2 { double kernel(double x) { return twice(x) * 3; } }
    """)
    subprocess.run([tool("g++", "g++"), "-O1", "-mavx2", "-c", source, "-o", binary], check=True)
    assert outside(with_avx(binary)) == {
        "float twice<float>(float)",
        "double twice<double>(double)",
        "_GLOBAL__sub_I_initial",
    }
    assert "advnas::cpu::avx2::kernel(double)" in with_avx(binary)
    assert {"float twice<float>(float)", "initial"} <= outside(linkable(binary))


def run(isa: str, code: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"ADVNAS_ISA": isa} | more,
        timeout=60,
    )


# One edge that runs all operations at once: no ReLU lies behind another operation, so that none flips by rounding.
ONE_EDGE = """
import os, torch, advnas_ext
found = {}
for winograd in "01":
    os.environ["ADVNAS_WINOGRAD"] = winograd
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        cell = advnas_ext.OnePathCell(19, num_nodes=2, affine=True).to(dtype)
        x = torch.randn(3, 19, 9, 10, dtype=dtype, requires_grad=True)
        path = advnas_ext.Path.from_ops([[0, 1, 2, 3, 4]])
        y = cell(x, path)
        (y * torch.randn_like(y)).sum().backward()
        values = {"y": y.detach(), "x": x.grad, "gates": path.gates.grad}
        values |= {name: parameter.grad for name, parameter in cell.named_parameters() if parameter.grad is not None}
        found |= {f"{name}, {dtype}, winograd {winograd}": value for name, value in values.items()}
assert advnas_ext._C.isa() == os.environ["ADVNAS_ISA"]
torch.save(found, os.environ["OUT"])
"""


def test_every_set_gives_the_same(tmp_path):
    results = {}
    for isa in ISAS:
        process = run(isa, ONE_EDGE, OUT=str(tmp_path / isa))
        if "that this CPU runs" in process.stderr:
            continue
        assert process.returncode == 0, process.stderr
        results[isa] = torch.load(tmp_path / isa)
    expected = results.pop(ISAS[-1])  # the last one runs everywhere
    if not results:
        pytest.skip(f"this machine runs no set but {ISAS[-1]}")
    for isa, found in results.items():
        assert found.keys() == expected.keys()
        for name, value in found.items():
            error = (value - expected[name]).abs().max().item() / expected[name].abs().max().item()
            assert error < (1e-5 if "float32" in name else 1e-13), f"{isa}: {name} is off by {error:.1e}"


# In the first call that needs kernels, too, and not once and for all.
WRONG_NAMES = """
import os, torch, advnas_ext
for call in (advnas_ext._C.isa, lambda: advnas_ext.gate(torch.ones(3), torch.ones(1))):
    for name in ("avx3", "", "AVX2"):
        os.environ["ADVNAS_ISA"] = name
        try:
            call()
        except ValueError as error:
            print(error)
del os.environ["ADVNAS_ISA"]
print(advnas_ext._C.isa())
"""


def test_an_unknown_set_is_an_error():
    process = run("", WRONG_NAMES)
    assert process.returncode == 0, process.stderr
    *errors, chosen = process.stdout.splitlines()
    assert chosen in ISAS
    assert errors == 2 * [
        f'ADVNAS_ISA must be one of those compiled ({" ".join(ISAS)}) that this CPU runs, got "{name}"; '
        "unset it to use the best"
        for name in ("avx3", "", "AVX2")
    ]


# isa.cpp with tables that stay empty: what it chooses needs no kernels.
CHOICE = """
#include "{root}/csrc/kernels/cpu/isa.h"
#include <cstdio>
#include <exception>
#define EMPTY(family)                                                              \\
  template <class T> void fill_##family(Kernels<T>*) {{}}                            \\
  template void fill_##family(Kernels<float>*); template void fill_##family(Kernels<double>*);
namespace advnas::cpu {{
#ifdef __aarch64__
namespace neon {{ ADVNAS_KERNEL_FAMILIES(EMPTY) }}
#else
namespace baseline {{ ADVNAS_KERNEL_FAMILIES(EMPTY) }}
namespace avx2 {{ ADVNAS_KERNEL_FAMILIES(EMPTY) }}
namespace avx512 {{ ADVNAS_KERNEL_FAMILIES(EMPTY) }}
#endif
}}
int main() {{
  try {{
    std::printf("%s of %s\\n", advnas::cpu::isa_name(), advnas::cpu::isa_names());
  }} catch (const std::exception& error) {{
    std::printf("%s\\n", error.what());
  }}
}}
"""


@pytest.fixture(scope="module")
def chooser(tmp_path_factory):
    """Runs isa.cpp as a program on a CPU that qemu emulates; returns what it prints."""
    built = {}

    def choose(machine: str, cpu: str, asked: str | None = None) -> str:
        qemu = tool(f"qemu-{machine}", "qemu-user")
        compiler = tool(f"{machine}-linux-gnu-g++", f"g++-{machine}-linux-gnu".replace("_", "-"))
        if machine not in built:
            folder = tmp_path_factory.mktemp(machine)
            (folder / "choice.cpp").write_text(CHOICE.format(root=ROOT))
            built[machine] = folder / "choice"
            sources = [folder / "choice.cpp", ROOT / "csrc" / "kernels" / "cpu" / "isa.cpp"]
            subprocess.run([compiler, "-std=c++20", "-static", *sources, "-o", built[machine]], check=True)
        environment = {name: value for name, value in os.environ.items() if name != "ADVNAS_ISA"}
        if asked is not None:
            environment["ADVNAS_ISA"] = asked
        return subprocess.run(
            [qemu, "-cpu", cpu, built[machine]], stdout=subprocess.PIPE, text=True, check=True, env=environment
        ).stdout.strip()

    return choose


@pytest.mark.parametrize(
    "machine, cpu, isa, compiled",
    [
        ("x86_64", "Nehalem", "baseline", "avx512 avx2 baseline"),
        ("x86_64", "max", "avx2", "avx512 avx2 baseline"),
        ("x86_64", "max,-fma", "baseline", "avx512 avx2 baseline"),  # AVX2 alone is not enough
        ("aarch64", "cortex-a57", "neon", "neon"),
    ],
)
def test_the_best_set_of_a_cpu_is_chosen(chooser, machine, cpu, isa, compiled):
    assert chooser(machine, cpu) == f"{isa} of {compiled}"


def test_a_set_that_the_cpu_lacks_is_an_error(chooser):
    assert chooser("x86_64", "max", "baseline") == "baseline of avx512 avx2 baseline"
    assert 'that this CPU runs, got "avx2"' in chooser("x86_64", "Nehalem", "avx2")
    assert 'of those compiled (neon) that this CPU runs, got "baseline"' in chooser("aarch64", "cortex-a57", "baseline")
