"""benchmarks/cuda/steps.py on the host: the same code with the host's clock in place of events on a stream."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run(tmp_path, monkeypatch, capsys):
    from benchmarks.cuda import steps
    from benchmarks.cuda.gpus import GPUS
    from benchmarks.cuda.machines import Host

    monkeypatch.setattr("benchmarks.steps.sides.has_xautodl", lambda: False)
    monkeypatch.setattr(Host, "gpu", GPUS[0])
    settings = steps.Settings(channels=4, cells=1, batch_sizes=(2,), image_size=8, paths=2, out=tmp_path)
    steps.Benchmark(settings, Host()).run()
    text = (tmp_path / "cuda.md").read_text()
    assert text.startswith("host (published figures of T4), torch ")
    assert text.count("| architecture | plain, inputs=[gates] |") == 4, "times and model, in two types"
    assert "measured / predicted" in text
    assert "C = 4, N = 1, batch 2, 8x8, bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_check_on_the_kernels(launches, name):
    from benchmarks.cuda import steps
    from benchmarks.cuda.machines import Host

    with launches.counted() as found:
        differences = steps.differences(Host(), steps.DTYPES[name])
    assert {"node_forward_kernel", "forward_kernel", "gradient_kernel"} <= {launch.kernel for launch in found}
    steps.require_small(differences, name)


def test_a_difference_ends_it(monkeypatch):
    from benchmarks.cuda import steps

    with pytest.raises(SystemExit, match="nor_conv_1x1 in float32 differs"):
        steps.require_small({"skip_connect": 0.0, "nor_conv_1x1": 1e-2}, "float32")
    with pytest.raises(SystemExit, match="differs"):
        steps.require_small({"skip_connect": float("inf")}, "bfloat16")


def test_the_steps_are_timed_by_the_machine(monkeypatch):
    from benchmarks.cuda import steps
    from benchmarks.cuda.machines import Host
    from benchmarks.steps.work import Case

    def ticks(step):
        step()
        return 2.0

    monkeypatch.setattr("benchmarks.steps.sides.has_xautodl", lambda: False)
    machine = Host()
    machine.clock = ticks
    made = steps.make_sides(machine, Case(4, 1, 2, 8), torch.float32)
    assert [side.seconds(torch.tensor([3, 2, 1, 4, 3, 2]), True) for side in made.values()] == [2.0] * 3


@pytest.mark.parametrize(
    "name, gpu", [("NVIDIA H100 80GB HBM3", "H100 SXM"), ("Tesla T4", "T4"), ("NVIDIA T400", None), ("host", None)]
)
def test_which_figures_are_published(name, gpu):
    from benchmarks.cuda.machines import Host

    machine = Host()
    machine.name = name
    assert (machine.gpu.name if machine.gpu else None) == gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    from benchmarks.cuda import steps

    with pytest.raises(SystemExit) as error:
        steps.main(steps.Settings())
    assert error.value.code == 2
    assert capsys.readouterr().err == "cuda/steps.py: needs an NVIDIA GPU, and PyTorch finds none\n"


def test_an_extension_without_cuda(monkeypatch):
    from benchmarks.cuda import steps

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(steps, "_C", type("Extension", (), {"cuda": False}))
    assert "built without CUDA" in steps.missing()
