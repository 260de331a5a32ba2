"""What the recurrent cells refuse, how they start, and that they can be stored."""

import copy
import pickle

import pytest
import torch

from advnas_ext import DartsRecurrentCell, OnePathRecurrentCell, Path

PATH = Path.from_ops([1] * 6)
each_cell = pytest.mark.parametrize("kind", [OnePathRecurrentCell, DartsRecurrentCell])


@each_cell
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
def test_says_what_was_expected(kind, error, message, x, path, h):
    with pytest.raises(error, match=f"{kind.__name__}: {message}"):
        kind(4, 3)(x, path, h)


@each_cell
@pytest.mark.parametrize("name", ["x_mask", "h_mask"])
def test_says_what_masks_must_be(kind, name):
    cell, x = kind(4, 3), torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {name} must have shape \[3, 4\], got \[2, 4\]"):
        cell(x, PATH, **{name: torch.ones(2, 4)})
    with pytest.raises(TypeError, match=rf"{kind.__name__}: {name} is torch.float64"):
        cell(x, PATH, **{name: torch.ones(3, 4).double()})


@each_cell
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"units": 0, "num_nodes": 3}, "needs units >= 1 and num_nodes from 1 to 64, got 0 and 3"),
        ({"units": 4, "num_nodes": 0}, "got 4 and 0"),
        ({"units": 4, "num_nodes": 65}, "got 4 and 65"),
        ({"units": 4, "ops": ()}, r"ops must be different names among .*, got \[\]"),
        ({"units": 4, "ops": ("tanh", "gelu")}, "gelu"),
        ({"units": 4, "ops": ("tanh", "tanh")}, "different names"),
    ],
)
def test_refuses_to_be_made(kind, arguments, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{message}"):
        kind(**arguments)


@each_cell
def test_weights_that_do_not_fit_are_refused(kind):
    cell = kind(4, 3)
    cell.weights[2] = torch.nn.Parameter(torch.ones(4, 4))
    with pytest.raises(
        ValueError, match=r"weights\[2\] must be Float of shape \[4, 8\] on cpu, got Float of shape \[4, 4\]"
    ):
        cell(torch.ones(2, 3, 4), PATH)


@each_cell
def test_double_backward_is_refused(kind):
    cell = kind(4, 3)
    outputs, _ = cell(torch.randn(2, 3, 4), PATH)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        torch.autograd.grad(outputs.sum(), list(cell.weights), create_graph=True)


@pytest.mark.parametrize("kind, num_weights", [(OnePathRecurrentCell, 3), (DartsRecurrentCell, 2)])
def test_starts_like_darts(kind, num_weights):
    cell = kind(100, num_nodes=2)
    assert [tuple(weight.shape) for weight in cell.weights] == [(200, 200)] + num_weights * [(100, 200)]
    for weight in cell.weights:
        assert 0.0399 < weight.abs().max() <= 0.04
        assert abs(weight.mean()) < 0.001


@each_cell
def test_survives_pickling_and_a_state_dict(kind):
    cell = kind(4, 3)
    x = torch.randn(3, 2, 4)
    expected = cell(x, PATH)[0]
    other = kind(4, 3)
    other.load_state_dict(cell.state_dict())
    for twin in (other, pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell)):
        assert torch.equal(twin(x, PATH)[0], expected)
        assert repr(twin) == repr(cell)
