"""MobileNetV3 of timm and of torchvision as a space of one's own: the examples of docs/adapters.md."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason='pip install "advnas-ext[timm]"')
from comparison import advantages_by_differences
from examples import run_example

from advnas_ext import OnePathChoice

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.double)
TARGETS = torch.randint(10, (4,), generator=torch.Generator().manual_seed(1))
SPACES = {"timm": 10, "torchvision": 6}


@pytest.fixture(scope="module", params=SPACES)
def search(request):
    search = run_example("docs/adapters.md", request.param)["search"]
    assert len(search.choices) == SPACES[request.param]
    assert set(search.estimator.sizes) == {6}
    search.model.double()
    return search


def loss_of(search):
    torch.manual_seed(0)  # dropout
    return nn.functional.cross_entropy(search.model(IMAGES), TARGETS)


@pytest.mark.parametrize("seed", range(2))
def test_advantages_against_finite_differences(search, seed):
    path = search.sample(torch.Generator().manual_seed(seed))
    search.backward(loss_of(search))
    expected = advantages_by_differences(search, lambda: loss_of(search))
    assert path.gates.grad.abs().max() > 1e-3
    torch.testing.assert_close(path.gates.grad[:, 0].double(), expected.double(), rtol=1e-4, atol=1e-6)


def test_a_search_ends_in_a_network(search):
    search.sample(gates=False)
    loss_of(search).backward()
    search.sample()
    loss = loss_of(search)
    search.backward(loss)
    search.assign_grad(loss)
    torch.optim.Adam([search.logits], lr=0.1).step()
    network = search.fix().eval()
    assert not any(isinstance(module, OnePathChoice) for module in network.modules())
    search.follow(search.export())
    assert torch.equal(network(IMAGES), search.model.eval()(IMAGES))
    search.model.train()
