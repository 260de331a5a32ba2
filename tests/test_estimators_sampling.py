"""The paths that estimators draw, the temperatures of their schedules, and what they do to the logits after a step."""

import itertools
import math

import pytest
import torch
from scipy import stats

from advnas_ext import (
    ESTIMATORS,
    AdvantageEstimator,
    DartsEstimator,
    GdasEstimator,
    NaspEstimator,
    ParsecEstimator,
    ProxylessEstimator,
    RandomEstimator,
    ReinforceEstimator,
    SnasEstimator,
)

DRAWS = 2000
LOGITS = torch.tensor([[0.0, 1.0, -0.5, 0.4], [2.0, 0.0, 0.0, -1.0]])
RANDOM = ["advantage", "reinforce", "parsec", "gdas", "proxyless", "snas", "random"]


def make(name, **settings):
    estimator = ESTIMATORS[name](2, 4, **{"total_steps": 10, **settings})
    estimator.logits.data.copy_(LOGITS)
    return estimator


def assert_frequencies(events, probabilities):
    """Chi-square test: ``events`` come with these ``probabilities``. The seeds are fixed, so this passes always or never."""
    assert set(events) <= set(probabilities)
    observed = [events.count(event) for event in probabilities]
    expected = [len(events) * p for p in probabilities.values()]
    assert stats.chisquare(observed, expected).pvalue > 0.01


def draw(estimator, draws=DRAWS):
    generator = torch.Generator().manual_seed(0)
    return [estimator.sample(generator) for _ in range(draws)]


@pytest.mark.parametrize(
    "estimator",
    [AdvantageEstimator, ReinforceEstimator, ParsecEstimator, GdasEstimator, SnasEstimator, RandomEstimator],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies_of_the_operations(estimator, dtype):
    made = estimator(2, 4, total_steps=10, dtype=dtype)
    made.logits.data.copy_(LOGITS)
    paths = draw(made)
    if estimator is SnasEstimator:
        ops = torch.stack([path.gates.argmax(1) for path in paths])
    else:
        ops = torch.stack([path.ops[:, 0] for path in paths])
    p = torch.full((2, 4), 0.25) if estimator is RandomEstimator else LOGITS.double().softmax(1)
    for edge in range(2):
        assert_frequencies(ops[:, edge].tolist(), dict(enumerate(p[edge].tolist())))
    joint = {(i, j): (p[0, i] * p[1, j]).item() for i in range(4) for j in range(4)}
    assert_frequencies([tuple(row) for row in ops.tolist()], joint)  # the edges are independent


def test_frequencies_of_proxyless_pairs_and_active_operations():
    p = LOGITS.double().softmax(1)
    paths = draw(make("proxyless"))
    for edge in range(2):
        q = p[edge].tolist()
        expected = {}
        for i, j in itertools.permutations(range(4), 2):
            pair = q[i] * q[j] * (1 / (1 - q[i]) + 1 / (1 - q[j]))  # drawn in either order, without replacement
            expected[i, j] = pair * q[i] / (q[i] + q[j])
        assert_frequencies([tuple(path.ops[edge].tolist()) for path in paths], expected)


@pytest.mark.parametrize("kind", [GdasEstimator, SnasEstimator])
def test_gumbel_noise_of_relaxed_weights(kind):
    """The difference of two Gumbel variables has the logistic distribution."""
    estimator = kind(1, 2, total_steps=10, dtype=torch.float64)
    estimator.logits.data.copy_(torch.tensor([[0.3, -0.4]]))
    estimator.step.fill_(3)
    logs = torch.stack([path.weights[0].log() * path.temperature for path in draw(estimator)])
    differences = (logs[:, 0] - logs[:, 1] - 0.7).tolist()
    assert stats.kstest(differences, "logistic").pvalue > 0.01


def test_frequencies_of_nasp_among_equal_logits():
    estimator = NaspEstimator(2, 4)
    estimator.logits.data.copy_(torch.tensor([[0.5, 0.2, 0.5, 0.5], [1.0, 0.0, 1.0, 0.3]]))
    picked = [tuple(path.gates.argmax(1).tolist()) for path in draw(estimator)]
    assert_frequencies(picked, dict.fromkeys(itertools.product((0, 2, 3), (0, 2)), 1 / 6))


@pytest.mark.parametrize("name", RANDOM)
def test_the_generator_decides(name):
    def values(seed):
        generator = torch.Generator().manual_seed(seed)
        estimator = make(name)
        return [torch.cat([p.ops, p.gates], 1) for p in (estimator.sample(generator) for _ in range(20))]

    assert all(torch.equal(a, b) for a, b in zip(values(3), values(3), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(values(3), values(4), strict=True))

    torch.manual_seed(7)
    state = torch.get_rng_state()
    make(name).sample(torch.Generator())
    assert torch.equal(state, torch.get_rng_state()), "a generator leaves the global one alone"
    make(name).sample()
    assert not torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "name, gates",
    [
        *((name, [[1], [1]]) for name in ("advantage", "reinforce", "parsec", "gdas", "random")),
        ("proxyless", [[1, 0], [1, 0]]),
        ("darts", LOGITS.softmax(1).tolist()),
        ("nasp", [[0, 1, 0, 0], [1, 0, 0, 0]]),
    ],
)
def test_gates(name, gates):
    path = make(name).sample()
    torch.testing.assert_close(path.gates.detach(), torch.tensor(gates, dtype=torch.float32))


def test_snas_gates_are_the_weights():
    path = make("snas").sample()
    torch.testing.assert_close(path.gates.sum(1), torch.ones(2))
    assert torch.equal(path.gates, path.weights)
    assert not path.weights.requires_grad
    assert 0 < path.gates.min() < path.gates.max() < 1


@pytest.mark.parametrize("name", ["darts", "snas", "nasp"])
def test_dense_paths_run_every_operation(name):
    assert make(name).sample().ops.tolist() == [[0, 1, 2, 3]] * 2


def test_gdas_picks_the_largest_weight():
    for path in draw(make("gdas"), 50):
        assert torch.equal(path.ops[:, 0], path.weights.argmax(1))


@pytest.mark.parametrize("unpicked", ["zero", "sum"])
def test_gdas_offsets(unpicked):
    offsets = make("gdas", unpicked=unpicked).sample().offsets
    if unpicked == "zero":
        assert offsets is None
    else:
        assert offsets.tolist() == [0, 0]
        assert offsets.requires_grad


def temperatures(estimator, steps):
    values = []
    for _ in range(steps):
        path = estimator.sample()
        assert path.temperature == estimator.temperature
        values.append(path.temperature)
        estimator.after_step(path)
    return values


def test_gdas_temperature_falls_linearly_from_10_to_a_tenth():
    values = temperatures(GdasEstimator(2, 3, total_steps=4), 7)
    assert values == pytest.approx([10, 7.525, 5.05, 2.575, 0.1, 0.1, 0.1])


def test_snas_temperature_falls_as_a_cosine_and_stays_above_0():
    values = temperatures(SnasEstimator(2, 3, total_steps=4), 7)
    half = (1 + math.cos(math.pi / 4)) / 2, (1 + math.cos(3 * math.pi / 4)) / 2
    assert values == pytest.approx([1, half[0], 0.5, half[1], half[1], half[1], half[1]])


@pytest.mark.parametrize("kind", [GdasEstimator, SnasEstimator])
def test_only_after_step_moves_the_temperature(kind):
    estimator = kind(2, 3, total_steps=4)
    start = estimator.temperature
    for _ in range(3):
        path = estimator.sample()
        path.gates.grad = torch.ones_like(path.gates)
        estimator.assign_grad(path, 1.0)
    assert estimator.temperature == start
    estimator.after_step(path)
    assert estimator.temperature < start


@pytest.mark.parametrize("total_steps", [0, 1, 10**9])
def test_temperatures_of_extreme_schedules(total_steps):
    for estimator in (GdasEstimator(2, 3, total_steps=total_steps), SnasEstimator(2, 3, total_steps=total_steps)):
        for done in (0, total_steps - 1, total_steps, total_steps + 1):
            estimator.step.fill_(max(done, 0))
            path = estimator.sample()
            assert path.temperature > 0
            assert path.weights.isfinite().all()


@pytest.mark.parametrize("kind", [GdasEstimator, SnasEstimator])
def test_schedules_need_total_steps(kind):
    with pytest.raises(ValueError, match="total_steps, the architecture steps of the whole search, must be an integer"):
        kind(2, 3)


def test_a_path_keeps_its_temperature_and_noise():
    """The gradient of an old path does not depend on what was drawn or annealed since."""
    gradients = []
    for between in (False, True):
        estimator = make("gdas", total_steps=5)
        path = estimator.sample(torch.Generator().manual_seed(1))
        path.gates.grad = torch.tensor([[1.0], [-2.0]])
        if between:
            estimator.after_step(estimator.sample())
        estimator.assign_grad(path, 0.0)
        gradients.append(estimator.logits.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().min() > 0


def stepped(estimator, optimizer, seed):
    """One architecture step with random gradients of the gates; returns the path."""
    generator = torch.Generator().manual_seed(seed)
    path = estimator.sample(generator)
    path.gates.grad = torch.randn(path.gates.shape, generator=generator, dtype=path.gates.dtype)
    estimator.assign_grad(path, 0.0)
    optimizer.step()
    estimator.after_step(path)
    return path


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.999)])
def test_proxyless_keeps_the_probability_of_the_others(betas):
    """Also with momentum and weight decay, which move the logits of operations that were not drawn."""
    estimator = make("proxyless", dtype=torch.float64)
    optimizer = torch.optim.Adam([estimator.logits], lr=0.3, betas=betas, weight_decay=0.1)
    for seed in range(10):
        before = estimator.probabilities()
        pair = stepped(estimator, optimizer, seed).ops
        after = estimator.probabilities()
        others = torch.ones_like(before).scatter(1, pair, 0).bool()
        torch.testing.assert_close(after[others], before[others], rtol=1e-12, atol=0)
        torch.testing.assert_close(after.gather(1, pair).sum(1), before.gather(1, pair).sum(1), rtol=1e-12, atol=0)
        assert (after - before).gather(1, pair).abs().min() > 1e-4


def test_proxyless_keeps_the_optimizers_ratio_within_the_pair():
    estimator = make("proxyless", dtype=torch.float64)
    path = estimator.sample(torch.Generator().manual_seed(0))
    path.gates.grad = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=torch.float64)
    estimator.assign_grad(path, 0.0)
    target = LOGITS.double() - 0.1 * estimator.logits.grad
    torch.optim.SGD([estimator.logits], lr=0.1).step()
    estimator.after_step(path)
    torch.testing.assert_close(
        estimator.logits.detach().gather(1, path.ops).diff(), target.gather(1, path.ops).diff(), rtol=1e-12, atol=0
    )


def test_proxyless_without_a_step_in_between_changes_nothing():
    estimator = make("proxyless")
    estimator.after_step(estimator.sample())
    assert torch.equal(estimator.logits, LOGITS)
    stepped(estimator, torch.optim.SGD([estimator.logits], lr=0.1), 0)
    logits = estimator.logits.detach().clone()
    estimator.after_step(estimator.sample())
    assert torch.equal(estimator.logits, logits)


def test_nasp_stays_in_the_box():
    estimator = NaspEstimator(2, 3)
    estimator.logits.data.copy_(torch.tensor([[-0.1, 0.5, 1.3], [0.0, 1.0, 2.0]]))
    estimator.after_step(estimator.sample())
    torch.testing.assert_close(estimator.logits.detach(), torch.tensor([[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]]))


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"proxyless", "nasp"}))
def test_the_others_leave_the_logits_alone_after_a_step(name):
    estimator = make(name)
    estimator.after_step(estimator.sample())
    assert torch.equal(estimator.logits, LOGITS)


def test_darts_draws_no_random_numbers():
    state = torch.get_rng_state()
    DartsEstimator(2, 3).sample()
    assert torch.equal(state, torch.get_rng_state())


def test_nasp_draws_among_equal_logits_and_takes_the_largest():
    estimator = NaspEstimator(1, 3)
    drawn = {int(estimator.sample(torch.Generator().manual_seed(seed)).gates.argmax()) for seed in range(40)}
    assert drawn == {0, 1, 2}
    estimator.logits.data[0, 1] = 0.5
    assert all(int(estimator.sample().gates.argmax()) == 1 for _ in range(20))


def test_proxyless_with_two_operations_always_draws_both():
    estimator = ProxylessEstimator(3, 2)
    assert all(sorted(row) == [0, 1] for row in estimator.sample().ops.tolist())
