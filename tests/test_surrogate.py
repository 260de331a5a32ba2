"""Losses that are smoothed over cells that are alike."""

import pytest
import torch

from advnas.surrogate import NOISE, smoothed


def drawn(count, seed=0):
    return torch.randint(5, (count, 6), generator=torch.Generator().manual_seed(seed))


def test_it_is_the_posterior_mean_of_a_regression_on_operations_and_their_pairs():
    """Written out: ridge regression on a feature for each operation of an edge, and for each pair of them."""
    cells = drawn(30)
    losses = torch.randn(30, generator=torch.Generator().manual_seed(1))
    single = torch.nn.functional.one_hot(cells, 5).double()
    pairs = [single[:, a, :, None] * single[:, b, None, :] / 2 for a in range(6) for b in range(a)]
    features = torch.cat([single.flatten(1), *(pair.flatten(1) for pair in pairs)], 1)
    features /= features.square().sum(1).mean().sqrt()
    left = losses.double() - losses.double().mean()
    weights = torch.linalg.solve(
        features.T @ features + NOISE * torch.eye(features.shape[1], dtype=torch.float64), features.T @ left
    )
    torch.testing.assert_close(smoothed(cells, losses), losses.double().mean() + features @ weights)


@pytest.mark.parametrize("seed", range(3))
def test_it_takes_noise_out(seed):
    g = torch.Generator().manual_seed(seed)
    cells, values = drawn(150, seed), torch.randn(6, 5, generator=g)
    true = values[torch.arange(6), cells].sum(1)
    noisy = true + 1.5 * torch.randn(150, generator=g)
    assert (smoothed(cells, noisy) - true).square().mean() < 0.5 * (noisy - true).square().mean()


def test_one_cell_and_equal_losses_stay_as_they_are():
    cells = drawn(4)
    assert smoothed(cells[:1], torch.tensor([2.0])).tolist() == [2.0]
    torch.testing.assert_close(smoothed(cells, torch.full((4,), 3.0)), torch.full((4,), 3.0, dtype=torch.float64))
