"""A limit on the expected cost: its gradient, that it holds, and that what is found is the best within it."""

import inspect
import itertools

import pytest
import torch
from torch import nn

import advnas_ext
from advnas_ext import ESTIMATORS, Budget, OnePathChoice, PathCost, Search

LEARNING = [name for name, kind in ESTIMATORS.items() if kind.learns]
RAGGED = [[1.0, 4.0, 2.0], [3.0], [0.5, 5.0]]


def estimator(name, num_edges, num_ops, steps=10, **settings):
    kind = ESTIMATORS[name]
    if "total_steps" in inspect.signature(kind).parameters:
        settings["total_steps"] = steps
    return kind(num_edges, num_ops, **settings)


def step(est, budget, optimizer, loss_of, generator):
    """One architecture step within a budget."""
    for _ in range(est.paths_per_batch):
        path = est.sample(generator)
        loss = loss_of(path)
        loss.backward()
        est.assign_grad(path, loss)
    budget.project_grad(est)
    optimizer.step()
    optimizer.zero_grad()
    est.after_step(path)
    budget.project(est)


def test_a_cost_by_hand():
    cost = PathCost(RAGGED, constant=10)
    assert cost.sizes == [3, 1, 2]
    assert cost.least == 10 + 1 + 3 + 0.5
    assert cost.of([1, 0, 1]).item() == 10 + 4 + 3 + 5
    assert cost.of(torch.tensor([[0, 0, 0], [2, 0, 1]])).tolist() == [14.5, 20]
    p = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.8, 0]])
    assert cost.expected(p).item() == pytest.approx(10 + 2.5 + 3 + 4.1)


@pytest.mark.parametrize("costs", [RAGGED, torch.rand(4, 5, generator=torch.Generator().manual_seed(1)).tolist()])
def test_the_gradient_is_autograds(costs):
    cost = PathCost(costs, constant=2)
    est = advnas_ext.AdvantageEstimator(len(costs), cost.sizes, dtype=torch.float64)
    nn.init.normal_(est.logits, generator=torch.Generator().manual_seed(0))
    cost.expected(est.policy(est.logits)).backward()
    torch.testing.assert_close(cost.gradient(est.probabilities()), est.logits.grad)
    assert (est.logits.grad[est.padding] == 0).all()
    assert torch.autograd.gradcheck(lambda logits: cost.expected(est.policy(logits)), est.logits)


def test_the_projected_gradient_does_not_raise_the_cost_and_is_otherwise_the_same():
    cost = PathCost(torch.rand(4, 5, generator=torch.Generator().manual_seed(1)))
    budget = Budget(cost, cost.least + 0.6)
    est = advnas_ext.AdvantageEstimator(4, 5, dtype=torch.float64)
    gradient = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradient -= gradient.mean(1, keepdim=True)
    for sign in (1, -1):
        est.logits.data.zero_()
        budget.project(est)
        est.logits.grad = sign * gradient
        normal = cost.gradient(est.probabilities())
        before = (est.logits.grad * normal).sum()
        budget.project_grad(est)
        if before >= 0:  # a step against it makes paths cheaper
            assert torch.equal(est.logits.grad, sign * gradient)
        else:
            assert (est.logits.grad * normal).sum().abs() < 1e-12
            change = est.logits.grad - sign * gradient
            torch.testing.assert_close(change / change.norm(), normal / normal.norm())
    est.logits.data -= 3 * cost.costs  # far within the limit
    est.logits.grad = gradient.clone()
    budget.project_grad(est)
    assert torch.equal(est.logits.grad, gradient)


def test_the_projection_is_the_nearest_distribution_within_the_limit():
    cost = PathCost(RAGGED)
    est = advnas_ext.AdvantageEstimator(3, cost.sizes, dtype=torch.float64)
    nn.init.normal_(est.logits, generator=torch.Generator().manual_seed(0))
    before = est.probabilities()
    limit = cost.least + 0.4 * (cost.expected(before).item() - cost.least)
    Budget(cost, limit).project(est)
    after = est.probabilities()
    assert cost.expected(after).item() == pytest.approx(limit, rel=1e-5)
    assert (after[est.padding] == 0).all()

    def divergence(q):
        return (torch.special.xlogy(q, q) - torch.special.xlogy(q, before)).sum()

    near = Budget(cost, limit)
    for seed in range(50):
        other = advnas_ext.AdvantageEstimator(3, cost.sizes, dtype=torch.float64)
        nn.init.normal_(other.logits, generator=torch.Generator().manual_seed(seed))
        near.project(other)
        assert divergence(after) <= divergence(other.probabilities()) + 1e-5
    again = est.logits.clone()
    near.project(est)
    torch.testing.assert_close(est.logits, again, rtol=0, atol=1e-4)


# PARSEC by itself takes losses as they are: it compares paths by a softmax over them.
SCALES = [(name, scale) for name in LEARNING for scale in ([1, 30] if name == "parsec" else [1e-3, 1e3])]


@pytest.mark.parametrize("name, scale", SCALES)
def test_the_limit_holds_and_the_best_path_within_it_is_found(name, scale):
    """Losses and costs are additive and known. The limit is one that the linear relaxation solves by a single path. Losses are
    around 0, for GDAS and NASP compare an operation with none."""
    num_edges, num_ops, steps = 4, 3, 300
    g = torch.Generator().manual_seed(4)
    values = torch.rand(num_edges, num_ops, generator=g)
    values -= values.mean(1, keepdim=True)
    costs = torch.rand(num_edges, num_ops, generator=g, dtype=torch.float64) - 0.5 * values + 0.5
    cost = PathCost(1e7 * costs)
    paths = torch.tensor(list(itertools.product(range(num_ops), repeat=num_edges)))
    losses, prices = values[torch.arange(num_edges), paths].sum(1).double(), cost.of(paths)
    limit = prices[(losses + 0.7 * prices / 1e7).argmin()].item()
    best = paths[torch.where(prices <= limit, losses, torch.inf).argmin()]
    assert prices[losses.argmin()] > 1.05 * limit  # so that the limit matters
    est = estimator(name, num_edges, num_ops, steps)
    budget = Budget(cost, limit)
    budget.project(est)
    optimizer = torch.optim.Adam([est.logits], 0.1, betas=(0.5, 0.999), eps=1e-12)

    def loss_of(path):
        zero = 0 if path.offsets is None else 0 * path.offsets.sum()
        return scale * (path.gates * values.gather(1, path.ops)).sum() + zero

    for _ in range(steps):
        step(est, budget, optimizer, loss_of, g)
        assert cost.expected(est.policy(est.logits)).item() <= limit * (1 + 2e-5)
    assert torch.equal(budget.best_path(est), best)


@pytest.mark.parametrize("name", LEARNING)
def test_edges_of_different_sizes(name):
    cost = PathCost(RAGGED)
    est = estimator(name, 3, cost.sizes)
    budget = Budget(cost, cost.least + 0.5)
    budget.project(est)
    optimizer = torch.optim.SGD([est.logits], 1.0)
    g = torch.Generator().manual_seed(0)

    def loss_of(path):
        zero = 0 if path.offsets is None else 0 * path.offsets.sum()
        picked = cost.costs.float().gather(1, path.ops.clamp(max=2))
        return -(path.gates * picked).sum() + zero  # the dearest is the best

    for _ in range(20):
        step(est, budget, optimizer, loss_of, g)
        assert cost.expected(est.policy(est.logits)).item() <= budget.limit + 1e-4
    assert est.logits.isfinite().all()
    assert cost.of(budget.best_path(est)) <= budget.limit
    assert (budget.best_path(est) < torch.tensor(cost.sizes)).all()


def test_a_limit_that_only_the_cheapest_path_keeps():
    cost = PathCost(RAGGED)
    est = advnas_ext.AdvantageEstimator(3, cost.sizes)
    budget = Budget(cost, cost.least)
    budget.project(est)
    assert est.logits.isfinite().all()
    assert cost.expected(est.probabilities()).item() == pytest.approx(cost.least, rel=1e-4)
    assert budget.best_path(est).tolist() == [0, 0, 0]


@pytest.mark.parametrize("offset", [0.0, 1e9])
@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_what_all_paths_cost_does_not_matter(offset, difference):
    cost = PathCost([[offset, offset + difference]] * 3, constant=offset)
    est = advnas_ext.AdvantageEstimator(3, 2)
    Budget(cost, 4 * offset + difference).project(est)
    assert est.logits.isfinite().all()
    assert est.probabilities()[:, 1].tolist() == pytest.approx([1 / 3 if difference else 1 / 2] * 3, abs=2e-3)


def test_the_search_of_a_model_of_your_own():
    """The wider layer is the better one, and one of two may be wide."""

    def choice(name):
        return OnePathChoice([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)], name=name)

    model = nn.Sequential(choice("a"), choice("b"))
    for layer in model:
        for candidate, weight in zip(layer.candidates, (1.0, 2.0), strict=True):
            nn.init.constant_(candidate.weight, weight)
    costs = {"b": [1e6, 6e6], "a": [1e6, 9e6]}  # in any order
    search = Search(model, advnas_ext.RlooEstimator, budget=Budget(PathCost(costs, constant=1e6), 8e6))
    assert search.budget.cost.costs[0].tolist() == [1e6, 9e6]
    optimizer = torch.optim.Adam([search.logits], 0.05)
    x, g = torch.ones(4, 1), torch.Generator().manual_seed(0)
    for _ in range(150):
        for _ in range(search.estimator.paths_per_batch):
            search.sample(g)
            search.assign_grad(-model(x).mean())
        optimizer.step()
        search.after_step()
        assert search.budget.cost.expected(search.estimator.probabilities()).item() <= 8e6 * (1 + 1e-5)
    assert search.export() == {"a": 0, "b": 1}
    assert search.fix()(x[:1]).item() == pytest.approx(2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PathCost([]), "must have a row for each edge"),
        (lambda: PathCost([[1.0], []]), "must have a row for each edge"),
        (lambda: PathCost([[1.0, float("inf")]]), "must be finite"),
        (lambda: Budget(PathCost(RAGGED), 4), "limit must be a number that the cheapest path, 4.5, is within, got 4"),
        (lambda: Budget(PathCost(RAGGED), float("nan")), "limit must be a number"),
        (
            lambda: Budget(PathCost(RAGGED), 9).project(advnas_ext.AdvantageEstimator(3, 3)),
            r"costs must be of 3 edges with \[3, 3, 3\] operations, got \[3, 1, 2\]",
        ),
        (
            lambda: Budget(PathCost([[1.0, 2.0]] * 3), 9).project(advnas_ext.RandomEstimator(3, 2)),
            "RandomEstimator draws the same paths whatever the logits",
        ),
        (lambda: PathCost({"a": [1.0], "c": [2.0]}).ordered(["a", "b"]), r"differs in \['b', 'c'\]"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
