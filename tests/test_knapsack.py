"""The best paths within a limit, against enumeration, and where nothing can be enumerated against the linear relaxation."""

import itertools

import pytest
import torch

from advnas_ext import best_paths


def problem(seed, num_edges=5, num_ops=4, kind="random"):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_edges, num_ops, generator=g, dtype=torch.float64)
    costs = torch.rand(num_edges, num_ops, generator=g, dtype=torch.float64)
    if kind == "integers":  # many ties, as those of FLOPs
        return scores.mul(2).round(), costs.mul(4).round()
    if kind == "correlated":  # what is dear is good
        return costs + 0.1 * scores, costs
    if kind == "negative":
        return scores - 5, costs - 0.5
    return scores, costs


def enumerated(scores, costs, sizes=None):
    sizes = sizes or [scores.shape[1]] * len(scores)
    paths = torch.tensor(list(itertools.product(*map(range, sizes))))
    edges = torch.arange(len(scores))
    return paths, scores[edges, paths].sum(1), costs[edges, paths].sum(1)


@pytest.mark.parametrize("kind", ["random", "integers", "correlated", "negative"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_they_are_those_of_enumeration(kind, share, count):
    for seed in range(4):
        scores, costs = problem(seed, kind=kind)
        _, values, prices = enumerated(scores, costs)
        limit = (prices.min() + share * (prices.max() - prices.min())).item()
        found = best_paths(scores, costs, limit, count)
        assert len(found) == min(count, int((prices <= limit + 1e-9).sum()))
        assert len(found.unique(dim=0)) == len(found)
        edges = torch.arange(len(scores))
        assert (costs[edges, found].sum(1) <= limit + 1e-9).all()
        expected = values[prices <= limit + 1e-9].sort(descending=True).values[: len(found)]
        torch.testing.assert_close(scores[edges, found].sum(1), expected, rtol=0, atol=1e-9)


def test_edges_may_have_fewer_operations():
    scores, costs = problem(0)
    sizes = [4, 1, 2, 3, 2]
    for edge, size in enumerate(sizes):
        scores[edge, size:], costs[edge, size:] = 100, 0  # padding must not be picked
    paths, values, prices = enumerated(scores, costs, sizes)
    limit = prices.median().item()
    found = best_paths(scores, costs, limit, 1, sizes)
    within = prices <= limit + 1e-9
    assert torch.equal(found[0], paths[within][values[within].argmax()])


@pytest.mark.parametrize("kind", ["random", "integers", "correlated"])
def test_many_edges(kind):
    """67 edges with 8 operations. No bound of the linear relaxation may be below what is found, and no exchange of one or two
    operations may better it."""
    scores, costs = problem(0, 67, 8, kind)
    edges = torch.arange(67)
    limit = 0.4 * costs.amax(1).sum().item()
    (found,) = best_paths(scores, costs, limit)
    value, price = scores[edges, found].sum().item(), costs[edges, found].sum().item()
    assert price <= limit + 1e-9
    multipliers = torch.linspace(0, 20, 401, dtype=torch.float64)
    bounds = [m * limit + (scores - m * costs).amax(1).sum().item() for m in multipliers]
    assert value <= min(bounds) + 1e-9
    gain = (scores - scores[edges, found][:, None]).flatten()
    more = (costs - costs[edges, found][:, None]).flatten()
    fits = more[:, None] + more <= limit - price - 1e-9
    of_one_edge = (edges.repeat_interleave(8)[:, None] == edges.repeat_interleave(8)) & ~torch.eye(67 * 8, dtype=bool)
    assert (gain[:, None] + gain)[fits & ~of_one_edge].max() <= 1e-9


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(2, 3), torch.zeros(3, 2), 1.0), r"both have shape .* got \[2, 3\] and \[3, 2\]"),
        ((torch.full((2, 3), torch.nan), torch.zeros(2, 3), 1.0), "must be finite"),
        ((torch.zeros(2, 3), torch.ones(2, 3), 1.5), "at least that of the cheapest path, 2, got 1.5"),
        ((torch.zeros(2, 3), torch.ones(2, 3), 2.0, 0), "count must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        best_paths(*arguments)
