"""What docs/theory.md says, by listing every path of small random problems in float64."""

import itertools

import pytest
import torch
from benchmarks.paper import expected, theory
from benchmarks.paper.expected import UPDATES, Paths, batch_norm, descend, half_square, linear_cell, listed, node
from benchmarks.paper.toy import OPS, Toy
from hypothesis import given
from hypothesis import strategies as st
from problems import DOUBLE, before_batch_norm, centred, equal, few, noise, normed, policy, seeds
from torch.nn.functional import one_hot

from advnas_ext import AdvantageEstimator, OnePathCell, Path, ReinforceEstimator, SwapEstimator, gate

TAYLOR = [name for name in UPDATES if name != "REINFORCE"]


def cell(seed, num_ops=3):
    return listed(linear_cell(torch.Generator().manual_seed(seed), num_ops), 3, num_ops, num_ops + 1)


def table(values):
    """Two edges, and any loss for each of their paths: linear in the gates of each."""
    columns = len(values)
    return listed(
        lambda gates: torch.einsum("...i,ij,...j->...", gates[..., 0, :], values, gates[..., 1, :]),
        edges=2,
        num_ops=columns - 1,
        columns=columns,
    )


def random_table(seed, num_ops=3):
    return table(noise(seed)(num_ops + 1, num_ops + 1))


linear = st.sampled_from([cell, random_table])


def quadratic(seed, edges=3, num_ops=3, size=3):
    """Outputs of a node, the second derivative of its loss, and the paths."""
    draw = noise(seed)
    outputs, root, tilt = draw(edges, num_ops + 1, size), draw(size, size), draw(size)
    curvature = root @ root.T
    paths = listed(node(outputs, lambda s: ((s @ curvature) * s).sum(-1) / 2 + s @ tilt), edges, num_ops, num_ops + 1)
    return outputs, curvature, paths


def loss_of(paths, logits):
    p = logits.softmax(1)
    return paths.mean(p, paths.losses)


def written(make, p, rows, network):
    """The mean of what estimators write, over ops [edges, picks] with their chances. The network makes a loss of a path."""
    total = 0
    for chance, ops in rows:
        estimator = make(*p.shape, **DOUBLE)
        estimator.logits.data.copy_(p.log())
        path = Path(ops, one_hot(torch.zeros(len(ops), dtype=torch.int64), ops.shape[1]).double().requires_grad_())
        loss = network(path)
        loss.backward()
        estimator.assign_grad(path, loss)
        total += chance * estimator.logits.grad
    return total


def reinforce_under_way(*size, **dtype):
    """Its average takes the current loss in, so that it writes 0.95 times the gradient."""
    estimator = ReinforceEstimator(*size, **dtype)
    estimator.baseline.fill_(0.4)
    estimator.losses_seen.fill_(1)
    return estimator


@pytest.mark.parametrize("name", UPDATES)
def test_the_expected_updates_are_those_of_the_estimators(name):
    edges, num_ops = 2, 3
    outputs, after = before_batch_norm(seed=3)
    paths, p = listed(node(outputs, after), edges, num_ops, num_ops + 1), policy(4, edges)
    baselines = {"against the input": outputs[:, num_ops], "against the mean": (p[:, :, None] * outputs[:, :3]).sum(1)}

    def network(path):
        b = baselines.get(name)
        terms = [
            gate(outputs[e, op], path.gates[e, pick], None if b is None else b[e])
            for e in range(edges)
            for pick, op in enumerate(path.ops[e])
        ]
        return after(sum(terms))

    chances, paths_ops = paths.chances(p), paths.ops[:, :, None]
    if name == "swap":
        pairs = list(itertools.permutations(range(num_ops), 2))
        paths_ops = torch.tensor(list(itertools.product(pairs, repeat=edges)))
        first, second = p[torch.arange(edges)[:, None], paths_ops].unbind(2)
        chances = (first * second / (1 - first)).prod(1)
    make = {"swap": SwapEstimator, "REINFORCE": reinforce_under_way}.get(name, AdvantageEstimator)
    mean = written(make, p, zip(chances, paths_ops, strict=True), network)
    equal(mean, UPDATES[name](paths, p) * (0.95 if name == "REINFORCE" else 1))


@few
@given(seed=seeds)
def test_reinforce_is_the_gradient_of_the_expected_loss(seed):
    paths = normed(seed)
    logits = noise(seed + 1)(2, 3).requires_grad_()
    (exact,) = torch.autograd.grad(loss_of(paths, logits), logits)
    equal(UPDATES["REINFORCE"](paths, logits.detach().softmax(1)), exact)


# 1. Linear in each edge's output.


@few
@given(problem=linear, seed=seeds, num_ops=st.integers(2, 4), scale=st.floats(0, 4))
def test_where_the_loss_is_linear_all_updates_are_the_gradient(problem, seed, num_ops, scale):
    paths = problem(seed, num_ops)
    p = policy(seed + 1, paths.ops.shape[1], num_ops, scale)
    exact = UPDATES["REINFORCE"](paths, p)
    for name in TAYLOR:
        equal(UPDATES[name](paths, p), exact, atol=1e-11 * paths.spread)


# Of the step, times the losses' spread: the largest that is proven.
EUCLIDEAN, NATURAL = 4.0, 1.25


def euclidean(paths, logits, name, size):
    """Logits after a step of gradient descent."""
    return logits - size / paths.spread * UPDATES[name](paths, logits.softmax(1))


def natural(paths, logits, name, size):
    """logits - step * E[A | pick]: p_k is multiplied by exp(-step * E[A | k])."""
    p = logits.softmax(1)
    return logits - size / paths.spread * UPDATES[name](paths, p) / p


# REINFORCE on any loss, the others where it is linear.
unbiased = st.sampled_from([(normed, "REINFORCE"), *itertools.product((cell, random_table), TAYLOR)])
any_start = given(case=unbiased, seed=seeds, fraction=st.floats(0.01, 1), scale=st.floats(0, 3))


@few
@any_start
def test_without_bias_gradient_descent_never_raises_the_expected_loss(case, seed, fraction, scale):
    problem, name = case
    paths = problem(seed)
    logits = scale * noise(seed + 1)(paths.ops.shape[1], 3)
    for _ in range(10):
        before, slope = loss_of(paths, logits), UPDATES[name](paths, logits.softmax(1)).square().sum()
        logits = euclidean(paths, logits, name, fraction * EUCLIDEAN)
        lowered = fraction * EUCLIDEAN / paths.spread * (1 - fraction) * slope
        assert before - loss_of(paths, logits) >= lowered - 1e-12 * paths.spread


@few
@any_start
def test_without_bias_natural_steps_never_raise_the_expected_loss(case, seed, fraction, scale):
    problem, name = case
    paths = problem(seed)
    logits = scale * noise(seed + 1)(paths.ops.shape[1], 3)
    for _ in range(10):
        before = loss_of(paths, logits)
        logits = natural(paths, logits, name, fraction * NATURAL)
        assert loss_of(paths, logits) <= before + 1e-12 * paths.spread


def pair(values):
    """Two edges of two operations."""
    return table(torch.nn.functional.pad(torch.tensor(values, **DOUBLE), (0, 1, 0, 1)))


@pytest.mark.parametrize("step, proven", [(euclidean, EUCLIDEAN), (natural, NATURAL)])
def test_a_step_that_is_too_long_may_raise_it(step, proven):
    """Two edges that must differ both leave the worse of the two agreements."""
    paths, start = pair([[1.0, 0.0], [0.0, 0.9]]), torch.zeros(2, 2, **DOUBLE)
    short, long = (loss_of(paths, step(paths, start, "AdvantageNAS", size)) for size in (proven, 100 * proven))
    assert short < loss_of(paths, start) < long


def test_it_may_end_at_a_path_that_is_only_the_best_of_its_neighbours():
    """Two edges that must agree: from a policy that leans to the worse agreement, the exact gradient leads there."""
    paths, logits = pair([[0.5, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]], **DOUBLE)
    for _ in range(500):
        logits = euclidean(paths, logits, "AdvantageNAS", 2)
    assert loss_of(paths, logits).item() == pytest.approx(0.5, abs=0.01)


# 2. Quadratic in the sum at a node.


def second_order(outputs, curvature, baseline):
    """(y - b)^T H (y - b), [edges, num_ops], for outputs [edges, num_ops, size]."""
    difference = outputs - baseline[:, None]
    return ((difference @ curvature) * difference).sum(2)


@few
@given(seed=seeds)
def test_where_the_loss_is_quadratic_the_bias_is_the_second_order_term(seed):
    outputs, curvature, paths = quadratic(seed)
    p, candidates = policy(seed + 1), outputs[:, :3]
    exact = UPDATES["REINFORCE"](paths, p)
    baselines = {
        "AdvantageNAS": torch.zeros_like(outputs[:, 3]),
        "against the input": outputs[:, 3],
        "against the mean": (p[:, :, None] * candidates).sum(1),
    }
    for name, baseline in baselines.items():
        bias = centred(p, second_order(candidates, curvature, baseline)) / 2
        equal(UPDATES[name](paths, p) - exact, bias, atol=1e-9)
        assert bias.abs().max() > 1e-6
        # A bound, which of all baselines the mean makes least.
        step = (p * second_order(candidates, curvature, baseline)).sum(1)
        least = (p * second_order(candidates, curvature, baselines["against the mean"])).sum(1)
        assert (bias.abs().sum(1) <= step + 1e-9).all()
        assert (least <= step + 1e-9).all()


@few
@given(seed=seeds)
def test_where_the_loss_is_quadratic_swap_is_the_gradient(seed):
    _, _, paths = quadratic(seed)
    p = policy(seed + 1)
    equal(UPDATES["swap"](paths, p), UPDATES["REINFORCE"](paths, p), atol=1e-9)


@few
@given(seed=seeds, fraction=st.floats(0.01, 1))
def test_where_the_loss_is_quadratic_advantagenas_descends_the_loss_plus_the_size_of_the_outputs(seed, fraction):
    outputs, curvature, paths = quadratic(seed)
    size = second_order(outputs[:, :3], curvature, torch.zeros_like(outputs[:, 3]))
    surrogate = Paths(paths.ops, paths.losses + size.gather(1, paths.ops.T).sum(0) / 2, paths.slopes, 3)
    logits = noise(seed + 1)(3, 3)
    for _ in range(10):
        before = loss_of(surrogate, logits)
        logits = euclidean(surrogate, logits, "AdvantageNAS", fraction * EUCLIDEAN)
        assert loss_of(surrogate, logits) <= before + 1e-12 * surrogate.spread


# 3. Batch norm after the node.


def test_batch_norm_hides_an_edge_that_rules_its_node():
    """x is the target: 2x is better than x beside the rest of the node, and has the smaller advantage."""
    paths = expected.eclipsed()
    c = torch.tensor([1.0, 2.0], **DOUBLE)
    equal(paths.losses, 1 - c / (1 + c**2).sqrt())
    equal(paths.advantages[:, 0], -c / (1 + c**2) ** 1.5)
    assert paths.losses[1] < paths.losses[0]
    assert paths.advantages[1, 0] > paths.advantages[0, 0]


def courses(paths, count=30):
    """The expected loss over the iterations of each method."""
    return {name: torch.tensor(descend(paths, update, 1 / paths.spread, count)) for name, update in UPDATES.items()}


def test_there_the_expected_update_of_advantagenas_raises_the_expected_loss_and_the_remedies_lower_it():
    for name, course in courses(expected.eclipsed()).items():
        if name == "AdvantageNAS":
            assert (course.diff() > 0).all()
        else:
            assert (course.diff() < 0).all(), name


def test_no_taylor_step_is_safe():
    far, other = courses(expected.far_apart()), courses(expected.multiples(expected.TARGET, (2.0, 5.0), expected.OTHER))
    for name in TAYLOR:
        assert (far[name].diff() > 0).all(), name
    assert (far["REINFORCE"].diff() < 0).all()
    assert (other["against the input"].diff() > 0).all()
    assert (other["swap"].diff() < 0).all()


@few
@given(seed=seeds)
def test_a_constant_of_each_edge_taken_off_changes_nothing_on_average(seed):
    """So a moving average of an edge's advantages is no remedy."""
    paths, p = normed(seed), policy(seed + 1, 2)
    equal(paths.score_gradient(p, paths.advantages - noise(seed + 2)(2)), UPDATES["AdvantageNAS"](paths, p))


@few
@given(seed=seeds, edges=st.integers(1, 3))
def test_before_batch_norm_the_advantages_of_a_node_cancel(seed, edges):
    """On every path; so an edge alone has none."""
    outputs, after = before_batch_norm(seed, edges)
    paths = listed(node(outputs, after), edges, 3, 4)
    equal(paths.advantages.sum(1), torch.zeros(3**edges, **DOUBLE), atol=1e-10)
    assert edges == 1 or paths.advantages.abs().max() > 1e-3
    assert (paths.advantages - paths.slopes[:, :, 3]).abs().max() > 1e-3, "against the input"


@pytest.mark.parametrize("baseline", [None, "input"])
def test_so_they_do_in_a_cell(baseline):
    """Edges 2<-0 and 2<-1 meet at the output, which batch norm follows."""
    torch.manual_seed(0)
    cell = OnePathCell(4, ("skip_connect", "nor_conv_1x1", "avg_pool_3x3"), num_nodes=3, baseline=baseline).double()
    norm, x = torch.nn.BatchNorm2d(4, eps=1e-15, **DOUBLE), torch.randn(2, 4, 6, 6, **DOUBLE)
    advantages = []
    for ops in itertools.product(range(3), repeat=3):
        path = Path.from_ops(ops, **DOUBLE)
        norm(cell(x, path)).tanh().square().mean().backward()
        advantages.append(path.gates.grad[1:, 0])
    at_node_2 = torch.stack(advantages)
    assert at_node_2.abs().amax(0).min() > 1e-3
    assert (at_node_2.sum(1).abs().max() < 1e-12) == (baseline is None)


def of_shares(spread, seed=1):
    """A node of three edges whose operations are alike: shares of one vector, plus ``spread``."""
    shares = torch.tensor([0.2, 0.3, 0.5], **DOUBLE)
    draw = noise(seed)
    outputs = shares[:, None, None] * draw(8) + spread * draw(3, 4, 8)
    loss = half_square(draw(8))
    return shares, listed(node(outputs, lambda sums: loss(batch_norm(sums))), 3, 3, 4)


def test_an_edge_that_is_a_share_of_its_node_learns_at_the_rest_of_its_rate():
    p = policy(2)
    shares, paths = of_shares(spread=1e-6)
    equal(UPDATES["AdvantageNAS"](paths, p), (1 - shares[:, None]) * UPDATES["REINFORCE"](paths, p), rtol=1e-3)


# 4. Which baseline.


def test_the_circumcentre_of_the_outputs_has_no_bias_on_a_quadratic_loss_and_the_mean_has():
    outputs, curvature, paths = quadratic(seed=7)
    p, candidates = policy(8), outputs[:, :3]
    # Equal distances, in the metric of the second derivative: 2 (y_k - y_0)^T H b = |y_k|^2 - |y_0|^2.
    sides = 2 * (candidates[:, 1:] - candidates[:, :1]) @ curvature
    size = second_order(candidates, curvature, torch.zeros(3, 3, **DOUBLE))
    centre = torch.linalg.lstsq(sides, (size[:, 1:] - size[:, :1])[:, :, None], driver="gelsd").solution[:, :, 0]
    equal(centred(p, second_order(candidates, curvature, centre)), torch.zeros(3, 3, **DOUBLE), atol=1e-9)
    assert (UPDATES["against the mean"](paths, p) - UPDATES["REINFORCE"](paths, p)).abs().max() > 1e-2


def test_the_mean_of_two_operations_has_no_bias_on_a_quadratic_loss_where_they_are_equally_likely():
    """Elsewhere it favours the likelier one of a convex loss."""
    _, _, paths = quadratic(seed=9, num_ops=2)
    for chance in (0.5, 0.8):
        p = torch.tensor([[chance, 1 - chance]] * 3, **DOUBLE)
        bias = UPDATES["against the mean"](paths, p) - UPDATES["REINFORCE"](paths, p)
        if chance == 0.5:
            equal(bias, torch.zeros(3, 2, **DOUBLE), atol=1e-10)
        else:
            assert (bias[:, 0] < -1e-3).all(), "descent raises the logit"


@pytest.mark.parametrize("name, order", [("AdvantageNAS", 1), ("against the mean", 2), ("swap", 3)])
def test_the_order_of_the_bias_in_how_far_the_operations_are_apart(name, order):
    """The gradient itself is of order 1."""
    p, biases = policy(2), []
    for spread in (2e-3, 1e-3):
        _, paths = of_shares(spread)
        biases.append((UPDATES[name](paths, p) - UPDATES["REINFORCE"](paths, p)).norm().item())
    assert biases[0] / biases[1] == pytest.approx(2**order, rel=0.02)


# The toy, and the figure.


def test_the_toys_loss_is_that_of_the_experiment():
    toy = Toy(seed=1, held_out=6, positions=2)
    loss = expected.toy_loss(toy)
    for ops in (toy.teacher, (toy.teacher + 3) % OPS):
        known = toy.loss(toy.held_out, Path.from_ops(ops)).item()
        assert loss(one_hot(ops, OPS).double()).item() == pytest.approx(known, rel=1e-5, abs=1e-12)


def test_all_methods_lower_the_toys_expected_loss():
    paths = listed(expected.toy_loss(Toy(seed=0, held_out=20, positions=4)), 4, OPS, OPS)
    for name in ("AdvantageNAS", "against the mean", "swap", "REINFORCE"):
        course = torch.tensor(descend(paths, UPDATES[name], 2 / paths.spread, 40))
        assert (course.diff() < 0).all(), name


def test_a_short_run(tmp_path, capsys):
    theory.main(theory.Settings(positions=2, images=4, problems=3, out=tmp_path))
    assert "<svg" in (tmp_path / "paper-theory.svg").read_text()
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in theory.KINDS)
