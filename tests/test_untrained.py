"""Measures of untrained networks, by hand and by what they are for."""

import pytest
import torch
from torch import nn

from advnas.networks.nasbench201 import Network
from advnas.untrained import promises, ranks
from advnas_ext import Path


def test_codes_and_jacobians_by_hand():
    """Two inputs of opposite signs share no ReLU, and their gradients are those of either half of the layer."""
    network = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU())
    weight = torch.tensor([[1.0, 2.0], [3.0, -1.0], [-1.0, -2.0], [-3.0, 1.0]])
    network[0].weight.data = weight
    codes, jacobians = promises(network, torch.tensor([[1.0, 0.5], [-1.0, -0.5]]))
    assert codes == pytest.approx(torch.logdet(torch.tensor([[4.0, 0.0], [0.0, 4.0]])).item())
    rows = torch.stack([weight[:2].sum(0), weight[2:].sum(0)]).double()
    v = torch.linalg.eigvalsh(torch.corrcoef(rows)).clamp(min=0) + 1e-5
    assert jacobians == pytest.approx(-(v.log() + 1 / v).sum().item(), rel=1e-3)
    assert not network[1]._forward_hooks


def test_alike_inputs_promise_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2))
    same = torch.ones(4, 3)
    different = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert all(more > less for more, less in zip(promises(network, different), promises(network, same), strict=True))


def test_a_supernets_cell_with_convolutions_promises_more_than_one_with_skips():
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    cells = [torch.tensor([1, 0, 1, 0, 0, 1]), torch.tensor([3, 0, 3, 1, 0, 3])]
    skips, convolutions = (promises(Network(4, 1).fix(ops), x) for ops in cells)
    assert convolutions[0] > skips[0]
    assert convolutions[1] > skips[1]


def test_a_network_that_lets_nothing_through_promises_least():
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    nothing, skips = (promises(Network(4, 1).fix(torch.full((6,), op)), x) for op in (0, 1))
    assert all(less < more for less, more in zip(nothing, skips, strict=True))


@pytest.mark.filterwarnings("error")
def test_a_path_of_a_supernet_promises_what_its_own_network_does():
    """And is measured without a warning that hooks make it slow, even after a cell without a ReLU, which ran natively."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def made():
        torch.manual_seed(0)
        return Network(4, 1)

    supernet = made()
    for ops in (torch.full((6,), 1), torch.tensor([3, 0, 2, 1, 4, 3])):
        own, of_path = promises(made().fix(ops), x), promises(supernet, x, Path.from_ops(ops, requires_grad=False))
        assert own == pytest.approx(of_path, rel=1e-4)


def test_ranks_add_up_over_kinds_and_what_is_no_number_is_last():
    values = torch.tensor([[3.0, 10.0], [1.0, 30.0], [2.0, 5.0], [torch.nan, -torch.inf]])
    assert ranks(values).tolist() == [3 + 2, 1 + 3, 2 + 1, 0 + 0]
