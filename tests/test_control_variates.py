"""Control variates of docs/theory.md, by listing every path of small random problems in float64.

Gradients of every path are [paths, edges, num_ops].
"""

import torch
from benchmarks.paper.expected import UPDATES, listed
from hypothesis import given
from hypothesis import strategies as st
from problems import DOUBLE, centred, equal, few, noise, normed, policy, seeds


def given_pick(paths, p, values):
    """E[values_e | a_e = k], [edges, num_ops]."""
    return paths.mean(p, paths.picks * values[:, :, None]) / p


def moments(paths, p, gradients):
    """Mean [edges, num_ops] and covariance over all entries."""
    mean, flat = paths.mean(p, gradients), gradients.flatten(1)
    return mean, paths.mean(p, flat[:, :, None] * flat[:, None, :]) - mean.flatten()[:, None] * mean.flatten()


def with_values(paths, p, q, signal):
    """p_e (q_e - <p_e, q_e>) + (signal_e - q[e, a_e]) (onehot(a_e) - p_e), for a signal [paths, edges]."""
    return centred(p, q) + (signal - (paths.picks * q).sum(2))[:, :, None] * (paths.picks - p)


def with_critic(paths, p, q, b):
    """The same with the residual of the critic L^(a) = b + sum_e q[e, a_e] for every edge."""
    residual = paths.losses - b - (paths.picks * q).sum((1, 2))
    return centred(p, q) + residual[:, None, None] * (paths.picks - p)


@few
@given(seed=seeds, edges=st.integers(1, 3), num_ops=st.integers(2, 3))
def test_values_change_no_expectation_and_the_mean_of_each_operation_is_best(seed, edges, num_ops):
    paths = normed(seed, edges, num_ops)
    p, q = policy(seed + 1, edges, num_ops), noise(seed + 2)(edges, num_ops)
    signal = paths.advantages - paths.slopes[:, :, num_ops]
    best = given_pick(paths, p, signal)
    mean, covariance = moments(paths, p, with_values(paths, p, q, signal))
    equal(mean, UPDATES["against the input"](paths, p))
    _, least = moments(paths, p, with_values(paths, p, best, signal))
    for e in range(edges):
        own = slice(e * num_ops, (e + 1) * num_ops)
        _, lost = moments(paths, p, (best - q)[None, :, :] * paths.picks @ (torch.eye(num_ops, **DOUBLE) - p[e]))
        equal(covariance[own, own] - least[own, own], lost[own, own])
        assert torch.linalg.eigvalsh(covariance[own, own] - least[own, own]).min() > -1e-9
    assert covariance.trace() > least.trace()


def test_a_constant_may_be_as_good_between_two_operations_but_it_is_not_the_average():
    """sum_k p_k |onehot(k) - p|^2 Q_k / sum_k p_k |onehot(k) - p|^2, where the average of the advantages is sum_k p_k Q_k."""
    for num_ops in (2, 3):
        paths = normed(5, 2, num_ops)
        p = policy(6, 2, num_ops)
        values = given_pick(paths, p, paths.advantages)
        weight = p * (1 - 2 * p + p.square().sum(1, keepdim=True))
        constant = ((weight * values).sum(1) / weight.sum(1))[:, None].expand_as(p)
        average = (p * values).sum(1, keepdim=True).expand_as(p)

        def noise_of(q, paths=paths, p=p):
            return moments(paths, p, with_values(paths, p, q, paths.advantages))[1].trace()

        assert noise_of(constant) < noise_of(average)
        for other in (constant + 1e-3, constant - 1e-3):
            assert noise_of(constant) < noise_of(other)
        if num_ops == 2:
            equal(constant[:, 0], p[:, 1] * values[:, 0] + p[:, 0] * values[:, 1])
            equal(noise_of(constant), noise_of(values))
        else:
            assert noise_of(values) < noise_of(constant) - 1e-6


@few
@given(seed=seeds, offset=st.floats(-10, 10))
def test_a_critic_of_the_losses_is_unbiased_whatever_it_says(seed, offset):
    paths, p = normed(seed), policy(seed + 1, 2)
    mean, _ = moments(paths, p, with_critic(paths, p, noise(seed + 2)(2, 3), offset))
    equal(mean, UPDATES["REINFORCE"](paths, p))


def test_a_critic_of_an_additive_loss_leaves_no_noise():
    draw = noise(1)
    q, p = draw(3, 3), policy(2)
    paths = listed(lambda gates: (gates * q).sum((-2, -1)) + 0.7, 3, 3, 3)
    _, covariance = moments(paths, p, with_critic(paths, p, q, 0.7))
    equal(covariance, torch.zeros(9, 9, **DOUBLE))
    assert moments(paths, p, with_critic(paths, p, 0 * q, 0.7))[1].trace() > 0.1


@few
@given(seed=seeds)
def test_at_the_uniform_policy_the_main_effects_are_the_best_additive_critic(seed):
    paths, p = normed(seed), policy(0, 2, scale=0)
    average = paths.mean(p, paths.losses)
    effects = given_pick(paths, p, paths.losses[:, None].expand_as(paths.ops)) - average
    _, least = moments(paths, p, with_critic(paths, p, effects, average))
    for step in (1e-3, 1.0):
        change = step * noise(seed + 1)(2, 3)
        _, other = moments(paths, p, with_critic(paths, p, effects + change, average + change[0, 0]))
        assert other.trace() > least.trace()
