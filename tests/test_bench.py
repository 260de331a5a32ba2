import copy
import json
import pickle

import numpy as np
import pytest
import torch


@pytest.fixture
def case():
    from benchmarks.steps.work import Case

    return Case(channels=4, cells=1, batch_size=2, image_size=8)


def test_ours_is_plain_pytorch(case, close):
    from benchmarks.steps import sides

    network, batch = sides.make_network(case)
    network, batch = copy.deepcopy(network).double(), batch.double()
    ours, plain = sides.Ours(network, batch), sides.Plain(network, batch, case)
    to_inputs = sides.PlainToInputs(network, batch, case)
    for ops in sides.make_paths(4, seed=1):
        expected = plain.step(ops, True)
        for side in (ours, to_inputs):
            outcome = side.step(ops, True)
            close(outcome.loss, expected.loss, "loss")
            close(outcome.gate_grads, expected.gate_grads, "gate gradients")
        close(ours.step(ops, False).loss, expected.loss, "loss of a weight step")
        assert plain.step(ops, False).gate_grads is None
        assert all(parameter.grad is None for parameter in [*network.parameters(), *plain.network.parameters()])


def test_convolutions_of_a_path(case):
    """By hand: 3x3 on 1<-0, 1x1 on 3<-1, and a dead 3x3 on 2<-0, since 3<-2 is the zero operation."""
    from benchmarks.steps.work import Convolution, convolutions, live_edges, multiply_adds

    ops = [3, 3, 0, 0, 2, 0]
    assert live_edges(ops) == [0, 4]
    found = convolutions(ops, case)
    stem = Convolution(3, 4, 8, 3, after_weights=False, after_gates=False)
    assert found.pop(stem) == 1
    assert found.pop(Convolution(4, 4, 8, 3, after_gates=False)) == 1
    assert found.pop(Convolution(4, 4, 8, 1)) == 1
    for width, size in ((8, 4), (16, 2)):
        assert found.pop(Convolution(width // 2, width, size, 3, stride=2)) == 1
        assert found.pop(Convolution(width, width, size, 3)) == 2, "of the reduction block and of the cell"
        assert found.pop(Convolution(width // 2, width, size, 1, norm=False)) == 1
        assert found.pop(Convolution(width, width, size, 1)) == 1
    assert not found
    # Multiply-adds of the forward pass for one image: stem 6912; cells 9216 + 1024 in every stage; reductions 4608 + 9216 + 512.
    edges, reductions = 3 * (9216 + 1024), 2 * (4608 + 9216 + 512)
    assert multiply_adds(ops, case, to_gates=False) == 2 * (2 * 6912 + 3 * edges + 3 * reductions)
    assert multiply_adds(ops, case, to_gates=True) == 2 * (6912 + 2 * edges - 9216 + 2 * reductions)


def test_least_bytes_of_a_path(case):
    """By hand: a path of zero operations, and what one skip connection adds to it."""
    from benchmarks.steps.work import least_bytes

    nothing, skip = [0] * 6, [0, 0, 0, 1, 0, 0]
    nodes = [4 * 2 * width * size**2 for width, size in ((4, 8), (8, 4), (16, 2))]
    # The input is read, the gradient written and read; in an architecture step the input is read again.
    more = (2 * sum(nodes), 3 * sum(nodes))
    for to_gates in (False, True):
        added = least_bytes(skip, case, to_gates) - least_bytes(nothing, case, to_gates)
        assert added == more[to_gates] + sum(nodes)


def test_a_run_without_xautodl(tmp_path, capsys):
    from benchmarks.steps import cpu

    settings = cpu.Settings(4, 1, 2, 8, quick=True, xautodl=False, memory=False, out=tmp_path)
    assert settings.paths == 4
    assert not settings.growth
    cpu.main(settings)
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert list(results["times"]) == ["advnas_ext", "plain PyTorch", "plain, inputs=[gates]", "bare oneDNN"]
    assert len(results["times"]["advnas_ext"]["weight"]["ms"]) == len(results["paths"]) == 4
    assert results["roofline"]["weight"]["gflops"] > 0
    assert "| weight | plain PyTorch |" in (tmp_path / "cpu.md").read_text()
    assert "plain, inputs=[gates]" in capsys.readouterr().out


def test_missing_xautodl_is_said_with_its_remedy(monkeypatch):
    from benchmarks.steps import cpu

    monkeypatch.setattr("benchmarks.steps.sides.has_xautodl", lambda: False)
    with pytest.raises(SystemExit, match="make bench-cpu"):
        cpu.main(cpu.Settings(quick=True))


def test_peak_memory_is_the_childs_own(case):
    from benchmarks.steps import sides

    held = torch.ones(2**27)  # 512 MiB here must not show there
    assert sides.peak_of(None, False, case, torch.zeros(0, 6, dtype=torch.int64), 1) < 600
    del held


def test_exponent_of_growth():
    from benchmarks.steps import growth

    assert [growth.exponent(axis, [value**2 for value in axis.values]) for axis in growth.AXES] == [
        pytest.approx(2)
    ] * 4


def test_figure_of_growth(tmp_path):
    from benchmarks.steps import growth

    curves = {
        (axis.field, side): growth.Curve([float(v) for v in axis.values], [float(v) for v in axis.values])
        for axis in growth.AXES
        for side in growth.SIDES
    }
    growth.draw(curves, tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()
    assert [row[-1] for row in growth.sheet(curves).rows] == ["yes"] * 4


@pytest.fixture
def cifar10(tmp_path):
    """500 random images to train with."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"%d" % i for i in range(10)]}, 2))
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            b"data": rng.integers(0, 256, (100, 3072), dtype=np.uint8),
            b"labels": rng.integers(0, 10, 100).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content, 2))
    return folder


def test_parity_from_end_to_end(cifar10, tmp_path, monkeypatch, capsys):
    """Two small runs of each side; from the same weights, images and paths the first losses are nearly equal."""
    from benchmarks.steps import parity

    monkeypatch.setattr(parity, "VALID_PATHS", parity.VALID_PATHS[:2])
    settings = parity.Settings(cifar10, seeds=2, epochs=1, out=tmp_path, images=256)
    parity.main(settings)
    runs = parity.finished(settings)
    assert runs.keys() == {(seed, side) for seed in range(2) for side in ("plain", "engine")}
    for seed in range(2):
        plain, engine = (runs[seed, side][0] for side in ("plain", "engine"))
        assert plain["train_loss"] == pytest.approx(engine["train_loss"], rel=1e-3)
        assert plain["valid_loss"] == pytest.approx(engine["valid_loss"], rel=1e-2)
    assert runs[0, "engine"][0]["train_loss"] != runs[1, "engine"][0]["train_loss"]
    assert "parity.svg" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "parity.svg").stat().st_size > 0
