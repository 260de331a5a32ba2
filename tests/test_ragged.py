"""Edges with different numbers of operations, over the registry: what is beyond an edge's operations does not exist."""

import itertools

import pytest
import torch

from advnas_ext import ESTIMATORS, AdvantageEstimator, Path, ReinforceEstimator, RlooEstimator
from advnas_ext.estimators import RelaxedPath

NAMES = sorted(ESTIMATORS)
SIZES = [3, 1, 2, 4]
PADDING = torch.arange(4) >= torch.tensor(SIZES)[:, None]
TARGET = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def make(name, sizes=SIZES, **settings):
    return ESTIMATORS[name](len(sizes), sizes, **{"total_steps": 400, "dtype": torch.float64, **settings})


def loss_on(path):
    """As a network would: it does not touch the gates of padding."""
    own = ~PADDING.gather(1, path.ops)
    return (path.gates * TARGET.gather(1, path.ops))[own].sum().div(3).exp()


def step(estimator, optimizer, generator):
    path = estimator.sample(generator)
    loss = loss_on(path)
    loss.backward()
    estimator.assign_grad(path, loss)
    optimizer.step()
    estimator.after_step(path)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inside", [0.0, 7.0], ids=["as made", "padding set by hand"])
def test_padding_is_never_drawn_never_moves_and_never_wins(name, inside):
    estimator = make(name)
    estimator.logits.data[PADDING] = inside
    optimizer = torch.optim.Adam([estimator.logits], lr=0.05, weight_decay=0.0 if inside else 1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        path = step(estimator, optimizer, generator)
        ran = path.ops.gather(1, path.gates.argmax(1, keepdim=True))
        assert not PADDING.gather(1, ran).any()
        if estimator.logits.grad is not None:
            assert not estimator.logits.grad[PADDING].any()
    assert torch.equal(
        estimator.logits[PADDING], torch.full((6,), inside, dtype=torch.float64).clamp(0, 1 if name == "nasp" else 9)
    )
    assert not estimator.probabilities()[PADDING].any()
    assert estimator.logits.isfinite().all()
    torch.testing.assert_close(estimator.probabilities().sum(1), torch.ones(4, dtype=torch.float64))
    assert all(op < size for op, size in zip(estimator.argmax().tolist(), SIZES, strict=True))
    if estimator.learns and name != "parsec":
        best = TARGET.masked_fill(PADDING, torch.inf).argmin(1)
        assert (estimator.argmax() == best).sum() >= 3


@pytest.mark.parametrize("name", NAMES)
def test_edges_as_large_as_the_largest_are_as_without_ragged_ones(name):
    """The first two of three edges, with the same noise: the third one only draws after them."""
    even, ragged = make(name, [3, 3, 3]), make(name, [3, 3, 1])
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for estimator in (even, ragged):
        estimator.logits.data.copy_(logits)
    torch.testing.assert_close(ragged.probabilities()[:2], even.probabilities()[:2])
    assert ragged.probabilities()[2].tolist() == [1, 0, 0]
    if name == "random":  # draws edge by edge; the others draw their noise for all entries at once
        pytest.skip("has no noise for padding")
    a, b = (estimator.sample(torch.Generator().manual_seed(3)) for estimator in (even, ragged))
    assert torch.equal(a.ops[:2], b.ops[:2])
    torch.testing.assert_close(a.gates[:2], b.gates[:2])
    if isinstance(a, RelaxedPath):
        torch.testing.assert_close(a.weights[:2], b.weights[:2])


def test_entropy_of_uniform_edges():
    expected = torch.tensor(SIZES, dtype=torch.float64).log().mean().item()
    assert make("advantage").entropy() == pytest.approx(expected)
    assert "num_ops=[3, 1, 2, 4]" in repr(make("advantage"))


def test_frequencies():
    generator = torch.Generator().manual_seed(4)
    for name in ("advantage", "random", "rloo"):
        estimator = make(name)
        counts = torch.zeros(4, 4)
        for _ in range(2000):
            path = estimator.sample(generator)
            counts += torch.nn.functional.one_hot(path.ops[:, 0], 4)
            if name == "rloo":
                estimator.assign_grad(path, 0.0)
        torch.testing.assert_close(counts / 2000, estimator.probabilities().float(), atol=0.04, rtol=0)


@pytest.mark.parametrize("zero_op", [[0, None, 1, 3], 0])
def test_a_zero_operation_for_each_edge(zero_op):
    """Against the rule written out, edge by edge."""
    estimator = make("advantage", zero_op=zero_op)
    zeros = zero_op if isinstance(zero_op, list) else [zero_op] * 4
    average, started = torch.zeros(4, 4, dtype=torch.float64), False
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        path = estimator.sample(generator)
        loss = loss_on(path)
        loss.backward()
        estimator.assign_grad(path, loss)
        expected = torch.zeros(4, 4, dtype=torch.float64)
        for e, (size, zero, op) in enumerate(zip(SIZES, zeros, path.ops[:, 0].tolist(), strict=True)):
            advantage = path.gates.grad[e, 0].item()
            if op == zero:
                average[e, op] = 0
                advantage = average[e, :size].max().item()
            else:
                average[e, op] = 0.05 * advantage + 0.95 * average[e, op] if started else advantage
            expected[e, :size] = (
                advantage * (torch.eye(4, dtype=torch.float64)[op] - estimator.probabilities()[e])[:size]
            )
        started = True
        torch.testing.assert_close(estimator.logits.grad, expected)


def idle_loss(ops):
    """Edge 1 takes part only where edge 0 picks 0."""
    return TARGET[0, ops[0]] + (TARGET[1, ops[1]] if ops[0] == 0 else 0.5) + TARGET[2, ops[2]] * TARGET[0, ops[0]]


def exact_gradient(logits, loss):
    logits = logits.clone().requires_grad_()
    p = torch.softmax(logits, 1)
    total = sum(
        torch.stack([p[e, op] for e, op in enumerate(ops)]).prod() * loss(ops)
        for ops in itertools.product(range(2), repeat=3)
    )
    return torch.autograd.grad(total, logits)[0]


def path_with_activity(ops):
    path = Path.from_ops(list(ops), dtype=torch.float64)
    path.active = torch.tensor([True, ops[0] == 0, True])
    return path


LOGITS = torch.tensor([[0.3, -0.2], [0.9, 0.1], [-0.5, 0.2]], dtype=torch.float64)


def test_reinforce_stays_unbiased_with_idle_edges():
    """Summed over all paths; the baseline of a first call is the loss itself, so one call goes before."""
    p = torch.softmax(LOGITS, 1)
    expected, found = exact_gradient(LOGITS, idle_loss), torch.zeros_like(LOGITS)
    for ops in itertools.product(range(2), repeat=3):
        estimator = ReinforceEstimator(3, 2, coefficient=1e-9, dtype=torch.float64)
        estimator.logits.data.copy_(LOGITS)
        estimator.assign_grad(path_with_activity((0, 0, 0)), 0.7)
        path = path_with_activity(ops)
        estimator.assign_grad(path, idle_loss(ops))
        assert ops[0] == 0 or not estimator.logits.grad[1].any()
        found += p.gather(1, path.ops).prod() * estimator.logits.grad
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_leave_one_out_stays_unbiased_with_idle_edges():
    p = torch.softmax(LOGITS, 1)
    expected, found = exact_gradient(LOGITS, idle_loss), torch.zeros_like(LOGITS)
    every = list(itertools.product(range(2), repeat=3))
    for pair in itertools.product(every, repeat=2):
        estimator = RlooEstimator(3, 2, num_samples=2, stratified=False, dtype=torch.float64)
        estimator.logits.data.copy_(LOGITS)
        weight = 1.0
        for ops in pair:
            path = path_with_activity(ops)
            weight *= p.gather(1, path.ops).prod()
            estimator.assign_grad(path, idle_loss(ops))
        found += weight * estimator.logits.grad
    torch.testing.assert_close(found, expected)


def test_an_idle_edge_leaves_the_averages_alone():
    estimator = AdvantageEstimator(2, 3, zero_op=0)
    path = Path.from_ops([1, 1])
    path.gates.grad = torch.tensor([[0.5], [-2.0]])
    estimator.assign_grad(path, 1.0)
    for op in (1, 0):  # an operation, and none
        path = Path.from_ops([1, op])
        path.active = torch.tensor([True, False])
        path.gates.grad = torch.tensor([[0.5], [0.0]])
        estimator.assign_grad(path, 1.0)
        assert estimator.average[1].tolist() == [0, -2, 0]
        assert not estimator.logits.grad[1].any()
        assert estimator.logits.grad[0].any()


def test_says_what_was_expected():
    with pytest.raises(ValueError, match=r"num_ops must be 2 integers >= 1, one of them >= 2, got \[1, 1\]"):
        AdvantageEstimator(2, [1, 1])
    with pytest.raises(ValueError, match=r"num_ops must be 2 integers >= 1, one of them >= 2, got \[3\]"):
        AdvantageEstimator(2, [3])
    with pytest.raises(ValueError, match="zero_op must be one for each of 2 edges, got "):
        AdvantageEstimator(2, 3, [0])
    with pytest.raises(ValueError, match="zero_op must be None or an integer from 0 to 1, got 2"):
        AdvantageEstimator(2, [3, 2], [2, 2])
    with pytest.raises(ValueError, match=r"Path: active must be bool \[2\] on the host, got torch.int64 \[2\] on cpu"):
        Path(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1), active=torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("name", NAMES)
def test_conversions_keep_it_on_the_host(name):
    estimator = make(name, dtype=torch.float32)
    holder = torch.nn.ModuleList([estimator, torch.nn.Linear(2, 2)])
    before = estimator.logits
    holder.to("meta")
    assert holder[1].weight.is_meta
    assert estimator.logits is before
    assert all(tensor.device.type == "cpu" for tensor in (*estimator.parameters(), *estimator.buffers()))
    holder.half()
    assert estimator.logits.dtype == torch.float32
    holder.double()
    assert estimator.logits.dtype == torch.float64
    step(estimator, torch.optim.SGD([estimator.logits], lr=0.1), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_gradients_add_up(name):
    grads, generator = [], torch.Generator().manual_seed(6)
    estimator = make(name)
    for _ in range(16):
        path = estimator.sample(generator)
        loss = loss_on(path)
        loss.backward()
        other = make(name)
        other.load_state_dict(estimator.state_dict())
        other.assign_grad(path, loss)
        if other.logits.grad is not None:
            grads.append(other.logits.grad)
        estimator.assign_grad(path, loss, accumulate=True)
    if grads:
        torch.testing.assert_close(estimator.logits.grad, torch.stack(grads).sum(0))
    else:
        assert estimator.logits.grad is None


NODES = [[0, 1], [2, 3, 4]]


def strengths(estimator, ops):
    """Of a cell: the sum of the probabilities of what it keeps."""
    p = estimator.probabilities()
    return sum(p[edge, op].item() for edge, op in enumerate(ops) if op >= 0)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("inputs", [1, 2])
def test_topology_against_enumeration(seed, inputs):
    """Of all cells whose nodes keep that many edges, none of them with the zero operation, the strongest one."""
    estimator = AdvantageEstimator(5, [3, 2, 4, 3, 3], zero_op=0, dtype=torch.float64)
    estimator.logits.data.normal_(generator=torch.Generator().manual_seed(seed))
    cells = []
    for picked in itertools.product(*(range(-1, size) for size in (3, 2, 4, 3, 3))):
        counts = [sum(picked[edge] >= 0 for edge in edges) for edges in NODES]
        if 0 not in picked and counts == [min(inputs, len(edges)) for edges in NODES]:
            cells.append(picked)
    best = max(cells, key=lambda ops: strengths(estimator, ops))
    assert estimator.topology(NODES, inputs).tolist() == list(best)


def test_topology_says_what_was_expected():
    estimator = AdvantageEstimator(2, [2, 1], zero_op=[None, 0])
    with pytest.raises(ValueError, match=r"nodes must name edges from 0 to 1, each once, got \[\[0, 0\]\]"):
        estimator.topology([[0, 0]])
    with pytest.raises(ValueError, match="an edge needs an operation besides the zero operation, got 1"):
        estimator.topology([[0, 1]])
    assert estimator.topology([[0, 1]], inputs=1).tolist() == [0, -1]
