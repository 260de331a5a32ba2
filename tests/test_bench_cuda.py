"""benchmarks/cuda/steps.py on the host: the same code with the host's clock in place of events on a stream."""

from typing import ClassVar

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def steps():
    from benchmarks.cuda import steps

    return steps


@pytest.fixture
def host():
    from benchmarks.cuda.machines import Host

    return Host()


def test_predictions_stand_beside_the_times(steps, host, tmp_path, monkeypatch):
    from benchmarks.cuda import predict
    from benchmarks.cuda.gpus import H200
    from benchmarks.cuda.machines import Host

    monkeypatch.setattr(Host, "gpu", H200)
    benchmark = steps.Benchmark(steps.Settings(out=tmp_path), host)
    key = predict.key_of(steps.Case(4, 1, 2, 8), "float32", True, "advnas_ext")
    benchmark.expected = {key: predict.Expected(17, 1.5, {"H200": 1e-3})}
    monkeypatch.setattr(benchmark, "paths", benchmark.paths[:2])
    benchmark.compare(steps.Run(steps.Case(4, 1, 2, 8), "float32", steps.COMMON))
    row = next(row for row in benchmark.sheets[-1].rows if row[:2] == ["architecture", "advnas_ext"])
    assert row[5] == "0.00"
    assert row[6].endswith("x")
    assert row[7] == "2"
    assert row[9] == "17"


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_check_on_the_kernels(launches, steps, host, name):
    dtype = getattr(torch, name)
    with launches.counted() as found:
        differences = steps.differences(host, dtype)
    assert {"node_forward_kernel", "forward_kernel", "gradient_kernel"} <= {launch.kernel for launch in found}
    steps.require_small(differences, dtype)
    with launches.counted() as found:
        own = steps.own_difference(host, dtype)
    assert "conv3x3_weight_kernel" in {launch.kernel for launch in found}
    assert 1e-6 < own < steps.TOLERANCES[torch.float16 if dtype == torch.float32 else dtype]


def test_a_difference_ends_it(steps):
    with pytest.raises(SystemExit, match=r"nor_conv_1x1 in torch.float32 differs"):
        steps.require_small({"skip_connect": 0.0, "nor_conv_1x1": 1e-2}, torch.float32)
    with pytest.raises(SystemExit, match="differs"):
        steps.require_small({"skip_connect": float("inf")}, torch.bfloat16)


def test_a_rival_that_fails_is_left_out(steps, host, monkeypatch):
    from benchmarks.cuda import rivals

    def refuse(module, samples):
        raise RuntimeError("no graph\nhere")

    monkeypatch.setattr(host, "graphed", refuse)
    run = steps.Run(steps.Case(4, 1, 2, 8), "float32", (*steps.COMMON, rivals.GRAPHED))
    found = steps.Sides(host, run, steps.sides.make_paths(2, 0))
    assert set(found.made) == set(steps.COMMON)
    assert found.left_out == [f"{rivals.GRAPHED}: RuntimeError: no graph"]


def test_another_result_is_not_timed(steps, host, monkeypatch):
    other = steps.Outcome(torch.tensor(7.0), torch.ones(6))
    monkeypatch.setattr(steps.sides.Ours, "step", lambda self, ops, to_gates: other)
    run = steps.Run(steps.Case(4, 1, 2, 8), "float32", steps.COMMON)
    with pytest.raises(ValueError, match="its loss differs from plain PyTorch's by"):
        steps.Sides(host, run, steps.sides.make_paths(2, 0))


def test_an_operation_is_compiled_once(steps, host):
    """For all cells of a stage, and all networks with the same shapes."""
    from benchmarks.cuda import rivals
    from torch._dynamo.utils import counters

    counts = []
    for cells in (1, 2):
        run = steps.Run(steps.Case(4, cells, 3, 8), "float32", (*steps.COMMON, rivals.COMPILED))
        assert not steps.Sides(host, run, steps.sides.make_paths(2, 0)).left_out
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1]


def test_what_the_short_run_times_is_predicted(steps):
    from benchmarks.cuda import predict

    expected = predict.read()
    for run in steps.SHORT:
        for to_gates in (False, True):
            assert predict.key_of(run.case, run.precision, to_gates, "advnas_ext") in expected
            if steps.OURS_OWN in run.names:
                assert predict.key_of(run.case, run.precision, to_gates, steps.OURS_OWN) in expected


def test_predictions_are_those_of_the_model(launches):
    from benchmarks.cuda import predict
    from benchmarks.steps.sides import make_paths
    from benchmarks.steps.work import Case

    written = predict.read()
    for key, found in predict.expect(Case(16, 1, 64), ["float32"], make_paths(predict.PATHS, seed=0)).items():
        # Where one differs, run python -m benchmarks.cuda.predict.
        assert found.megabytes == pytest.approx(written[key].megabytes, rel=1e-3)
        assert found.launches == pytest.approx(written[key].launches, rel=1e-3)
        assert found.ms == pytest.approx(written[key].ms, rel=1e-3)


@pytest.mark.parametrize(
    "name, gpu",
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("NVIDIA T400", None),
        ("host", None),
    ],
)
def test_which_figures_are_published(name, gpu):
    from benchmarks.cuda.machines import Host

    machine = Host()
    machine.name = name
    assert (machine.gpu.name if machine.gpu else None) == gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(steps, capsys):
    with pytest.raises(SystemExit) as error:
        steps.main(steps.Settings())
    assert error.value.code == 2
    said = "cuda/steps.py: needs an NVIDIA GPU, and PyTorch finds none; --dry runs it on the host\n"
    assert capsys.readouterr().err == said


def test_an_extension_without_cuda(steps, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(steps, "_C", type("Extension", (), {"cuda": False}))
    assert "built without CUDA" in steps.missing()


def test_bytes_of_kernels_are_those_of_the_model(launches):
    from benchmarks.cuda import predict
    from benchmarks.cuda.profile import sheet

    own = predict.read_kernels("float32", True, own=True)
    assert own == pytest.approx(predict.megabytes_of_kernels("float32", True, own=True), rel=1e-2, abs=0.1)
    written = predict.read_kernels("float32", True)
    assert written == pytest.approx(predict.megabytes_of_kernels("float32", True), rel=1e-2, abs=0.1)
    table = sheet({"node_forward_kernel": [50.0, 150.0], "cudnn": [200.0]}, 0.5, "step", written)
    moved = written["node_forward_kernel"]
    assert table.title == "step: kernels 0.40 ms of 0.50 ms between two events: 80 %"
    assert ["cudnn", "1", "200", "200.0", "50.0 %", "", ""] in table.rows
    assert ["node_forward_kernel", "2", "200", "100.0", "50.0 %", f"{moved:.0f}", f"{moved * 5:.0f}"] in table.rows


@pytest.mark.parametrize(
    "kernel, name",
    [
        ("void a::(anonymous namespace)::node_forward_kernel<float, 4>(a::NodeForward<float>)", "node_forward_kernel"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_fprop>(cutlass_fprop::Params)", "Kernel"),
        ("sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32", "sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32"),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH"),
    ],
)
def test_names_of_kernels(kernel, name):
    from benchmarks.cuda.profile import base_name

    assert base_name(kernel) == name


class Recorded:
    """What stands in for torch.cuda's graphs and streams: it writes down what is asked of it."""

    calls: ClassVar[list[str]] = []

    def __init__(self, *given):
        pass

    def __enter__(self):
        self.calls.append("stream")

    def __exit__(self, *error):
        self.calls.append("back")

    def capture_begin(self, pool):
        self.calls.append(f"begin {pool}")

    def capture_end(self):
        self.calls.append("end")

    def pool(self):
        return "pool"

    def replay(self):
        self.calls.append("replay")


def test_what_is_asked_of_a_gpu(monkeypatch):
    from benchmarks.cuda.machines import Cuda

    for name in ("CUDAGraph", "Stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, Recorded)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, samples: (module, samples))
    machine, calls = Cuda(), Recorded.calls
    calls.clear()
    replay, left = machine.captured(lambda: calls.append("step") or len(calls))
    replay()
    assert (calls, left) == (["stream", "step", "begin None", "step", "end", "back", "replay"], 4)
    with pytest.raises(RuntimeError, match="in a step"):
        machine.captured(failing(at=2))
    assert calls[-3:] == ["begin pool", "end", "back"], "the memory of the graph before, and no capture goes on"
    assert machine.graphed("module", ("x",)) == ("module", ("x",))
    assert machine.gpu.name == "H200"


def failing(at):
    count = iter(range(1, at + 1))

    def step():
        if next(count) == at:
            raise RuntimeError("in a step")

    return step
