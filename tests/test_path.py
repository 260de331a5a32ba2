import pytest
import torch

from advnas_ext import Path


def test_from_ops_has_gates_of_one():
    path = Path.from_ops([3, 0, 2])
    assert path.ops.tolist() == [[3], [0], [2]]
    assert path.gates.tolist() == [[1], [1], [1]]
    assert path.gates.requires_grad
    assert path.gates.is_leaf
    assert (path.num_edges, path.picks) == (3, 1)
    assert not Path.from_ops([3], requires_grad=False).gates.requires_grad
    assert Path.from_ops([[0, 1], [2, 1]]).picks == 2
    assert Path.from_ops(torch.tensor([1, 2], dtype=torch.int32)).ops.dtype == torch.int64
    assert Path.from_ops([1], dtype=torch.float64).gates.dtype == torch.float64


def test_detach_shares_ops_and_asks_for_no_gradient():
    path = Path(torch.tensor([[1]]), torch.tensor([[0.5]], requires_grad=True))
    assert not path.detach().gates.requires_grad
    assert path.detach().gates.item() == 0.5


@pytest.mark.parametrize(
    "ops, gates, error, text",
    [
        ([[1]], torch.ones(1, 1), TypeError, "ops must be an int64 tensor, got list"),
        (torch.ones(2, 1), torch.ones(2, 1), TypeError, "got torch.float32"),
        (
            torch.ones(2, 1).long(),
            torch.ones(2, 1).long(),
            TypeError,
            "gates must be a floating point tensor, got torch.int64",
        ),
        (torch.ones(2).long(), torch.ones(2), ValueError, r"shape \[num_edges, picks\]"),
        (torch.ones(2, 0).long(), torch.ones(2, 0), ValueError, "picks >= 1"),
        (
            torch.ones(2, 1).long(),
            torch.ones(1, 2),
            ValueError,
            r"gates must have the shape of ops, \[2, 1\], got \[1, 2\]",
        ),
        (torch.tensor([[-1]]), torch.ones(1, 1), ValueError, r"must not be negative, got \[\[-1\]\]"),
        (torch.tensor([[2, 2]]), torch.ones(1, 2), ValueError, "must not pick an operation twice"),
        (torch.ones(1, 1).long(), torch.ones(1, 1, device="meta"), ValueError, "live on the host"),
    ],
)
def test_wrong_arguments(ops, gates, error, text):
    with pytest.raises(error, match=text):
        Path(ops, gates)


@pytest.mark.parametrize("ops", [[0.5], [True], [1j]], ids=str)
def test_from_ops_takes_integers(ops):
    with pytest.raises(TypeError, match="ops must be integers"):
        Path.from_ops(ops)


def test_what_the_backward_pass_has_to_reach():
    path = Path.from_ops([1, 0])
    assert [tensor.data_ptr() for tensor in path.leaves] == [path.gates.data_ptr()]
    with_offsets = path.with_offsets()
    gates, offsets = with_offsets.leaves
    assert (gates.data_ptr(), offsets.data_ptr()) == (path.gates.data_ptr(), with_offsets.offsets.data_ptr())
