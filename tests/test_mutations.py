"""That the tests of the CUDA kernels find errors: each mutation in mutations.txt makes one, and the program of that kernel must
fail.

The kernels are compiled for the host, checked (tests/cuda_shim/cuda_runtime.h says how), and run by the programs
tests/cuda_shim/test_<kernel>.cpp: exit code 3 is an error that the checker reports (a race, an access out of bounds, a
read of uninitialised memory, ...), 1 a wrong value. ``pytest -s tests/test_mutations.py`` prints what found which mutation;
``ADVNAS_WRITE=1`` makes it write benchmarks/results/cuda-mutations.md.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import FULL, rotation

ROOT = Path(__file__).parents[1]
SHIM = ROOT / "tests" / "cuda_shim"
PROGRAMS = ("conv3x3", "gate", "layout", "node", "norm", "pointwise", "recurrent")
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the shim needs g++")

# mutations.txt: a line `# kind`, and under it mutations: `file: what it is` (for a header `file, program: what it is`), `-` the
# text, which occurs once in the file, `+` what takes its place, or nothing. Mutations that change no result on any input, such as
# a wider row of shared memory, do not belong there.
LIST = (Path(__file__).parent / "mutations.txt").read_text()


@dataclass(frozen=True)
class Mutation:
    kind: str
    file: str
    program: str
    what: str
    text: str
    replacement: str


def parse(listed: str) -> list[Mutation]:
    kind, mutations = "", []
    for part in re.split(r"\n+(?=[^-+\n])", listed.strip()):
        first, *changes = part.split("\n")
        if first.startswith("# "):
            kind = first[2:]
            continue
        names, what = first.split(": ", 1)
        file, _, program = names.partition(", ")
        old, new = ("\n".join(line[2:] for line in changes if line[0] == sign) for sign in "-+")
        mutations.append(Mutation(kind, file, program or Path(file).stem, what, old, new))
    return mutations


MUTATIONS = parse(LIST)
TODAY = rotation(MUTATIONS, 8)


class Workshop:
    """Builds a program from kernels that may be mutated, and runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[Mutation, tuple[int, str]] = {}
        for name in ("shim", "checker", *(f"test_{program}" for program in PROGRAMS)):
            self.compile(SHIM / f"{name}.cpp", folder / f"{name}.o", "-DCUDA_SHIM_QUICK")

    def compile(self, source: Path, to: Path, *flags: str) -> None:
        command = ["g++", "-std=c++20", "-O1", "-w", f"-I{SHIM}", *flags, "-x", "c++", "-c", str(source), "-o", str(to)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, kernels: Path, program: str) -> tuple[int, str]:
        """Exit code, and what it means in words."""
        source, kernel = kernels / "cuda" / f"{program}.cu", self.folder / "kernel.o"
        self.compile(source, kernel, "-fsanitize=thread")
        # The kernel first: of functions in several objects the linker keeps the copy with the hooks.
        objects = [kernel, *(self.folder / f"{name}.o" for name in (f"test_{program}", "shim", "checker"))]
        executable = self.folder / "program"
        subprocess.run(["g++", *map(str, objects), "-o", str(executable)], check=True)
        done = subprocess.run([str(executable)], capture_output=True, text=True, timeout=300)
        error = re.search(r"thread \([\d,]+\): ([^:]+): ", done.stderr)
        return done.returncode, error[1] if error else {0: "nothing", 1: "wrong value"}.get(
            done.returncode, done.stderr
        )

    def copy(self, name: str) -> Path:
        kernels = self.folder / name / "csrc" / "kernels"
        ignore = shutil.ignore_patterns("cpu")
        shutil.copytree(ROOT / "csrc" / "kernels", kernels, ignore=ignore)
        for source in set(kernels.glob("cuda/*.cu")) - {kernels / "cuda" / "gate.cu"}:
            # The two types that the quick programs test.
            source.write_text(source.read_text().replace("ADVNAS_INSTANTIATE(__nv_bfloat16)\n", ""))
        return kernels

    def find(self, mutation: Mutation) -> tuple[int, str]:
        if mutation not in self.found:
            kernels = self.copy(f"mutation{len(self.found)}")
            file = kernels / "cuda" / mutation.file
            text = file.read_text()
            assert text.count(mutation.text) == 1, f"{mutation.file} must have once: {mutation.text}"
            file.write_text(text.replace(mutation.text, mutation.replacement))
            self.found[mutation] = self.run(kernels, mutation.program)
        return self.found[mutation]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("mutations"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_as_they_are(workshop: Workshop, program: str) -> None:
    assert workshop.run(workshop.copy(program), program) == (0, "nothing")


@pytest.mark.parametrize("mutation", TODAY, ids=lambda m: f"{m.file}: {m.what}")
def test_mutation_is_found(workshop: Workshop, mutation: Mutation) -> None:
    code, by = workshop.find(mutation)
    assert code in (1, 3), f"{code}: {by}"


@pytest.mark.skipif(not FULL, reason="takes all mutations: make test-full")
def test_what_finds_them(workshop: Workshop) -> None:
    by = {mutation: workshop.find(mutation)[1] for mutation in MUTATIONS}
    counts = Counter(by.values()).most_common()
    checker = len(MUTATIONS) - Counter(by.values())["wrong value"]
    lines = ["# What finds errors in the CUDA kernels", ""]
    lines += [
        f"`tests/test_mutations.py` makes {len(MUTATIONS)} errors, one at a time. All are found, {checker} by the checker,"
    ]
    lines += [f"{len(MUTATIONS) - checker} by a wrong value: {', '.join(f'{kind} {count}' for kind, count in counts)}."]
    for kind in dict.fromkeys(mutation.kind for mutation in MUTATIONS):
        lines += ["", f"## {kind}", "", "| file | mutation | found by |", "|---|---|---|"]
        lines += [f"| {m.file} | {m.what} | {by[m]} |" for m in MUTATIONS if m.kind == kind]
    print("\n" + "\n".join(lines))
    if os.environ.get("ADVNAS_WRITE") == "1":
        (ROOT / "benchmarks" / "results" / "cuda-mutations.md").write_text("\n".join(lines) + "\n")
    assert len(MUTATIONS) >= 30
    assert checker >= len(MUTATIONS) / 3
    assert all(by[m] != "wrong value" for m in MUTATIONS if m.kind == MUTATIONS[0].kind), "of a missing barrier"
