"""Choices and searches where they could be wrong without a word: several batches, work in place, parts of paths, copies."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from torch import nn

from advnas_ext import (
    AdvantageEstimator,
    Budget,
    DartsEstimator,
    NaspEstimator,
    OnePathChoice,
    PathCost,
    RandomEstimator,
    ReinforceEstimator,
    RlooEstimator,
    Search,
)
from advnas_ext.choice import path_of

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(
        OnePathChoice([nn.Linear(4, 4), nn.Tanh(), nn.Identity()]), OnePathChoice([nn.Tanh(), nn.Linear(4, 4)])
    )


def test_several_batches_on_one_path_count_once_each():
    model = two_layers()
    search = Search(model)
    parts = X[:2], X[2:]

    def gradient(batches):
        search.sample(seeded(3))
        search.logits.grad = None
        for batch in batches:
            loss = sum(model(x).square().sum() for x in batch)
            search.backward(loss)
            search.assign_grad(loss, accumulate=True)
        return search.logits.grad

    whole = gradient([parts])
    assert whole.any()
    torch.testing.assert_close(gradient([[part] for part in parts]), whole)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_budget_projects_the_sum_of_what_is_accumulated(order):
    """Not term by term: a projection that takes out one direction alone is not linear."""
    model = nn.Sequential(OnePathChoice([nn.Identity(), nn.Identity()]))
    search = Search(model, budget=Budget(PathCost([[1.0, 3.0]]), 2.0))
    for slope in (torch.tensor([3.0, -2.0])[place] for place in order):
        search._current.follow(search.estimator.sample(seeded(1)))
        model(X)
        search.path.gates.grad = slope.reshape(1, 1)
        search.assign_grad(1.0, accumulate=True)
    alone = AdvantageEstimator(1, 2)
    alone.logits.data.copy_(search.logits.data)
    search.path.gates.grad = torch.ones(1, 1)
    alone.assign_grad(search.path, 1.0)
    search.budget.project_grad(alone)
    torch.testing.assert_close(search.logits.grad, alone.logits.grad)


def test_after_an_error_the_accumulated_gradient_is_as_it_was():
    model = nn.Sequential(OnePathChoice([nn.Linear(4, 4), nn.Identity()]))
    search = Search(model, budget=Budget(PathCost([[1.0, 3.0]]), 2.0))
    search.sample(seeded())
    search.backward(model(X).sum())
    search.assign_grad(1.0, accumulate=True)
    before = search.logits.grad.clone()
    with pytest.raises(ValueError, match=r"path\.gates\.grad is missing"):
        search.assign_grad(1.0, accumulate=True)
    assert torch.equal(search.logits.grad, before)


def test_a_candidate_that_changes_what_is_still_needed_says_so():
    torch.manual_seed(0)
    candidates = [nn.ReLU(inplace=True), nn.ReLU(inplace=True)]
    model = nn.Sequential(nn.Linear(4, 4), OnePathChoice(candidates, name="act"))
    search = Search(model)
    search.sample()
    with pytest.raises(RuntimeError, match=r"'act': candidate [01] changes its input in place.*inplace=False"):
        model(X)
    search.sample(gates=False)
    assert (model(X) >= 0).all()  # nothing is compared
    model[1].baseline = None
    search.sample()
    assert (model(X) >= 0).all()
    several = nn.Sequential(OnePathChoice([nn.ReLU(inplace=True), nn.Identity()], name="act"))
    Search(several, DartsEstimator).sample(gates=False)
    with pytest.raises(RuntimeError, match="'act': candidate 0 changes its input in place"):
        several(X.clone())


class Parts(nn.Module):
    """A choice, and a module that takes a path of other choices."""

    def __init__(self):
        super().__init__()
        self.op = OnePathChoice([nn.Tanh(), nn.Identity()], name="op")
        self.edges = nn.ModuleList(OnePathChoice(values=(0, 1, 2), name=f"edge{i}") for i in range(3))

    def forward(self, x):
        x = self.op(x)
        path = path_of(self.edges)
        for op, gate in zip(path.ops[:, 0].tolist(), path.gates[:, 0], strict=True):
            x = (x.tanh() + op) * gate
        return x


def gates_of(search, loss):
    search.backward(loss)
    found, search.path.gates.grad = search.path.gates.grad, None
    return found


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradients_takes_none_from_the_next_one(context):
    model = Parts()
    search = Search(model)
    search.sample(seeded())
    expected = gates_of(search, model(X).square().sum())
    assert expected[1:].all()
    search.sample(seeded())
    with context():
        model(X)
    torch.testing.assert_close(gates_of(search, model(X).square().sum()), expected)


def test_a_part_of_a_path_goes_through_two_backward_passes():
    model = Parts()
    search = Search(model)
    search.sample(seeded())
    found = [gates_of(search, model(X).square().sum()) for _ in range(2)]
    torch.testing.assert_close(found[0], found[1])


def test_names_of_an_earlier_search_are_no_names():
    block = nn.Sequential(nn.Linear(4, 4), OnePathChoice([nn.Identity(), nn.Tanh()]))
    assert list(Search(block).choices) == ["1"]
    assert list(Search(nn.Sequential(block, copy.deepcopy(block))).choices) == ["0.1", "1.1"]


def test_two_searches_of_one_model_take_turns():
    model = nn.Sequential(OnePathChoice([nn.Identity(), nn.Tanh()]))
    warm, main = Search(model, RandomEstimator), Search(model)
    main.sample()
    for seed in range(10):
        path = warm.sample(seeded(seed), gates=False)
        assert torch.equal(model(X), X if path.ops.item() == 0 else X.tanh())
    main.follow({"0": 1})
    assert torch.equal(model(X), X.tanh())


def test_a_copied_search_follows_a_path_of_its_own():
    search = Search(nn.Sequential(OnePathChoice([nn.Identity(), nn.Tanh()])))
    for other in (copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        first = search.follow({"0": 0})
        other.follow({"0": 1})
        assert search.path is first
        assert torch.equal(search.model(X), X)
        assert torch.equal(other.model(X), X.tanh())
        other.logits.data += 1
    assert not search.logits.any()


class ReadsBaseline(nn.Module):
    def __init__(self):
        super().__init__()
        self.width, self.depth = (OnePathChoice(values=(1, 2), name=name) for name in ("width", "depth"))

    def forward(self, x):
        before = x if self.width.needs_baseline else None
        if self.depth.value == 2:
            x = self.width.gate(x.tanh() * self.width.value, before)
        return self.depth.gate(x)


@pytest.mark.parametrize("estimator", [AdvantageEstimator, ReinforceEstimator])
def test_to_ask_for_a_baseline_is_not_to_take_part(estimator):
    model = ReadsBaseline()
    search = Search(model, estimator)
    for seed in range(8):
        path = search.sample(seeded(seed))
        loss = model(X).square().sum()
        search.backward(loss)
        search.assign_grad(loss)
        assert path.active.tolist() == [search.path.ops[1].item() == 1, True]


# What fix() leaves


def test_a_fixed_model_is_used_as_the_supernet_was():
    parts, reads = Parts(), ReadsBaseline()
    for model, places in ((parts, {"op": 1, "edge0": 2, "edge1": 0, "edge2": 1}), (reads, {"width": 1, "depth": 1})):
        search = Search(model)
        fixed = search.fix(places)
        search.follow(places)
        assert torch.equal(fixed(X), model(X))
    assert len(Search(Parts()).fix().edges[0]) == 3


def test_a_part_of_a_path_takes_choices_of_one_kind():
    parts = Parts()
    Search(parts).sample()
    edges = Search(Parts()).fix().edges
    for others in ([parts.edges[0], edges[0]], [edges[0], nn.Identity()]):
        with pytest.raises(ValueError, match="takes choices of a search, or what fix"):
            path_of(others)


class Doubled(OnePathChoice):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_a_fixed_model_would_lose_is_refused():
    hooked = two_layers()
    hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match=r"choice '0' has hooks, which the fixed model would lose; put them on"):
        Search(hooked).fix()
    with pytest.raises(ValueError, match="choice '0' has a forward of its own"):
        Search(nn.Sequential(Doubled([nn.Identity(), nn.Tanh()]))).fix()


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = OnePathChoice([nn.Identity(), nn.Tanh()], name="a")
        self.order = [self.a]

    def forward(self, x):
        return self.order[0](x)


def test_a_choice_that_is_kept_elsewhere_does_not_follow_the_supernet():
    model = Listed()
    search = Search(model)
    search.follow({"a": 1})
    with pytest.raises(RuntimeError, match="'a': there is no path"):
        search.fix({"a": 0})(X)
    assert torch.equal(model(X), X.tanh())


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"0": 0}, r"Search\.fix: places must name the decisions \['0', '1'\], differs in \['1'\]"),
        ({"0": 5, "1": 0}, r"Search\.fix: 0 must be from 0 to 2, got 5"),
        ({"0": -1, "1": 0}, r"Search\.fix: 0 must be from 0 to 2, got -1"),
        ({"0": 0, "1": 0, "z": 3}, r"differs in \['z'\]"),
    ],
)
def test_places_that_do_not_fit(places, message):
    with pytest.raises(ValueError, match=message):
        Search(two_layers()).fix(places)


# Estimators and budgets


def test_no_warning_where_nothing_is_learnt_from_advantages():
    blind = OnePathChoice([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)], name="c")
    model = nn.Sequential(blind, nn.BatchNorm2d(4), nn.Tanh())

    def warnings_of(estimator):
        blind._watch = type(blind._watch or OnePathChoice([nn.Identity()])._watch)()
        search = Search(model, estimator)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(20):
                search.sample()
                model(torch.randn(4, 3, 5, 5)).square().mean().backward()
        return [str(warning.message) for warning in seen if "will not learn" in str(warning.message)]

    assert len(warnings_of(AdvantageEstimator)) == 1
    assert warnings_of(ReinforceEstimator) == []


def test_a_loaded_state_is_brought_within_the_budget():
    model = two_layers()
    free = Search(model)
    free.logits.data = torch.tensor([[0.0, 0.0, 3.0], [3.0, 0.0, 0.0]])
    cost = PathCost([[1.0, 1.0, 9.0], [9.0, 1.0]])
    limited = Search(model, budget=Budget(cost, 4.0))
    limited.load_state_dict(free.state_dict())
    assert cost.expected(limited.estimator.probabilities()) == pytest.approx(4.0, rel=1e-4)


def test_the_path_of_nasp_is_within_the_limit_once_its_logits_differ():
    cost = PathCost([[1.0, 9.0], [1.0, 9.0]])
    search = Search(nn.Sequential(*(OnePathChoice([nn.Identity(), nn.Tanh()]) for _ in range(2))), NaspEstimator)
    budget = Budget(cost, 10.0)
    for seed in range(20):
        search.logits.data = torch.rand(2, 2, generator=seeded(seed))
        budget.project(search.estimator)
        assert cost.of(search.estimator.argmax()) <= 10.0
        assert cost.of(search.sample(seeded(seed)).ops[:, 0]) <= 10.0


def test_a_loss_that_is_no_number_does_not_lead_to_the_same_path_for_ever():
    estimator = RlooEstimator(1, 4, num_samples=4)
    generator, drawn = seeded(), []
    for _ in range(40):
        path = estimator.sample(generator)
        drawn.append(path.ops.item())
        if drawn[-1] == 2:
            with pytest.raises(FloatingPointError, match="skip this step"):
                estimator.assign_grad(path, float("nan"))
        else:
            estimator.assign_grad(path, 1.0)
    assert max(len(list(same)) for _, same in itertools.groupby(drawn)) <= 3
