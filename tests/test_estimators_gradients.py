"""The gradient that each estimator writes, against its definition, on losses small enough to enumerate.

A loss is a function of m [num_edges, num_ops], the gates with zeros for operations that are not on the path. "Multilinear" losses
are linear in each row of m, as a supernet's loss is where it is linear in each y_e.
"""

import itertools
import math
import statistics

import pytest
import torch
from torch.nn.functional import one_hot

from advnas_ext import (
    ESTIMATORS,
    AdvantageEstimator,
    DartsEstimator,
    GdasEstimator,
    NaspEstimator,
    ParsecEstimator,
    Path,
    ProxylessEstimator,
    RandomEstimator,
    ReinforceEstimator,
    SnasEstimator,
)
from advnas_ext.estimators import RelaxedPath

EDGES, OPS = 3, 3
SIZE = {"num_edges": EDGES, "num_ops": OPS, "dtype": torch.float64}
COEFFICIENTS = torch.Generator().manual_seed(5)
SINGLE = torch.randn(EDGES, OPS, generator=COEFFICIENTS, dtype=torch.float64)
PAIR = torch.randn(EDGES, EDGES, OPS, OPS, generator=COEFFICIENTS, dtype=torch.float64)
TRIPLE = torch.randn(OPS, OPS, OPS, generator=COEFFICIENTS, dtype=torch.float64)
LOGITS = torch.randn(EDGES, OPS, generator=COEFFICIENTS, dtype=torch.float64)


def multilinear(m):
    pairs = sum(m[e] @ PAIR[e, f] @ m[f] for e in range(EDGES) for f in range(e))
    return (SINGLE * m).sum() + pairs + torch.einsum("i,j,k,ijk", *m, TRIPLE)


def curved(m):
    return multilinear(m).tanh() + (SINGLE * m).sum().square()


def dense(path):
    return torch.zeros(EDGES, OPS, dtype=path.gates.dtype).scatter(1, path.ops, path.gates)


def all_ops():
    """Every choice of one operation an edge."""
    return [torch.tensor(ops) for ops in itertools.product(range(OPS), repeat=EDGES)]


def log_probability(logits, ops):
    return logits.log_softmax(1).gather(1, ops[:, None]).sum()


def written(estimator, path, loss_of):
    """The gradient of the logits after one step on ``path``."""
    loss = loss_of(dense(path))
    loss.backward()
    estimator.assign_grad(path, loss)
    return estimator.logits.grad


def at(estimator, logits=LOGITS):
    estimator.logits.data.copy_(logits)
    return estimator


def grad_of(function, logits=LOGITS):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


def expected_loss(loss_of):
    def expectation(logits):
        return sum(log_probability(logits, ops).exp() * loss_of(one_hot(ops, OPS).double()) for ops in all_ops())

    return expectation


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def mean_over_paths(estimator, loss_of):
    """The expectation of the written gradient."""
    total = 0
    for ops in all_ops():
        gradient = written(estimator(), Path.from_ops(ops, dtype=torch.float64), loss_of)
        total += log_probability(LOGITS, ops).exp() * gradient
    return total


def advantage():
    return at(AdvantageEstimator(**SIZE))


def test_advantage_is_unbiased_for_multilinear_losses():
    equal(mean_over_paths(advantage, multilinear), grad_of(expected_loss(multilinear)))


def test_advantage_elsewhere_has_the_bias_of_the_taylor_step():
    def taylor(logits):
        """E[L(a) - (L(a with y_e = 0) by its first-order expansion)], the advantage from finite differences."""
        total, step = 0, 1e-6
        for ops in all_ops():
            m = one_hot(ops, OPS).double()
            for e in range(EDGES):
                up, down = m.clone(), m.clone()
                up[e] *= 1 + step
                down[e] *= 1 - step
                advantage = (curved(up) - curved(down)) / (2 * step)
                p = log_probability(LOGITS, ops).exp()
                total += p * advantage * logits.log_softmax(1)[e, ops[e]]
        return total

    mean = mean_over_paths(advantage, curved)
    torch.testing.assert_close(mean, grad_of(taylor), rtol=1e-6, atol=1e-8)
    assert (mean - grad_of(expected_loss(curved))).abs().max() > 0.1


@pytest.mark.parametrize("loss_of", [multilinear, curved])
def test_reinforce_is_unbiased_up_to_the_current_losss_share_of_the_baseline(loss_of):
    def reinforce():
        estimator = at(ReinforceEstimator(**SIZE))
        estimator.baseline.fill_(0.7)
        estimator.losses_seen.fill_(3)
        return estimator

    equal(mean_over_paths(reinforce, loss_of), 0.95 * grad_of(expected_loss(loss_of)))


@pytest.mark.parametrize("weighting, sign", [("loss", 1), ("likelihood", -1)])
def test_parsec_is_the_weighted_score_of_its_samples(weighting, sign):
    samples = list(itertools.product(all_ops(), repeat=2))
    loss = {tuple(ops.tolist()): curved(one_hot(ops, OPS).double()).item() for ops in all_ops()}
    mean = 0
    for pair in samples:
        estimator = at(ParsecEstimator(**SIZE, num_samples=2, weighting=weighting))
        for ops in pair:
            assert estimator.logits.grad is None
            estimator.assign_grad(Path.from_ops(ops), loss[tuple(ops.tolist())])
        mean += sum(log_probability(LOGITS, ops) for ops in pair).exp() * estimator.logits.grad

    def definition(logits):
        total = 0
        for pair in samples:
            values = [math.exp(sign * loss[tuple(ops.tolist())]) for ops in pair]
            chance = sum(log_probability(LOGITS, ops) for ops in pair).exp()
            total += chance * sum(
                sign * value / sum(values) * log_probability(logits, ops)
                for value, ops in zip(values, pair, strict=True)
            )
        return total

    equal(mean, grad_of(definition))


@pytest.mark.parametrize("loss_of", [multilinear, curved])
def test_darts_is_the_gradient_at_the_softmax_weights(loss_of):
    estimator = at(DartsEstimator(**SIZE))
    equal(written(estimator, estimator.sample(), loss_of), grad_of(lambda logits: loss_of(logits.softmax(1))))


def noise_of(path, logits=LOGITS):
    """The noise of a relaxed path, up to a constant for each edge, which the softmax does not see."""
    return path.temperature * path.weights.log() - logits


@pytest.mark.parametrize("steps_done", [0, 6])
def test_snas_is_the_mean_pathwise_gradient(steps_done):
    generator = torch.Generator().manual_seed(0)
    estimator = at(SnasEstimator(**SIZE, total_steps=10))
    estimator.step.fill_(steps_done)
    paths = [estimator.sample(generator) for _ in range(50)]
    mean = sum(written(estimator, path, curved) for path in paths) / len(paths)

    def loss_on_the_same_noise(logits):
        return sum(curved(((logits + noise_of(p)) / p.temperature).softmax(1)) for p in paths) / len(paths)

    torch.testing.assert_close(mean, grad_of(loss_on_the_same_noise), rtol=1e-8, atol=1e-9)


def test_snas_is_the_gradient_of_the_expected_loss_over_the_noise():
    """One edge, two operations: the difference of two Gumbel variables is logistic, so the expectation is an integral."""
    estimator = at(SnasEstimator(1, 2, total_steps=10, dtype=torch.float64), LOGITS[:1, :2])
    estimator.step.fill_(3)
    generator = torch.Generator().manual_seed(0)

    def loss_of(weights):
        return weights[:, 0].exp().sum()

    gradients = []
    for path in (estimator.sample(generator) for _ in range(2000)):
        loss = loss_of(path.gates)
        loss.backward()
        estimator.assign_grad(path, loss)
        gradients.append(estimator.logits.grad[0, 0].item())

    def integral(logits):
        quantile = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        weight = ((logits[0, 0] - logits[0, 1] + quantile.logit()) / estimator.temperature).sigmoid()
        return loss_of(weight[:, None]) / 10_000

    expected = grad_of(integral, LOGITS[:1, :2])[0, 0].item()
    standard_error = statistics.stdev(gradients) / math.sqrt(len(gradients))
    assert standard_error < 0.02 * abs(expected)
    assert statistics.mean(gradients) == pytest.approx(expected, abs=2 * standard_error)


OUTPUTS = torch.randn(EDGES, OPS, 4, generator=COEFFICIENTS, dtype=torch.float64)
MIX = torch.randn(EDGES, 4, generator=COEFFICIENTS, dtype=torch.float64)


def vector_loss(y):
    """Of the outputs of the edges, [num_edges, 4]."""
    return (MIX * y).sum().tanh() + y.prod(0).sum().square()


@pytest.mark.parametrize("unpicked", ["zero", "sum"])
def test_gdas_is_the_mean_straight_through_gradient(unpicked):
    generator = torch.Generator().manual_seed(0)
    estimator = at(GdasEstimator(**SIZE, total_steps=10, unpicked=unpicked))
    estimator.step.fill_(8)
    paths = [estimator.sample(generator) for _ in range(50)]
    mean = 0
    for path in paths:
        y = path.gates * OUTPUTS[torch.arange(EDGES), path.ops[:, 0]]
        loss = vector_loss(y if path.offsets is None else y + path.offsets[:, None])
        loss.backward()
        estimator.assign_grad(path, loss)
        mean += estimator.logits.grad / len(paths)

    def straight_through(logits):
        total = 0
        for path in paths:
            soft = ((logits + noise_of(path)) / path.temperature).softmax(1)
            picked = one_hot(path.ops[:, 0], OPS)
            hard = picked + soft - soft.detach()
            constant = (hard * (1 - picked)).sum(1, keepdim=True) if unpicked == "sum" else 0
            total += vector_loss(((hard * picked)[:, :, None] * OUTPUTS).sum(1) + constant)
        return total / len(paths)

    torch.testing.assert_close(mean, grad_of(straight_through), rtol=1e-8, atol=1e-9)
    assert mean.abs().max() > 1e-3


def test_proxyless_is_unbiased_within_the_pairs_for_multilinear_losses():
    """For every pair of each edge: the mean over which of the two is active equals the gradient of the pairs' expected loss."""
    pairs = list(itertools.combinations(range(OPS), 2))
    for chosen in itertools.product(pairs, repeat=EDGES):
        pair = torch.tensor(chosen)

        def expectation(logits, pair=pair):
            share = torch.zeros_like(logits).scatter(1, pair, logits.gather(1, pair).softmax(1))
            return multilinear(share)  # linear in each row: the expectation of the loss is the loss of the expectation

        share = LOGITS.gather(1, pair).softmax(1)
        mean = 0
        for active in itertools.product(range(2), repeat=EDGES):
            first = torch.tensor(active)[:, None]
            ops = torch.cat([pair.gather(1, first), pair.gather(1, 1 - first)], 1)
            path = Path(ops, torch.tensor([[1.0, 0.0]] * EDGES, dtype=torch.float64, requires_grad=True))
            mean += share.gather(1, first).prod() * written(at(ProxylessEstimator(**SIZE)), path, multilinear)
        equal(mean, grad_of(expectation))


def test_proxyless_elsewhere_takes_the_gates_gradients_for_the_values_of_the_operations():
    """Its defining expectation, for every pair: sum over the active ones of q_active (share(logits) . dL/dgates there)."""
    for chosen in itertools.product(itertools.combinations(range(OPS), 2), repeat=EDGES):
        pair = torch.tensor(chosen)
        now = LOGITS.gather(1, pair).softmax(1)

        def definition(logits, pair=pair, now=now):
            total = 0
            for active in itertools.product(range(2), repeat=EDGES):
                first = torch.tensor(active)[:, None]
                v = grad_of(curved, one_hot(pair.gather(1, first)[:, 0], OPS).double()).gather(1, pair)
                total += now.gather(1, first).prod() * (logits.gather(1, pair).softmax(1) * v).sum()
            return total

        mean = 0
        for active in itertools.product(range(2), repeat=EDGES):
            first = torch.tensor(active)[:, None]
            ops = torch.cat([pair.gather(1, first), pair.gather(1, 1 - first)], 1)
            path = Path(ops, torch.tensor([[1.0, 0.0]] * EDGES, dtype=torch.float64, requires_grad=True))
            mean += now.gather(1, first).prod() * written(at(ProxylessEstimator(**SIZE)), path, curved)
        equal(mean, grad_of(definition))


def test_nasp_is_the_gradient_of_every_gate_at_the_argmax():
    estimator = at(NaspEstimator(**SIZE))
    m = one_hot(LOGITS.argmax(1), OPS).double()
    equal(written(estimator, estimator.sample(), curved), grad_of(curved, m))


def test_random_writes_none():
    estimator = RandomEstimator(**SIZE)
    estimator.logits.grad = torch.ones(EDGES, OPS, dtype=torch.float64)
    assert written(estimator, estimator.sample(), curved) is None


def by_hand(make, gates_grad, ops=((1,),), gates=((1.0,),), loss=0.0, weights=None, temperature=1.0, offsets_grad=None):
    """One edge, two operations, p = (1/4, 3/4): the gradient for gates that got the gradient ``gates_grad``."""
    estimator = at(make, torch.tensor([[0.0, math.log(3)]]))
    ops, gates = torch.tensor(ops), torch.tensor(gates, requires_grad=True)
    gates.grad = torch.tensor([gates_grad])
    if weights is None:
        path = Path(ops, gates)
    else:
        path = RelaxedPath(ops, gates, weights=torch.tensor([weights]), temperature=temperature)
    if offsets_grad is not None:
        path.offsets = torch.zeros(1, requires_grad=True)
        path.offsets.grad = torch.tensor([offsets_grad])
    estimator.assign_grad(path, loss)
    return estimator.logits.grad[0].tolist()


BOTH = {"ops": [[0, 1]]}
SOFT = {"weights": [0.25, 0.75]}


@pytest.mark.parametrize(
    "gradient, expected",
    [
        # 2 ((0, 1) - (1/4, 3/4))
        (lambda: by_hand(AdvantageEstimator(1, 2), [2.0]), [-0.5, 0.5]),
        # w = (1/4, 3/4), v = (0, 2): w (v - 1.5) / 0.5
        (lambda: by_hand(GdasEstimator(1, 2, total_steps=9), [2.0], **SOFT, temperature=0.5), [-0.75, 0.75]),
        # v = (4, 2): w (v - 2.5) / 0.5
        (
            lambda: by_hand(
                GdasEstimator(1, 2, total_steps=9, unpicked="sum"), [2.0], **SOFT, temperature=0.5, offsets_grad=4.0
            ),
            [0.75, -0.75],
        ),
        # q = (1/4, 3/4), v = (1, 3): 3/16 (1 - 3); then the other one active
        (lambda: by_hand(ProxylessEstimator(1, 2), [1.0, 3.0], **BOTH, gates=[[1.0, 0.0]]), [-0.375, 0.375]),
        (lambda: by_hand(ProxylessEstimator(1, 2), [3.0, 1.0], ops=[[1, 0]], gates=[[1.0, 0.0]]), [-0.375, 0.375]),
        # w (v - 2.5)
        (lambda: by_hand(DartsEstimator(1, 2), [1.0, 3.0], **BOTH, gates=[[0.25, 0.75]], **SOFT), [-0.375, 0.375]),
        # w (v - 2.5) / 0.5
        (
            lambda: by_hand(
                SnasEstimator(1, 2, total_steps=9),
                [1.0, 3.0],
                **BOTH,
                gates=[[0.25, 0.75]],
                **SOFT,
                temperature=0.5,
            ),
            [-0.75, 0.75],
        ),
        (lambda: by_hand(NaspEstimator(1, 2), [1.0, 3.0], **BOTH, gates=[[0.0, 1.0]]), [1.0, 3.0]),
    ],
    ids=["advantage", "gdas", "gdas sum", "proxyless", "proxyless flipped", "darts", "snas", "nasp"],
)
def test_by_hand(gradient, expected):
    assert gradient() == pytest.approx(expected, rel=1e-6)


def test_reinforce_by_hand():
    estimator = at(ReinforceEstimator(1, 2), torch.tensor([[0.0, math.log(3)]]))
    gradients = []
    for loss in (1.0, 3.0, 0.0):
        estimator.assign_grad(Path.from_ops([1]), loss)
        gradients.append(estimator.logits.grad[0].tolist())
    # baselines 1, 1 + 0.05 * 2 = 1.1, 1.1 - 0.05 * 1.1 = 1.045
    for gradient, difference in zip(gradients, (0, 1.9, -1.045), strict=True):
        assert gradient == pytest.approx([-0.25 * difference, 0.25 * difference], rel=1e-6)


def test_parsec_by_hand():
    estimator = at(ParsecEstimator(1, 2, num_samples=2), torch.tensor([[0.0, math.log(3)]]))
    estimator.assign_grad(Path.from_ops([0]), 0.0)
    estimator.assign_grad(Path.from_ops([1]), math.log(4))
    # w = (1/5, 4/5): 1/5 (3/4, -3/4) + 4/5 (-1/4, 1/4)
    assert estimator.logits.grad[0].tolist() == pytest.approx([-0.05, 0.05], rel=1e-5)


def test_parsec_by_hand_for_8_samples():
    estimator = at(ParsecEstimator(1, 2), torch.tensor([[0.0, math.log(3)]]))
    for op, loss in ((0, 0.0), (0, 0.0), (1, math.log(7)), *((0, 0.0),) * 5):
        assert estimator.logits.grad is None
        estimator.assign_grad(Path.from_ops([op]), loss)
    # w = 1/14 seven times and 1/2: 1/2 (3/4, -3/4) + 1/2 (-1/4, 1/4)
    assert estimator.logits.grad[0].tolist() == pytest.approx([0.25, -0.25], rel=1e-5)


def test_parsec_by_hand_with_losses_as_likelihoods():
    estimator = at(ParsecEstimator(1, 2, num_samples=2, weighting="likelihood"), torch.tensor([[0.0, math.log(3)]]))
    estimator.assign_grad(Path.from_ops([0]), 0.0)
    estimator.assign_grad(Path.from_ops([1]), math.log(4))
    # w = (4/5, 1/5): -4/5 (3/4, -3/4) - 1/5 (-1/4, 1/4)
    assert estimator.logits.grad[0].tolist() == pytest.approx([-0.55, 0.55], rel=1e-5)


def test_other_coefficients_of_the_moving_averages():
    reinforce = at(ReinforceEstimator(1, 2, coefficient=0.5), torch.tensor([[0.0, 0.0]]))
    advantage = AdvantageEstimator(1, 2, zero_op=0, coefficient=0.5)
    for value in (1.0, 3.0):
        path = Path.from_ops([1])
        path.gates.grad = torch.tensor([[value]])
        reinforce.assign_grad(path, value)
        advantage.assign_grad(path, value)
    assert reinforce.logits.grad.tolist() == [[-0.5, 0.5]]  # (3 - 2) / 2
    assert advantage.average.tolist() == [[0, 2]]


def test_zero_op_rule_step_by_step():
    """One edge, operations none, a, b. Uniform p: a gradient of A (onehot - 1/3)."""
    estimator = AdvantageEstimator(1, 3, zero_op=0)

    def step(op, advantage):
        path = Path.from_ops([op])
        path.gates.grad = torch.tensor([[advantage]])
        estimator.assign_grad(path, 0.0)
        return estimator.logits.grad[0, op].item() * 3 / 2

    def average(*expected):
        assert estimator.average[0].tolist() == pytest.approx(expected, rel=1e-6)

    assert step(0, 0.0) == 0  # nothing is known of the others, and the entry of none is 0
    average(0, 0, 0)
    assert step(1, -2.0) == pytest.approx(-2)  # an operation that is not none keeps its own advantage
    average(0, -0.1, 0)  # only the first call of all is taken as it is
    assert step(0, 0.0) == 0  # the worst of (0, -0.1, never picked)
    assert step(2, 4.0) == pytest.approx(4)
    average(0, -0.1, 0.2)
    assert step(0, 0.0) == pytest.approx(0.2)
    average(0, -0.1, 0.2)  # what none was given does not enter the averages
    assert step(2, 2.0) == pytest.approx(2)
    average(0, -0.1, 0.2 + 0.05 * (2 - 0.2))
    assert step(0, 0.0) == pytest.approx(0.29)
    assert step(0, 9.0) == pytest.approx(0.29)  # whatever the gradient of its gate
    average(0, -0.1, 0.29)
    for _ in range(200):
        step(2, -1.0)
    assert step(0, 0.0) == 0  # both others are good: the worst is none's own 0
    assert estimator.average[0, 2] < -0.9


def test_the_zero_op_rule_takes_the_first_call_as_it_is():
    estimator = AdvantageEstimator(2, 3, zero_op=0)
    path = Path.from_ops([1, 2])
    path.gates.grad = torch.tensor([[3.0], [-1.0]])
    estimator.assign_grad(path, 0.0)
    assert estimator.average.tolist() == [[0, 3, 0], [0, 0, -1]]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_changing_scale_of_the_loss_changes_nothing(name):
    """With that of a GradScaler, which goes up and down: gates and averages are those of the loss itself."""
    settings = {"zero_op": 0} if name == "advantage" else {}
    estimators = [ESTIMATORS[name](2, 3, total_steps=9, **settings) for _ in range(2)]
    noise = torch.Generator().manual_seed(0)
    for scale in (1.0, 65536.0, 0.5):
        for estimator, own in zip(estimators, (1.0, scale), strict=True):
            generator = torch.Generator().manual_seed(int(scale))
            path = estimator.sample(generator)
            noise.manual_seed(1)
            for tensor in (path.gates, path.offsets):
                if tensor is not None:
                    tensor.grad = own * torch.randn(tensor.shape, generator=noise)
            estimator.assign_grad(path, 2.0, scale=own)
            estimator.after_step(path)
    plain, scaled = (dict(estimator.named_buffers()) for estimator in estimators)
    for buffer in plain:
        torch.testing.assert_close(scaled[buffer], plain[buffer], equal_nan=True)
    if estimators[0].logits.grad is not None:
        torch.testing.assert_close(estimators[1].logits.grad, estimators[0].logits.grad)


def test_a_scale_must_be_positive():
    path = Path.from_ops([1])
    path.gates.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match="scale must be a number above 0, got 0"):
        AdvantageEstimator(1, 2).assign_grad(path, 1.0, scale=0)


def test_zero_op_rule_is_per_edge():
    estimator = AdvantageEstimator(2, 3, zero_op=2)

    def step(ops, advantages):
        path = Path.from_ops(ops)
        path.gates.grad = torch.tensor(advantages)[:, None]
        estimator.assign_grad(path, 0.0)
        return estimator.logits.grad.gather(1, path.ops)[:, 0].mul(3 / 2).tolist()

    assert step([0, 1], [5.0, 7.0]) == pytest.approx([5, 7])
    assert step([2, 1], [0.0, 3.0]) == pytest.approx([5, 3])
    assert step([2, 2], [0.0, 0.0]) == pytest.approx([5, 7 + 0.05 * (3 - 7)])


def test_without_zero_op_an_advantage_of_0_stays_0():
    estimator = AdvantageEstimator(1, 2)
    for op, advantage in ((1, 3.0), (0, 0.0)):
        path = Path.from_ops([op])
        path.gates.grad = torch.tensor([[advantage]])
        estimator.assign_grad(path, 0.0)
    assert estimator.logits.grad.tolist() == [[0, 0]]
