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


@pytest.mark.parametrize("name", ["gates", "offsets"])
def test_counterparts_on_another_device(name):
    """One for a path and a device, where a gradient is wanted; on the host, and elsewhere, the tensor itself."""
    path, other = (Path.from_ops([1, 0]).with_offsets() for _ in range(2))
    tensor, on = getattr(path, name), getattr(path, f"{name}_on")
    assert on("cpu") is tensor
    assert on(torch.device("cpu")) is tensor
    with torch.no_grad():
        assert on("meta") is tensor
    counterpart = on("meta")
    assert counterpart.device.type == "meta"
    assert counterpart.shape == tensor.shape
    assert counterpart.requires_grad
    assert counterpart.grad_fn.next_functions[0][0].variable is tensor
    assert on(torch.device("meta")) is counterpart
    assert getattr(other, f"{name}_on")("meta") is not counterpart
    with torch.no_grad():
        assert on("meta") is tensor
    setattr(path, name, tensor.detach().clone().requires_grad_())
    assert on("meta") is not counterpart


def test_a_detached_path_has_no_counterparts():
    path = Path.from_ops([1, 0]).with_offsets()
    path.gates_on("meta")
    detached = path.detach()
    assert detached.gates_on("meta") is detached.gates
    assert detached.offsets_on("meta") is None
    assert Path.from_ops([1, 0]).offsets_on("meta") is None
    assert Path.from_ops([1, 0], requires_grad=False).gates_on("meta").device.type == "cpu"


def test_what_the_backward_pass_has_to_reach():
    path = Path.from_ops([1, 0])
    assert [tensor.data_ptr() for tensor in path.leaves] == [path.gates.data_ptr()]
    with_offsets = path.with_offsets()
    gates, offsets = with_offsets.leaves
    assert (gates.data_ptr(), offsets.data_ptr()) == (path.gates.data_ptr(), with_offsets.offsets.data_ptr())
