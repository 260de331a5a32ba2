"""The critic's estimate, against its definition and by enumeration."""

import copy
import itertools

import pytest
import torch
from torch.nn.functional import one_hot

from advnas_ext import CriticEstimator, Path, RlooEstimator

EDGES, OPS = 3, 3
GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(EDGES, OPS, generator=GENERATOR, dtype=torch.float64)
LOSSES = torch.randn(OPS, OPS, OPS, generator=GENERATOR, dtype=torch.float64)  # of every path: nothing adds up
SINGLE = torch.randn(EDGES, OPS, generator=GENERATOR, dtype=torch.float64)
PATHS = [torch.tensor(ops) for ops in itertools.product(range(OPS), repeat=EDGES)]


def critic(**settings):
    estimator = CriticEstimator(EDGES, OPS, dtype=torch.float64, **settings)
    estimator.logits.data.copy_(LOGITS)
    return estimator


def loss_of(ops):
    return LOSSES[tuple(ops.tolist())]


def additive(ops):
    return 2.5 + SINGLE[torch.arange(EDGES), ops].sum()


def step(estimator, paths, loss=loss_of, active=None):
    """One gradient from so many paths as the estimator takes."""
    for ops in paths:
        path = Path.from_ops(ops, dtype=torch.float64)
        path.active = active
        estimator.assign_grad(path, loss(ops))
    return estimator.logits.grad


def teach(estimator, count, loss=loss_of):
    """The losses of random paths."""
    for ops in torch.randint(OPS, (count, EDGES), generator=torch.Generator().manual_seed(1)):
        step(estimator, [ops], loss)
    assert estimator.collected == 0
    return estimator


def probability(ops):
    return LOGITS.softmax(1)[torch.arange(EDGES), ops].prod()


def exact(loss):
    logits = LOGITS.clone().requires_grad_()
    expected = sum(logits.softmax(1)[torch.arange(EDGES), ops].prod() * loss(ops) for ops in PATHS)
    return torch.autograd.grad(expected, logits)[0]


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("taught", [0, 4, 60])
def test_it_is_unbiased_whatever_the_critic_knows(num_samples, taught):
    total, known = 0, teach(critic(num_samples=num_samples), taught)
    for paths in itertools.product(PATHS, repeat=num_samples):
        estimator = copy.deepcopy(known)
        chance = torch.stack([probability(ops) for ops in paths]).prod()
        total += chance * step(estimator, paths)
    torch.testing.assert_close(total, exact(loss_of), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_where_the_loss_adds_up_a_critic_that_knows_it_leaves_no_noise(num_samples):
    estimator = teach(critic(num_samples=num_samples, window=1e9, ridge=1e-9), 60, additive)
    for ops in torch.randint(OPS, (5, num_samples, EDGES), generator=torch.Generator().manual_seed(7)):
        torch.testing.assert_close(step(estimator, list(ops), additive), exact(additive), rtol=1e-6, atol=1e-7)


def test_the_critic_is_the_penalised_least_squares_fit():
    estimator = critic(num_samples=1, window=20.0, ridge=0.3)
    paths = torch.randint(OPS, (30, EDGES), generator=torch.Generator().manual_seed(2))
    for ops in paths:
        step(estimator, [ops])
    x = torch.cat([torch.ones(30, 1, dtype=torch.float64), one_hot(paths, OPS).flatten(1).double()], 1)
    weight = torch.exp(-torch.arange(29, -1, -1, dtype=torch.float64) / 20).sqrt()[:, None]
    penalty = torch.eye(x.shape[1], dtype=torch.float64)[1:] * 0.3**0.5
    losses = torch.stack([loss_of(ops) for ops in paths])[:, None]
    rows = torch.cat([weight * x, penalty]), torch.cat([weight * losses, torch.zeros(len(penalty), 1).double()])
    torch.testing.assert_close(estimator._critic(), torch.linalg.lstsq(*rows).solution[:, 0])


def test_before_the_first_path_it_is_the_leave_one_out_estimate():
    paths = [torch.tensor(ops) for ops in ([0, 1, 2], [2, 1, 0], [0, 0, 1])]
    other = RlooEstimator(EDGES, OPS, num_samples=3, stratified=False, dtype=torch.float64)
    other.logits.data.copy_(LOGITS)
    torch.testing.assert_close(step(critic(num_samples=3), paths), step(other, paths))


def test_what_a_batch_adds_to_all_losses_makes_no_difference():
    paths = [torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0])]
    one, other = (teach(critic(num_samples=2), 40) for _ in range(2))
    torch.testing.assert_close(step(other, paths, lambda ops: loss_of(ops) + 7), step(one, paths))


def test_an_idle_edge_has_no_gradient_and_the_others_stay_unbiased():
    """Edge 2 takes part in the loss where edge 0 picks operation 0."""

    def nested(ops):
        return SINGLE[0, ops[0]] + SINGLE[1, ops[1]] + (SINGLE[2, ops[2]] if ops[0] == 0 else 0)

    total = 0
    for ops in PATHS:
        estimator = teach(critic(num_samples=1), 50, nested)
        active = torch.tensor([True, True, bool(ops[0] == 0)])
        gradient = step(estimator, [ops], nested, active)
        assert active[2] or not gradient[2].any()
        total += probability(ops) * gradient
    torch.testing.assert_close(total, exact(nested), rtol=1e-9, atol=1e-11)


def test_it_needs_no_gradients_of_gates_and_all_its_paths_on_one_batch():
    assert not CriticEstimator.needs_gate_gradients
    assert CriticEstimator(2, 3, num_samples=4).paths_per_batch == 4
    assert CriticEstimator(2, 3, num_samples=1).paths_per_batch == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_samples": 0}, "num_samples must be an integer >= 1, got 0"),
        ({"window": 0.0}, "window must be a number above 0, got 0.0"),
        ({"window": float("inf")}, "window must be a number above 0, got inf"),
        ({"ridge": -1.0}, "ridge must be a number above 0, got -1.0"),
    ],
)
def test_bad_settings_say_so(settings, message):
    with pytest.raises(ValueError, match=f"CriticEstimator: {message}"):
        CriticEstimator(2, 3, **settings)


def test_it_learns_with_one_path_a_step_what_is_best():
    estimator = CriticEstimator(EDGES, OPS, num_samples=1)
    optimizer = torch.optim.Adam([estimator.logits], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        path = estimator.sample(generator)
        noise = torch.randn((), generator=generator)
        estimator.assign_grad(path, float(additive(path.ops[:, 0]) + 0.3 * noise))
        optimizer.step()
    assert torch.equal(estimator.argmax(), SINGLE.argmin(1))
