"""OnePathChoice and Search: somebody's own model becomes a search."""

import copy
import io
import itertools
import warnings

import pytest
import torch
from torch import nn

import advnas_ext
from advnas_ext import (
    ESTIMATORS,
    AdvantageEstimator,
    GdasEstimator,
    OnePathChoice,
    RandomEstimator,
    Search,
    SwapEstimator,
)
from advnas_ext.choice import path_of

ONE_PICK = [name for name in sorted(ESTIMATORS) if ESTIMATORS[name](1, 2, total_steps=9).picks == 1]


class Shifted(nn.Module):
    """What a candidate needs: an output of its own."""

    def __init__(self, shift):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, x):
        return torch.tanh(x + self.weight)


class Elastic(nn.Module):
    """A linear layer of which the first rows run, and zeros stand for the others."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.width = width

    def forward(self, x):
        rows = self.width.value
        return self.width.gate(
            nn.functional.pad(nn.functional.linear(x, self.linear.weight[:rows]), (0, 4 - rows)), baseline=x
        )


class Model(nn.Module):
    """A choice among modules, one with another inside, values, and a shared decision."""

    def __init__(self):
        super().__init__()
        self.first = OnePathChoice(
            [Shifted(-1), Shifted(1), nn.Sequential(OnePathChoice([Shifted(2), Shifted(3)], name="inner"))]
        )
        self.second = OnePathChoice([Shifted(0.5), nn.Identity()], name="shared", baseline=None)
        self.third = OnePathChoice([Shifted(0.1), nn.Identity()], name="shared", baseline=None)
        self.elastic = Elastic(OnePathChoice(values=[1, 2, 4], name="width"))

    def forward(self, x):
        return self.elastic(self.third(self.second(self.first(x))))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def by_hand(model, places, x=X):
    """The network of some places, without any choice."""
    first, inner = model.first.candidates[places["first"]], model.first.candidates[2][0]
    h = inner.candidates[places["inner"]](x) if places["first"] == 2 else first(x)
    for choice in (model.second, model.third):
        h = choice.candidates[places["shared"]](h)
    rows = (1, 2, 4)[places["width"]]
    return nn.functional.pad(nn.functional.linear(h, model.elastic.linear.weight[:rows]), (0, 4 - rows))


def every_place():
    sizes = {"first": 3, "inner": 2, "shared": 2, "width": 3}
    for picked in itertools.product(*map(range, sizes.values())):
        yield dict(zip(sizes, picked, strict=True))


def test_finds_the_decisions():
    model = Model()
    search = Search(model)
    assert list(search.choices) == ["first", "inner", "shared", "width"]
    assert search.choices["shared"] == [model.second, model.third]
    assert search.logits.shape == (4, 3)
    assert isinstance(search.estimator, AdvantageEstimator)
    assert {id(p) for p in search.parameters()} == {id(p) for p in model.parameters()}
    assert "num_ops=[3, 2, 2, 3]" in repr(search.estimator)


@pytest.mark.parametrize("places", list(every_place()), ids=lambda places: "".join(map(str, places.values())))
def test_runs_what_the_path_says_and_fixes_it(places):
    model = Model()
    search = Search(model)
    search.follow(places)
    expected = by_hand(model, places)
    assert torch.equal(model(X), expected)
    fixed = search.fix(places)
    assert torch.equal(fixed(X), expected)
    assert not any(isinstance(module, OnePathChoice) for module in fixed.modules())
    assert any(isinstance(module, OnePathChoice) for module in model.modules())
    again = fixed.state_dict()
    assert all(any(torch.equal(value, mine) for mine in model.state_dict().values()) for value in again.values())


def test_only_what_was_active_has_an_advantage():
    model = Model()
    search = Search(model)
    seen = set()
    for seed in range(40):
        path = search.sample(torch.Generator().manual_seed(seed))
        loss = model(X).square().sum()
        search.backward(loss)
        assert path.active.tolist() == [True, path.ops[0].item() == 2, True, True]
        search.assign_grad(loss)
        assert search.logits.grad[1].any() == path.active[1]
        assert all(parameter.grad is None for parameter in model.parameters())
        seen.add(path.active[1].item())
    assert seen == {True, False}


def test_advantage_against_finite_differences():
    """The gate's gradient is that of g op(x) + (1 - g) baseline at g = 1: of both places of a shared decision together."""
    torch.manual_seed(0)
    model = Model().double()
    search, x = Search(model, dtype=torch.float64), X.double()
    path = search.sample(torch.Generator().manual_seed(1))
    search.backward(model(x).square().sum())
    places = dict(zip(search.choices, path.ops[:, 0].tolist(), strict=True))

    def loss(g_first, g_shared, g_width):
        h = model.first.candidates[places["first"]](x) if places["first"] < 2 else None
        assert h is not None, "take another seed"
        h = g_first * h + (1 - g_first) * x
        for choice in (model.second, model.third):
            h = g_shared * choice.candidates[places["shared"]](h)
        rows = (1, 2, 4)[places["width"]]
        y = nn.functional.pad(nn.functional.linear(h, model.elastic.linear.weight[:rows]), (0, 4 - rows))
        return (g_width * y + (1 - g_width) * h).square().sum()

    for place, edge in enumerate((0, 2, 3)):
        low, high = [1.0] * 3, [1.0] * 3
        low[place] -= 1e-6
        high[place] += 1e-6
        numeric = (loss(*high) - loss(*low)) / 2e-6
        torch.testing.assert_close(path.gates.grad[edge, 0], numeric.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_every_estimator_learns_a_model_of_modules(name):
    """The second candidate of each choice doubles the distance from the target."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(OnePathChoice([Shifted(0), Shifted(4), Shifted(-4)][: 2 + place % 2]) for place in range(3))
    )
    search = Search(model, ESTIMATORS[name], total_steps=300)
    optimizer = torch.optim.Adam([search.logits], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        search.sample(generator)
        loss = (model(0.3 * X) - 0.2 * X).square().mean()
        if search.estimator.needs_gate_gradients:
            search.backward(loss)
        search.assign_grad(loss)
        optimizer.step()
        search.after_step()
    if search.estimator.learns:
        found = search.export()
        losses = []
        for picked in itertools.product(range(2), range(3), range(2)):
            search.follow(dict(zip(found, picked, strict=True)))
            losses.append((model(0.3 * X) - 0.2 * X).square().mean().item())
        search.follow(found)
        assert (model(0.3 * X) - 0.2 * X).square().mean().item() <= sorted(losses)[
            2 if name in ("nasp", "parsec") else 0
        ]


@pytest.mark.parametrize("name", ONE_PICK)
def test_estimators_of_one_pick_take_values(name):
    torch.manual_seed(0)
    model = Elastic(OnePathChoice(values=[1, 2, 4]))
    search = Search(model, ESTIMATORS[name], total_steps=10, **({"unpicked": "sum"} if name == "gdas" else {}))
    for _ in range(10):
        search.sample()
        loss = model(X).square().sum()
        search.backward(loss)
        search.assign_grad(loss)
        search.after_step()
    assert search.export().keys() == {"width"}


class Stacked(nn.Module):
    """Two cells that share the decisions of their edges, which are choices of this model."""

    def __init__(self, baseline):
        super().__init__()
        self.edges = nn.ModuleList(OnePathChoice(values=range(5), name=f"edge{i}") for i in range(6))
        self.first, self.second = (advnas_ext.OnePathCell(4, affine=True, baseline=baseline) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x, path_of(self.edges)), path_of(self.edges))


@pytest.mark.parametrize("baseline", ["input", None])
def test_a_cell_takes_the_path_of_some_choices(baseline):
    torch.manual_seed(0)
    model = Stacked(baseline).double()
    search = Search(model, GdasEstimator, total_steps=9, unpicked="sum", dtype=torch.float64)
    x = torch.randn(2, 4, 6, 6, dtype=torch.double)
    path = search.sample(torch.Generator().manual_seed(2))
    loss = model(x).square().sum()
    search.backward(loss)
    other = advnas_ext.Path(
        path.ops, path.gates.detach().requires_grad_(), torch.zeros(6, dtype=torch.double, requires_grad=True)
    )
    model.second(model.first(x, other), other).square().sum().backward()
    assert torch.equal(path.gates.grad, other.gates.grad)
    assert torch.equal(path.offsets.grad, other.offsets.grad)
    assert path.active.all()
    search.assign_grad(loss)
    assert path_of(model.edges) is path_of(list(model.edges))
    search.sample(gates=False)
    assert not path_of(model.edges).gates.requires_grad


def test_a_path_of_no_choices():
    with pytest.raises(ValueError, match="path_of: needs at least one choice, got none"):
        path_of([])
    with pytest.raises(RuntimeError, match="there is no path; make a Search"):
        path_of(Stacked(None).edges)


def test_state_round_trip():
    torch.manual_seed(0)
    search = Search(Model())
    search.logits.data.normal_()
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    file.seek(0)
    other = Search(Model())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.logits, search.logits)
    assert other.export() == search.export()
    assert torch.equal(other.fix()(X), search.fix()(X))
    with pytest.raises(
        ValueError, match=r"the state is of the decisions \{'first': 3, .*, and these are \{'choice': 2\}"
    ):
        Search(OnePathChoice([Shifted(0), Shifted(1)])).load_state_dict(search.state_dict())


def test_a_copy_follows_the_same_path_and_a_pickle_none():
    model = Model()
    search = Search(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    path = search.sample(torch.Generator().manual_seed(3))
    assert torch.equal(average(X), model(X))
    average(X).sum().backward()
    assert path.gates.grad is not None
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with pytest.raises(RuntimeError, match="there is no path; make a Search of the model"):
        torch.load(file, weights_only=False)(X)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), model(X))


def test_a_weight_step_computes_no_advantage():
    model = Model()
    search = Search(model)
    path = search.sample(gates=False)
    loss = model(X).sum()
    loss.backward()
    assert path.gates.grad is None
    assert model.elastic.linear.weight.grad is not None
    with pytest.raises(RuntimeError, match=r"Search.assign_grad: there is no path with gates; call sample\(\) first"):
        search.assign_grad(loss)


def test_a_baseline_is_needed_where_advantages_are_collected():
    model = Model()
    with pytest.raises(RuntimeError, match="there is no path; make a Search"):
        _ = model.first.needs_baseline
    search = Search(model)
    search.sample()
    assert model.first.needs_baseline
    assert model.elastic.width.needs_baseline
    search.sample(gates=False)
    assert not model.first.needs_baseline
    assert not model.elastic.width.needs_baseline
    search.sample()
    search.follow(search.export())
    assert not model.first.needs_baseline


def test_a_zero_operation_of_a_choice():
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    model = nn.Sequential(OnePathChoice([Nothing(), Shifted(1)], zero_op=0), OnePathChoice([Shifted(0), Shifted(1)]))
    search = Search(model)
    assert search.estimator.zero_op == [0, None]


class Blind(nn.Module):
    def __init__(self, baseline):
        super().__init__()
        self.op = OnePathChoice([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)], name="conv", baseline=baseline)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.op(x)).tanh().square().mean()


@pytest.mark.parametrize("baseline", ["input", None])
def test_warns_once_where_the_loss_is_blind_to_an_edge(baseline):
    torch.manual_seed(0)
    model = Blind(baseline)
    search = Search(model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(40):
            search.sample()
            search.backward(model(torch.randn(4, 3, 6, 6)))
    messages = [str(warning.message) for warning in seen if "will not learn" in str(warning.message)]
    assert len(messages) == (baseline is None)
    assert all("choice 'conv'" in message and 'baseline="input"' in message for message in messages)


def test_a_dead_output_is_no_reason_to_warn():
    model = nn.Sequential(OnePathChoice([nn.ReLU(), nn.ReLU()], name="dead", baseline=None))
    search = Search(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            search.sample()
            search.backward(model(-X.abs()).sum())


def test_compiles_with_a_graph_for_each_candidate():
    """Not one for each path."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = nn.Sequential(*(OnePathChoice([Shifted(0), Shifted(1), Shifted(2)]) for _ in range(4)))
    search = Search(model)
    compiled = torch.compile(model, backend=backend)
    counts = []
    for seed in range(40):
        path = search.sample(torch.Generator().manual_seed(seed))
        outputs = compiled(X), model(X)
        assert torch.equal(*outputs)
        compared, expected = (torch.autograd.grad(y.square().sum(), path.gates)[0] for y in outputs)
        assert torch.equal(compared, expected)
        assert expected.all()
        counts.append(len(graphs))
    assert counts[19] == counts[-1] <= 2 * 12


def test_autocast_and_gradient_scaling():
    torch.manual_seed(0)
    model = nn.Sequential(OnePathChoice([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Tanh())
    search = Search(model)
    grads = []
    for scale in (1.0, 65536.0):
        search.sample(torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(X).float().square().sum()
        search.backward(loss * scale)
        search.assign_grad(loss, scale=scale)
        grads.append(search.logits.grad)
    assert grads[0].all()
    torch.testing.assert_close(grads[0], grads[1])


def test_says_what_was_expected():
    with pytest.raises(ValueError, match="the model holds no OnePathChoice"):
        Search(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="give either modules or values"):
        OnePathChoice([nn.Identity()], values=[1])
    with pytest.raises(ValueError, match="needs at least one candidate"):
        OnePathChoice([])
    with pytest.raises(ValueError, match=r'baseline must be "input" or None, got \'mean\''):
        OnePathChoice([nn.Identity()], baseline="mean")
    with pytest.raises(RuntimeError, match="there is no path; make a Search"):
        OnePathChoice([nn.Identity()])(X)
    pair = nn.ModuleList([OnePathChoice([nn.Identity()] * 2, name="a"), OnePathChoice([nn.Identity()] * 3, name="a")])
    with pytest.raises(
        ValueError, match=r"choices named 'a' must have as many candidates .* got .*\[\(2, None\), \(3, None\)\]"
    ):
        Search(pair)
    with pytest.raises(
        ValueError,
        match="SwapEstimator runs 2 candidates of a decision at a time, and the choices width are among values",
    ):
        Search(Model(), SwapEstimator)
    model = Model()
    search = Search(model)
    search.sample()
    with pytest.raises(RuntimeError, match="no choice of the model ran on this path"):
        search.assign_grad(1.0)
    with pytest.raises(RuntimeError, match=r"'width': it is among values; read \.value"):
        model.elastic.width(X)
    with pytest.raises(RuntimeError, match="'first': it is among modules; call it"):
        _ = model.first.value
    search.sample()
    assert model.elastic.width.value in (1, 2, 4)
    with pytest.raises(ValueError, match=r"the value of width was read, and nothing .* went through its gate\(\)"):
        search.assign_grad(1.0)
    with pytest.raises(
        ValueError, match=r"places must name the decisions .* differs in \['first', 'inner', 'shared'\]"
    ):
        search.follow({"width": 0})
    with pytest.raises(ValueError, match="width must be from 0 to 2, got 3"):
        search.follow({"first": 0, "inner": 0, "shared": 0, "width": 3})
    pairs = OnePathChoice([nn.LSTM(4, 4), nn.LSTM(4, 4)], name="rnn")
    Search(pairs).sample()
    with pytest.raises(TypeError, match=r"'rnn': candidate [01] must return a tensor, got tuple"):
        pairs(X)


def test_the_random_estimator_needs_no_gate():
    model = Model()
    search = Search(model, RandomEstimator)
    search.sample()
    model.elastic.width.value  # noqa: B018
    search.assign_grad(1.0)
    assert advnas_ext.Search is Search


class TwoOfFour(nn.Module):
    """Adds up two of its four inputs."""

    def __init__(self):
        super().__init__()
        self.pick = OnePathChoice(values=list(itertools.combinations(range(4), 2)), name="inputs")

    def forward(self, inputs):
        return self.pick.gate(sum(inputs[place] for place in self.pick.value))


@pytest.mark.parametrize("name", ["advantage", "reinforce"])
def test_some_of_many_against_enumeration(name):
    """Where the loss is linear the mean over all subsets is the exact gradient."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(4, 5, dtype=torch.double), torch.randn(5, dtype=torch.double)
    logits = torch.randn(1, 6, dtype=torch.double)
    losses = torch.stack([(inputs[a] + inputs[b]) @ weight for a, b in itertools.combinations(range(4), 2)])
    p = torch.softmax(logits, 1)
    exact = p * (losses - (p * losses).sum())
    mean, seen = torch.zeros_like(logits), set()
    for seed in range(200):
        model = TwoOfFour()
        settings = {"coefficient": 1e-12} if name == "reinforce" else {}
        search = Search(model, ESTIMATORS[name], dtype=torch.float64, **settings)
        search.estimator.logits.data.copy_(logits)
        path = search.sample(torch.Generator().manual_seed(seed))
        if path.ops.item() in seen:
            continue
        seen.add(path.ops.item())
        loss = model(inputs) @ weight
        if name == "reinforce":  # its baseline begins with the first loss
            search.estimator.assign_grad(path, torch.tensor(0.0, dtype=torch.double))
        search.backward(loss)
        search.assign_grad(loss)
        mean += p[0, path.ops.item()] * search.estimator.logits.grad
    assert len(seen) == 6
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-9)
