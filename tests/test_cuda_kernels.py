"""What the compiler makes of the CUDA kernels: nothing spills, and the table in benchmarks/results says what it says."""

from pathlib import Path

import pytest
from conftest import rotation

FOLDER = Path(__file__).parents[1] / "benchmarks"
TARGETS = rotation((75, 80, 86, 89, 90, 100, 120), 4)


@pytest.fixture(scope="module")
def cuda_kernels():
    from benchmarks.cuda import kernels

    return kernels


@pytest.fixture(scope="module")
def nvcc(cuda_kernels):
    found = cuda_kernels.setup_module().find_nvcc()
    if found is None:
        pytest.skip("needs nvcc: it was not found; install the CUDA toolkit and set CUDA_HOME to its folder")
    return found


@pytest.fixture(scope="module")
def found(cuda_kernels, nvcc):
    return cuda_kernels.kernels_of(nvcc, TARGETS)


def test_nothing_spills(found):
    assert found
    for kernel, by_target in found.items():
        for target, resources in by_target.items():
            used = (resources.spill_stores, resources.spill_loads, resources.stack)
            assert used == (0, 0, 0), f"{kernel} on sm_{target}: {resources}"


def test_the_table_is_what_the_compiler_says(cuda_kernels, nvcc, found):
    text = (FOLDER / "results" / "cuda-kernels.md").read_text()
    version = cuda_kernels.version_of(nvcc)
    if f"nvcc {version}," not in text:
        pytest.skip(f"the table is of {text.split(',')[0]}, and this is nvcc {version}")
    written = cuda_kernels.registers_in(text)
    keys = {(kernel.label, kernel.type, str(kernel.pack or "")): kernel for kernel in found}
    assert set(keys) == set(written), "run python -m benchmarks.cuda.kernels"
    for key, kernel in keys.items():
        for target in set(TARGETS) & set(written[key]):
            registers = found[kernel][target].registers
            assert abs(registers - written[key][target]) <= 8, f"{kernel} on sm_{target}: {registers}, {written[key]}"


def test_a_report_of_the_compiler(cuda_kernels):
    """A kernel that spills, as ptxas reports it."""
    symbol = "_ZN6advnas4cuda39_GLOBAL__N__8324ebc7_7_norm_cu_5d6383a315gradient_kernelI13__nv_bfloat16Li8EEEvPKT_S6_PKfPS4_li"
    report = (
        f"ptxas info    : Compiling entry function '{symbol}' for 'sm_75'\n"
        f"ptxas info    : Function properties for {symbol}\n"
        "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info    : Used 50 registers, used 1 barriers, 128 bytes smem, 396 bytes cmem[0]\n"
    )
    expected = cuda_kernels.Kernel("norm", "gradient", "bfloat16", 8), 75, cuda_kernels.Resources(50, 128, 8, 12, 16)
    assert cuda_kernels.parse(report, "norm") == [expected]


@pytest.mark.parametrize(
    "target, threads, registers, shared, expected",
    [
        (90, 256, 32, 0, 1.0),  # 8 blocks of 8 warps
        (90, 256, 33, 0, 0.75),  # 40 registers a thread after rounding: 51 warps, 48 in fours, 6 blocks
        (75, 256, 64, 0, 1.0),
        (80, 256, 32, 35840, 0.5),  # 36 KB with the reserved one: 4 blocks
        (86, 32, 16, 0, 1 / 3),  # 16 blocks of one warp
    ],
)
def test_occupancy_by_hand(cuda_kernels, target, threads, registers, shared, expected):
    assert cuda_kernels.LIMITS[target].occupancy(threads, registers, shared) == pytest.approx(expected)
