"""Estimators that compare paths or operations with each other: see the modules for the formulas.

A loss is a function of m [num_edges, num_ops], the gates with zeros for operations that are not on the path. "Multilinear" losses
are linear in each row of m, as a supernet's loss is where it is linear in each y_e.
"""

import copy
import itertools
import math

import pytest
import torch
from scipy import stats
from torch.nn.functional import one_hot

from advnas_ext import AdvantageEstimator, Path, RlooEstimator, SwapEstimator

EDGES, OPS = 3, 3
SIZE = {"num_edges": EDGES, "num_ops": OPS, "dtype": torch.float64}
COEFFICIENTS = torch.Generator().manual_seed(7)
SINGLE = torch.randn(EDGES, OPS, generator=COEFFICIENTS, dtype=torch.float64)
PAIR = torch.randn(EDGES, EDGES, OPS, OPS, generator=COEFFICIENTS, dtype=torch.float64)
TRIPLE = torch.randn(OPS, OPS, OPS, generator=COEFFICIENTS, dtype=torch.float64)
LOGITS = torch.randn(EDGES, OPS, generator=COEFFICIENTS, dtype=torch.float64)
ALL_OPS = [torch.tensor(ops) for ops in itertools.product(range(OPS), repeat=EDGES)]


def additive(m):
    return (SINGLE * m).sum()


def multilinear(m):
    pairs = sum(m[e] @ PAIR[e, f] @ m[f] for e in range(EDGES) for f in range(e))
    return additive(m) + pairs + torch.einsum("i,j,k,ijk", *m, TRIPLE)


def curved(m):
    return multilinear(m).tanh() + additive(m).square()


def of(loss_of, ops):
    """The loss of one operation an edge."""
    return loss_of(one_hot(ops, OPS).double())


def at(estimator, logits=LOGITS):
    estimator.logits.data.copy_(logits)
    return estimator


def probability(ops, logits=LOGITS):
    return logits.softmax(1).gather(1, ops[:, None]).prod()


def exact(loss_of, logits=LOGITS):
    """The gradient of the expected loss."""
    logits = logits.clone().requires_grad_()
    expectation = sum(probability(ops, logits) * of(loss_of, ops) for ops in ALL_OPS)
    return torch.autograd.grad(expectation, logits)[0]


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def gradient_of_group(estimator, group, losses):
    """The gradient that the last of the paths writes, [num_samples, num_edges]."""
    for ops, loss in zip(group, losses, strict=True):
        estimator.assign_grad(Path.from_ops(ops, dtype=estimator.logits.dtype), loss)
        if estimator.collected > 0:
            assert estimator.logits.grad is None
    return estimator.logits.grad


# REINFORCE with a leave-one-out baseline


@pytest.mark.parametrize("loss_of", [multilinear, curved])
def test_rloo_of_independent_paths_is_unbiased(loss_of):
    estimator = at(RlooEstimator(**SIZE, num_samples=2, stratified=False))
    mean = 0
    for group in itertools.product(ALL_OPS, repeat=2):
        chance = probability(group[0]) * probability(group[1])
        mean += chance * gradient_of_group(estimator, group, [of(loss_of, ops) for ops in group])
    equal(mean, exact(loss_of))


def test_rloo_of_three_independent_paths_is_unbiased():
    """Two edges, two operations: all 64 groups."""
    logits = LOGITS[:2, :2]
    estimator = at(RlooEstimator(2, 2, num_samples=3, stratified=False, dtype=torch.float64), logits)
    values = PAIR[0, 1, :2, :2].exp()
    cells = [torch.tensor(ops) for ops in itertools.product(range(2), repeat=2)]
    mean = 0
    for group in itertools.product(cells, repeat=3):
        chance = math.prod(probability(ops, logits) for ops in group)
        mean += chance * gradient_of_group(estimator, group, [values[tuple(ops)] for ops in group])
    logits = logits.clone().requires_grad_()
    equal(mean, torch.autograd.grad(sum(probability(ops, logits) * values[tuple(ops)] for ops in cells), logits)[0])


def test_rloo_by_hand():
    """p = (1/4, 3/4). Losses 1, 2, 6 with mean 3: weights -1, -1/2, 3/2."""
    estimator = at(RlooEstimator(1, 2, num_samples=3), torch.tensor([[0.0, math.log(3)]]))
    gradient = gradient_of_group(estimator, torch.tensor([[0], [1], [1]]), [1.0, 2.0, 6.0])
    # -1 (3/4, -3/4) + (-1/2 + 3/2) (-1/4, 1/4)
    assert gradient[0].tolist() == pytest.approx([-1, 1], rel=1e-6)


def test_rloo_does_not_see_what_all_losses_share():
    group = torch.tensor([[0, 1, 2], [1, 1, 0]])
    one, other = (
        gradient_of_group(at(RlooEstimator(**SIZE, num_samples=2)), group, [2.0 + shared, 3.5 + shared])
        for shared in (0.0, 100.0)
    )
    equal(one, other)
    assert one.abs().max() > 0.1


MARGINALS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)


def groups(estimator, count, seed=0):
    """``count`` groups of paths, int64 [count, num_samples, num_edges]: none is measured, so that each call draws a new one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(count):
        path = estimator.sample(generator)
        assert torch.equal(path.ops[:, 0], estimator.ops[0])
        drawn.append(estimator.ops.clone())
    return torch.stack(drawn)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_path_of_a_group_has_the_distribution(stratified, dtype):
    estimator = at(RlooEstimator(2, 4, num_samples=3, stratified=stratified, dtype=dtype), MARGINALS.log())
    drawn = groups(estimator, 2000)
    for place, edge in itertools.product(range(3), range(2)):
        counts = drawn[:, place, edge].bincount(minlength=4)
        assert stats.chisquare(counts, 2000 * MARGINALS[edge]).pvalue > 0.01


@pytest.mark.parametrize("num_samples", [2, 4, 7])
def test_stratified_paths_share_out_the_operations(num_samples):
    estimator = at(RlooEstimator(2, 4, num_samples=num_samples, dtype=torch.float64), MARGINALS.log())
    counts = one_hot(groups(estimator, 300), 4).sum(1)  # [300, edges, ops]
    assert ((counts - num_samples * MARGINALS).abs() < 1 + 1e-9).all()
    independent = at(RlooEstimator(2, 4, num_samples=num_samples, stratified=False), MARGINALS.log())
    counts = one_hot(groups(independent, 300), 4).sum(1)
    assert ((counts - num_samples * MARGINALS).abs() > 1).any()


def test_edges_of_a_stratified_path_are_independent():
    drawn = groups(at(RlooEstimator(2, 4, num_samples=4), MARGINALS.log()), 2000)
    for place in range(4):
        together = (4 * drawn[:, place, 0] + drawn[:, place, 1]).bincount(minlength=16)
        expected = 2000 * MARGINALS[0][:, None] * MARGINALS[1]
        assert stats.chisquare(together, expected.flatten()).pvalue > 0.01


def test_uniform_strata_multiply_the_gradient_of_additive_losses():
    """M = num_ops: each edge deals every operation to one path, so that the groups are the permutations of every edge."""
    estimator = at(RlooEstimator(**SIZE, num_samples=OPS), torch.zeros(EDGES, OPS))
    drawn = groups(estimator, 20)
    assert (drawn.sort(1).values == torch.arange(OPS)[:, None]).all()
    permutations = [torch.tensor(order) for order in itertools.permutations(range(OPS))]
    mean = 0
    for orders in itertools.product(permutations, repeat=EDGES):
        group = torch.stack(orders, 1)
        mean += gradient_of_group(estimator, group, [of(additive, ops) for ops in group]) / len(permutations) ** EDGES
    equal(mean, OPS / (OPS - 1) * exact(additive, torch.zeros(EDGES, OPS, dtype=torch.float64)))


def factor_of(p, values, num_samples):
    """How much of the gradient of one edge is in the mean of 4000 stratified estimates of it, and the standard error."""
    gradient = p * (values - p @ values)
    estimator = at(RlooEstimator(1, len(p), num_samples=num_samples, dtype=torch.float64), p.log()[None])
    distinct, counts = groups(estimator, 4000)[:, :, 0].sort(1).values.unique(dim=0, return_counts=True)
    written = [gradient_of_group(estimator, group[:, None], values[group])[0] for group in distinct]
    shares = torch.stack(written) @ gradient / gradient.square().sum()
    shares = shares.repeat_interleave(counts)
    return shares.mean().item(), (shares.std() / math.sqrt(4000)).item()


@pytest.mark.parametrize("values", [[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1], [3, -1, -1, -1]])
def test_strata_compare_every_two_operations(values):
    """Whatever the order of the operations: 2 of 4 that are equally probable are one of 6 pairs."""
    factor, error = factor_of(torch.full((4,), 0.25).double(), torch.tensor(values).double(), 2)
    assert factor == pytest.approx(4 / 3, abs=4 * error)
    assert error < 0.05


def test_strata_elsewhere_multiply_the_gradient_by_about_one_or_more():
    p = torch.tensor([0.55, 0.25, 0.2], dtype=torch.float64)
    factor, error = factor_of(p, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 4)
    assert error < 0.02
    assert 0.95 < factor < 4 / 3 + 3 * error


def test_extreme_probabilities_are_shared_out():
    estimator = at(RlooEstimator(1, 3, num_samples=4), torch.tensor([[200.0, 0.0, -200.0]]))
    assert (groups(estimator, 50) == 0).all()
    estimator = at(RlooEstimator(1, 3, num_samples=4), torch.tensor([[-200.0, 0.0, 200.0]]))
    assert (groups(estimator, 50) == 2).all()


def test_a_path_stays_the_next_one_until_it_is_measured():
    estimator = at(RlooEstimator(**SIZE, num_samples=4))
    generator = torch.Generator().manual_seed(0)
    first = [estimator.sample(generator).ops.tolist() for _ in range(10)]
    assert len({str(ops) for ops in first}) > 1  # while none is measured, each call draws a new group
    group = estimator.ops.clone()
    state = generator.get_state()
    for index in range(4):
        path = estimator.sample(generator)
        if index == 0:
            assert not torch.equal(generator.get_state(), state)
            group, state = estimator.ops.clone(), generator.get_state()
        again = estimator.sample(generator) if index else path
        assert torch.equal(path.ops, again.ops)
        assert torch.equal(path.ops[:, 0], group[index])
        estimator.assign_grad(path, float(index))
    assert torch.equal(generator.get_state(), state)
    assert estimator.logits.grad is not None
    assert estimator.collected == 0


def test_a_path_is_not_changed_by_later_ones():
    estimator = at(RlooEstimator(**SIZE, num_samples=2))
    generator = torch.Generator().manual_seed(0)
    paths = [estimator.sample(generator) for _ in range(20)]
    assert len({str(path.ops) for path in paths}) > 1


def test_a_group_goes_on_from_a_saved_state():
    estimator = at(RlooEstimator(**SIZE, num_samples=4))
    generator = torch.Generator().manual_seed(0)

    def steps(estimator, losses):
        for loss in losses:
            path = estimator.sample(generator)
            estimator.assign_grad(path, loss)
        return estimator.logits.grad

    steps(estimator, (1.0, 5.0))
    saved = copy.deepcopy(estimator.state_dict())
    expected = steps(estimator, (2.0, -1.0))
    restored = RlooEstimator(**SIZE, num_samples=4)
    restored.load_state_dict(saved)
    equal(steps(restored, (2.0, -1.0)), expected)


def test_rloo_needs_no_gradients_of_gates_and_all_its_paths_on_one_batch():
    estimator = RlooEstimator(**SIZE)
    assert not estimator.needs_gate_gradients
    assert estimator.paths_per_batch == estimator.num_samples == 4
    assert AdvantageEstimator(**SIZE).paths_per_batch == SwapEstimator(**SIZE).paths_per_batch == 1


@pytest.mark.parametrize("num_samples", [1, 0, 2.0, True, None])
def test_rloo_needs_two_samples(num_samples):
    with pytest.raises(ValueError, match="RlooEstimator: num_samples must be an integer >= 2, got"):
        RlooEstimator(**SIZE, num_samples=num_samples)


# The swap advantage


def swapped(pair, loss_of, estimator=None):
    """The gradient written for one pair [num_edges, 2] of operations."""
    estimator = estimator or at(SwapEstimator(**SIZE))
    gates = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(EDGES, 1).requires_grad_()
    loss = loss_of(torch.zeros(EDGES, OPS, dtype=torch.float64).scatter(1, pair, gates))
    loss.backward()
    estimator.assign_grad(Path(pair, gates), loss)
    return estimator.logits.grad


def pairs():
    """All pairs of different operations for every edge, [num_edges, 2], and their probabilities: a ~ p, then b ~ p without a."""
    p = LOGITS.softmax(1)
    for chosen in itertools.product(itertools.permutations(range(OPS), 2), repeat=EDGES):
        chance = math.prod(p[e, a] * p[e, b] / (1 - p[e, a]) for e, (a, b) in enumerate(chosen))
        yield torch.tensor(chosen), chance


def test_swap_is_unbiased_for_multilinear_losses():
    equal(sum(chance * swapped(pair, multilinear) for pair, chance in pairs()), exact(multilinear))


def test_swap_elsewhere_has_the_bias_of_the_taylor_step():
    """E[(1 - p_a) / 2 * D (onehot(a) - onehot(b))], D from finite differences of the loss along onehot(a) - onehot(b)."""
    p, step, expected = LOGITS.softmax(1), 1e-5, torch.zeros(EDGES, OPS, dtype=torch.float64)
    for ops in ALL_OPS:
        m = one_hot(ops, OPS).double()
        for e, b in itertools.product(range(EDGES), range(OPS)):
            if b != (a := ops[e]):
                to_a = one_hot(a, OPS).double() - one_hot(torch.tensor(b), OPS).double()
                up, down = m.clone(), m.clone()
                up[e] += step * to_a
                down[e] -= step * to_a
                difference = (curved(up) - curved(down)) / (2 * step)
                expected[e] += probability(ops) * p[e, b] / 2 * difference * to_a
    mean = sum(chance * swapped(pair, curved) for pair, chance in pairs())
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-8)
    assert (mean - exact(curved)).abs().max() > 0.05


def test_swap_by_hand():
    """p = (1/2, 1/4, 1/4), a = 1, b = 0: (1 - 1/4) / 2 * (5 - 1) = 3/2."""
    estimator = at(SwapEstimator(1, 3), torch.tensor([[math.log(2), 0.0, 0.0]]))
    path = Path(torch.tensor([[1, 0]]), torch.tensor([[1.0, 0.0]], requires_grad=True))
    path.gates.grad = torch.tensor([[5.0, 1.0]])
    estimator.assign_grad(path, 0.0)
    assert estimator.logits.grad[0].tolist() == pytest.approx([-1.5, 1.5, 0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies_of_swapped_pairs(dtype):
    estimator = at(SwapEstimator(2, 4, dtype=dtype), MARGINALS.log())
    generator = torch.Generator().manual_seed(0)
    paths = [estimator.sample(generator) for _ in range(3000)]
    assert all(path.gates.tolist() == [[1, 0], [1, 0]] for path in paths)
    assert all(path.gates.dtype == dtype and path.gates.requires_grad for path in paths)
    both = torch.stack([path.ops for path in paths])
    for edge, p in enumerate(MARGINALS):
        expected = p[:, None] * p / (1 - p[:, None])
        counts = (4 * both[:, edge, 0] + both[:, edge, 1]).bincount(minlength=16).unflatten(0, (4, 4))
        off_diagonal = ~torch.eye(4, dtype=torch.bool)
        assert counts.diagonal().sum() == 0
        assert stats.chisquare(counts[off_diagonal], 3000 * expected[off_diagonal]).pvalue > 0.01


def test_a_weight_step_does_not_run_the_operation_that_is_only_looked_at():
    path = at(SwapEstimator(**SIZE)).sample().detach()
    assert not path.gates.requires_grad
    assert (path.gates[:, 1] == 0).all()


# The most probable cells
