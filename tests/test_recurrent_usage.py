"""What the recurrent cell refuses, how it starts, and that it can be stored."""

import copy
import pickle

import pytest
import torch

from advnas_ext import DartsRecurrentCell, Path

PATH = Path.from_ops([1] * 6)


@pytest.mark.parametrize(
    "error, message, x, path, h",
    [
        (TypeError, "path must be an advnas_ext.Path, got list", torch.ones(2, 3, 4), [1] * 6, None),
        (TypeError, "x must be a tensor, got list", [[[1.0]]], PATH, None),
        (
            TypeError,
            r"x is torch.float64 and the cell's weights are torch.float32",
            torch.ones(2, 3, 4).double(),
            PATH,
            None,
        ),
        (TypeError, r"h is torch.float16", torch.ones(2, 3, 4), PATH, torch.ones(3, 4).half()),
        (ValueError, r"x must have shape \[length, batch, 4\], got \[2, 3, 5\]", torch.ones(2, 3, 5), PATH, None),
        (ValueError, r"x must have shape \[length, batch, 4\], got \[3, 4\]", torch.ones(3, 4), PATH, None),
        (
            ValueError,
            r"h must have shape \[batch, 4\], got \[1, 3, 4\]",
            torch.ones(2, 3, 4),
            PATH,
            torch.ones(1, 3, 4),
        ),
        (ValueError, r"h must have shape \[3, 4\], got \[2, 4\]", torch.ones(2, 3, 4), PATH, torch.ones(2, 4)),
        (ValueError, "x is on meta and the cell on cpu", torch.ones(2, 3, 4, device="meta"), PATH, None),
        (ValueError, "path must have 6 edges, got 3", torch.ones(2, 3, 4), Path.from_ops([1] * 3), None),
        (ValueError, "path.ops must be below 5", torch.ones(2, 3, 4), Path.from_ops([1] * 5 + [5]), None),
    ],
)
def test_says_what_was_expected(error, message, x, path, h):
    with pytest.raises(error, match=f"DartsRecurrentCell: {message}"):
        DartsRecurrentCell(4, 3)(x, path, h)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"units": 0}, "needs units >= 1 and num_nodes from 1 to 64, got 0 and 8"),
        ({"units": 4, "num_nodes": 0}, "got 4 and 0"),
        ({"units": 4, "num_nodes": 65}, "got 4 and 65"),
        ({"units": 4, "ops": ()}, r"ops must be different names among .*, got \[\]"),
        ({"units": 4, "ops": ("tanh", "gelu")}, "gelu"),
        ({"units": 4, "ops": ("tanh", "tanh")}, "different names"),
    ],
)
def test_refuses_to_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        DartsRecurrentCell(**arguments)


def test_weights_that_do_not_fit_are_refused():
    cell = DartsRecurrentCell(4, 3)
    cell.weights[2] = torch.nn.Parameter(torch.ones(4, 4))
    with pytest.raises(
        ValueError, match=r"weights\[2\] must be Float of shape \[4, 8\] on cpu, got Float of shape \[4, 4\]"
    ):
        cell(torch.ones(2, 3, 4), PATH)


def test_double_backward_is_refused():
    cell = DartsRecurrentCell(4, 3)
    outputs, _ = cell(torch.randn(2, 3, 4), PATH)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        torch.autograd.grad(outputs.sum(), list(cell.weights), create_graph=True)


def test_starts_like_darts():
    cell = DartsRecurrentCell(100, num_nodes=2)
    assert [tuple(weight.shape) for weight in cell.weights] == [(200, 200), (100, 200), (100, 200)]
    for weight in cell.weights:
        assert 0.0399 < weight.abs().max() <= 0.04
        assert abs(weight.mean()) < 0.001


def test_survives_pickling_and_a_state_dict():
    cell = DartsRecurrentCell(4, 3)
    x = torch.randn(3, 2, 4)
    expected = cell(x, PATH)[0]
    other = DartsRecurrentCell(4, 3)
    other.load_state_dict(cell.state_dict())
    for twin in (other, pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell)):
        assert torch.equal(twin(x, PATH)[0], expected)
        assert repr(twin) == repr(cell)
