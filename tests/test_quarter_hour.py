"""benchmarks/cuda/quarter_hour.sh: its dry run on the host, our kernels on the shim, and what it does where something fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "cuda" / "quarter_hour.sh"
STEPS = ["1-build", "2-tests", "3-sanitizer", "4-bench", "5-search", "6-profile", "7-rest"]


def run(folder, *arguments, **environment):
    given = {**os.environ, "OUT": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([SCRIPT, *arguments], env=given, capture_output=True, text=True, cwd=folder)


def log(folder, name):
    return (folder / f"{name}.txt").read_text()


def test_a_dry_run(launches, tmp_path):
    from benchmarks.cuda import rivals, steps

    done = run(tmp_path, "--dry")
    summary = (tmp_path / "0-summary.txt").read_text()
    for name in STEPS:
        assert re.search(rf"^{name} +ok +status 0 ", summary, re.MULTILINE), f"{summary}\n{log(tmp_path, name)[-3000:]}"
    assert done.returncode == 0
    assert "a dry run on the host" in summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-summary.txt", *(f"{name}.txt" for name in STEPS)]
    assert " passed" in summary
    bench = log(tmp_path, "4-bench")
    assert "left out" not in bench
    for name in (*steps.COMMON, *rivals.RIVALS):
        # Times and the rest as Markdown, in every type; what is compiled in one.
        assert bench.count(f"| architecture | {name} |") == 2 * (1 if name in rivals.MODES else 3), name


def test_without_a_build_nothing_runs(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no module here >&2\nexit 3\n")
    broken.chmod(0o755)
    done = run(tmp_path, "--dry", PYTHON=str(broken))
    assert done.returncode == 1
    assert "1-build      failed   status 3" in done.stdout
    assert "no module here" in done.stdout
    assert not (tmp_path / "2-tests.txt").exists()


def test_other_arguments_are_refused(tmp_path):
    done = run(tmp_path, "--wet")
    assert done.returncode == 2
    assert done.stderr == "quarter_hour.sh: takes --dry or nothing, got --wet\n"


@pytest.mark.parametrize("word", ["nvidia-smi -", "--lock", "-pm ", "--reset"])
def test_the_settings_of_the_card_stay_as_they_are(word):
    assert word not in SCRIPT.read_text().replace("nvidia-smi --query-gpu", "")
