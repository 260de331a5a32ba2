"""What every estimator promises, over the registry. Formulas, frequencies and schedules: the files beside this one."""

import copy
import io
import math
import pickle

import pytest
import torch

import advnas_ext
from advnas_ext import ESTIMATORS, GdasEstimator, ParsecEstimator, Path

NAMES = sorted(ESTIMATORS)
READS_GATES = [name for name in NAMES if ESTIMATORS[name].needs_gate_gradients]
TARGET = torch.tensor([[0.2, -0.4, 0.7], [-0.9, 0.5, 0.1], [0.6, 0.3, -0.8]])


def make(name, num_edges=3, num_ops=3, **settings):
    return ESTIMATORS[name](num_edges, num_ops, **{"total_steps": 400, **settings})


def loss_on(path, target=TARGET):
    """Each edge adds the target of its operation, and all of it is squashed a little: positive, smallest at the row minima."""
    return (path.gates * target.to(path.gates).gather(1, path.ops)).sum().div(3).exp()


def architecture_step(estimator, optimizer, generator, target=TARGET):
    path = estimator.sample(generator)
    loss = loss_on(path, target)
    loss.backward()
    estimator.assign_grad(path, loss)
    optimizer.step()
    optimizer.zero_grad()
    estimator.after_step(path)


def snapshot(estimator):
    grad = estimator.logits.grad
    return copy.deepcopy(estimator.state_dict()), None if grad is None else grad.clone()


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        torch.testing.assert_close(after[0][name], value, rtol=0, atol=0, equal_nan=True)
    assert (before[1] is None) == (after[1] is None)
    if before[1] is not None:
        assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_new_estimator(name):
    estimator = make(name, num_edges=2, num_ops=4)
    assert dict(estimator.named_parameters()).keys() == {"logits"}
    assert torch.equal(estimator.logits, torch.zeros(2, 4))
    assert torch.equal(estimator.probabilities(), torch.full((2, 4), 0.25))
    assert estimator.entropy() == pytest.approx(math.log(4))
    assert "num_edges=2, num_ops=4" in repr(estimator)
    path = estimator.sample()
    assert path.ops.shape == path.gates.shape == (2, estimator.picks)
    assert path.gates.dtype == estimator.logits.dtype
    assert path.gates.requires_grad
    assert path.gates.is_leaf
    assert getattr(advnas_ext, type(estimator).__name__) is ESTIMATORS[name]
    assert type(estimator).__module__ == f"advnas_ext.estimators.{name}", "a file each"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_logits_say(name):
    estimator = make(name, num_edges=2)
    estimator.logits.data.copy_(torch.tensor([[0.0, math.log(2), 0.0], [1.0, 0.0, 1.0]]))
    assert estimator.argmax().tolist() == [1, 0]
    assert estimator.argmax().dtype == torch.int64
    assert estimator.probabilities()[0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    e = math.e
    edge_1 = math.log(2 * e + 1) - 2 * e / (2 * e + 1)
    assert estimator.entropy() == pytest.approx((1.5 * math.log(2) + edge_1) / 2)
    assert not estimator.probabilities().requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_but_random_finds_the_best_operations(name, dtype):
    estimator = make(name, dtype=dtype)
    optimizer = torch.optim.Adam([estimator.logits], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        architecture_step(estimator, optimizer, generator)
    assert estimator.logits.dtype == dtype
    if name == "random":
        assert not estimator.logits.any()
    else:
        assert torch.equal(estimator.argmax(), TARGET.argmin(1))
        assert estimator.entropy() < math.log(3) - 0.01


@pytest.mark.parametrize("name", NAMES)
def test_float64_throughout(name):
    estimator = make(name, dtype=torch.float64, zero_op=0)
    for _ in range(8):
        path = estimator.sample()
        loss = loss_on(path)
        loss.backward()
        estimator.assign_grad(path, loss)
        assert path.gates.dtype == torch.float64
    assert name == "random" or estimator.logits.grad.dtype == torch.float64
    assert all(buffer.dtype == torch.float64 for buffer in estimator.buffers() if buffer.is_floating_point())


SMALL = pytest.mark.parametrize("num_edges, num_ops", [(1, 3), (3, 2), (1, 2)])


@SMALL
@pytest.mark.parametrize("name", NAMES)
def test_one_edge_and_two_operations(name, num_edges, num_ops):
    estimator = make(name, num_edges, num_ops)
    target = TARGET[:num_edges, :num_ops]
    target = (target - target.mean(1, keepdim=True)).sign()  # NASP's box takes all that raise the loss to 0 alike
    optimizer = torch.optim.Adam([estimator.logits], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        architecture_step(estimator, optimizer, generator, target)
    if name == "random":
        assert not estimator.logits.any()
    else:
        assert torch.equal(estimator.argmax(), target.argmin(1))


@SMALL
@pytest.mark.parametrize("name", NAMES)
def test_one_edge_and_two_operations_of_which_one_is_zero(name, num_edges, num_ops):
    estimator = make(name, num_edges, num_ops, zero_op=1)
    optimizer = torch.optim.SGD([estimator.logits], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        architecture_step(estimator, optimizer, generator, torch.ones(num_edges, num_ops))
    assert estimator.logits.isfinite().all()
    assert estimator.argmax().shape == (num_edges,)


@pytest.mark.parametrize("name", NAMES)
def test_only_advantage_treats_the_zero_operation_in_a_way_of_its_own(name):
    logits = []
    for zero_op in (None, 0):
        estimator = make(name, zero_op=zero_op)
        optimizer = torch.optim.SGD([estimator.logits], lr=0.1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(24):
            architecture_step(estimator, optimizer, generator)
        logits.append(estimator.logits)
    assert torch.equal(*logits) == (name != "advantage")


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_assigned_not_added(name):
    estimator = make(name, **({"num_samples": 2} if name == "parsec" else {}))
    start = {key: value.clone() for key, value in estimator.state_dict().items()}

    def written(given):
        estimator.load_state_dict(start)  # what the estimator remembers is not what is asked here
        generator = torch.Generator().manual_seed(0)
        for number in range(getattr(estimator, "num_samples", 2)):
            path = estimator.sample(generator)
            loss = loss_on(path) + number
            loss.backward()
            estimator.assign_grad(path, given(loss))
        return estimator.logits.grad

    first = written(torch.Tensor.item)
    assert (first is None or not first.any()) == (name == "random")
    torch.testing.assert_close(written(torch.Tensor.detach), first)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["gradient", "loss"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_refused(name, what, bad):
    estimator = make(name, zero_op=0)
    estimator.logits.data.copy_(TARGET)
    good = estimator.sample()
    loss_on(good).backward()
    estimator.assign_grad(good, 1.0)
    before = snapshot(estimator)

    path = estimator.sample()
    loss_on(path).backward()
    if what == "gradient":
        path.gates.grad[1, 0] = bad
    with pytest.raises(
        FloatingPointError, match=rf"{type(estimator).__name__}\.assign_grad: .*lower the learning rate"
    ):
        estimator.assign_grad(path, torch.tensor(bad if what == "loss" else 1.0))
    assert_same(before, snapshot(estimator))


def test_what_is_not_finite_is_refused_in_offsets_too():
    estimator = make("gdas", unpicked="sum")
    path = estimator.sample()
    (loss_on(path) + path.offsets.sum()).backward()
    path.offsets.grad[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"path\.offsets\.grad has infinite or NaN entries"):
        estimator.assign_grad(path, 1.0)
    assert estimator.logits.grad is None


@pytest.mark.parametrize("name", ["advantage", "reinforce", "gdas"])
def test_an_estimate_that_overflows_is_refused(name):
    estimator = make(name, zero_op=0)
    for sign in (-1, 1):
        path = estimator.sample() if name == "gdas" else Path.from_ops([1, 1, 1])
        if name == "gdas":
            path.temperature = 1e-3
        path.gates.grad = torch.full((3, 1), sign * 3e38)
        before = snapshot(estimator)
        try:
            estimator.assign_grad(path, sign * 3e38)
        except FloatingPointError as error:
            assert "overflows; scale the loss down" in str(error)  # noqa: PT017
            assert_same(before, snapshot(estimator))
            return
    pytest.fail("no error")


@pytest.mark.parametrize("name", READS_GATES)
def test_a_missing_gradient_of_the_gates(name):
    estimator = make(name)
    with pytest.raises(ValueError, match=r"path\.gates\.grad is missing; call loss\.backward\(\) first"):
        estimator.assign_grad(estimator.sample(), 1.0)
    assert estimator.logits.grad is None


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(READS_GATES)))
def test_some_need_no_gradient_of_the_gates(name):
    estimator = make(name)
    optimizer = torch.optim.SGD([estimator.logits], lr=1.0)
    for loss in torch.arange(16.0):
        estimator.assign_grad(estimator.sample(), loss)
        optimizer.step()
    assert estimator.logits.any() == (name != "random")


def test_missing_offsets():
    estimator = make("gdas", unpicked="sum")
    path = estimator.sample()
    loss_on(path).backward()
    with pytest.raises(ValueError, match=r"path\.offsets\.grad is missing; .*unpicked='zero'"):
        estimator.assign_grad(path, 1.0)
    path = make("gdas").sample()
    loss_on(path).backward()
    with pytest.raises(ValueError, match=r"path\.offsets\.grad is missing"):
        estimator.assign_grad(path, 1.0)


@pytest.mark.parametrize("function", ["assign_grad", "after_step"])
@pytest.mark.parametrize("name", NAMES)
def test_wrong_paths(name, function):
    def call(path):
        return estimator.assign_grad(path, 1.0) if function == "assign_grad" else estimator.after_step(path)

    estimator = make(name)
    where = rf"{type(estimator).__name__}\.{function}: path"
    with pytest.raises(TypeError, match=rf"{where} must be a .*Path, got Tensor"):
        call(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=rf"{where} must have 3 edges with \d picks, got 2 with"):
        call(make(name, num_edges=2).sample())
    other = make("advantage" if estimator.picks > 1 else "proxyless").sample()
    with pytest.raises((TypeError, ValueError), match=f"{where} must .*take it from sample"):
        call(other)
    path = estimator.sample()
    path.ops[1, 0] = 3
    with pytest.raises(ValueError, match=rf"{where}\.ops must be below 3, got"):
        call(path)


@pytest.mark.parametrize("name", ["gdas", "snas", "darts"])
def test_a_relaxed_path_cannot_be_made_by_hand(name):
    estimator = make(name)
    path = estimator.sample()
    with pytest.raises(TypeError, match="must be a RelaxedPath, got Path"):
        estimator.assign_grad(Path(path.ops, path.gates), 1.0)


@pytest.mark.parametrize(
    "loss, error, text",
    [
        (torch.ones(2), ValueError, r"loss must be one number, got shape \[2\]; take its mean"),
        (torch.ones(0), ValueError, r"got shape \[0\]"),
        ("1", TypeError, "loss must be a tensor or a number, got str"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_wrong_losses(loss, error, text):
    estimator = make("reinforce")
    with pytest.raises(error, match=text):
        estimator.assign_grad(estimator.sample(), loss)


def test_a_loss_may_have_any_shape_of_one_element_and_any_dtype():
    estimator = make("reinforce", dtype=torch.float64)
    for loss in (torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor(1), 0.1, 2):
        estimator.losses_seen.zero_()
        estimator.assign_grad(estimator.sample(), loss)
        assert estimator.baseline.item() == float(loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings, text",
    [
        ({"num_edges": 0}, "num_edges must be an integer >= 1, got 0"),
        ({"num_ops": 1}, "num_ops must be an integer >= 2, got 1"),
        ({"num_ops": 2.0}, "num_ops must be an integer >= 2, got 2.0"),
        ({"zero_op": 3}, "zero_op must be None or an integer from 0 to 2, got 3"),
        ({"zero_op": -1}, "zero_op must be None or an integer from 0 to 2, got -1"),
        ({"total_steps": -1}, "total_steps, .*, must be .*an integer >= 0, got -1"),
        ({"total_steps": True}, "total_steps, .*, must be .*an integer >= 0, got True"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got torch.float16"),
    ],
)
def test_wrong_arguments(name, settings, text):
    with pytest.raises(ValueError, match=f"{ESTIMATORS[name].__name__}: {text}"):
        make(name, **settings)


@pytest.mark.parametrize(
    "name, settings, text",
    [
        ("advantage", {"coefficient": 0.0}, r"coefficient must be in \(0, 1\], got 0.0"),
        ("reinforce", {"coefficient": 1.0}, r"coefficient must be in \(0, 1\), got 1.0"),
        ("parsec", {"num_samples": 1}, "num_samples must be an integer >= 2, got 1"),
        ("parsec", {"weighting": "loud"}, "weighting must be one of loss, likelihood, got 'loud'"),
        ("gdas", {"unpicked": "one"}, "unpicked must be one of zero, sum, got 'one'"),
    ],
)
def test_wrong_settings(name, settings, text):
    with pytest.raises(ValueError, match=text):
        make(name, **settings)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_logits_that_are_not_finite(name, bad):
    estimator = make(name)
    estimator.logits.data[1, 1] = bad
    with pytest.raises(FloatingPointError, match=r"sample: the logits are not finite; lower their learning rate"):
        estimator.sample()


def test_logits_on_another_device():
    estimator = make("advantage")
    estimator.logits = torch.nn.Parameter(estimator.logits.to("meta"))
    with pytest.raises(ValueError, match="logits must stay on the host, got device"):
        estimator.sample()


def resumed_elsewhere(estimator, name):
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    file.seek(0)
    fresh = make(name, zero_op=0, dtype=estimator.logits.dtype)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


COPIES = {
    "state_dict": resumed_elsewhere,
    "deepcopy": lambda estimator, name: copy.deepcopy(estimator),
    "pickle": lambda estimator, name: pickle.loads(pickle.dumps(estimator)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", sorted(COPIES))
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_bit_for_bit(name, how, dtype):
    """After 21 steps, which is in the middle of PARSEC's 8 samples."""
    generator = torch.Generator().manual_seed(0)
    estimator = make(name, zero_op=0, dtype=dtype)
    optimizer = torch.optim.SGD([estimator.logits], lr=0.1)
    for _ in range(21):
        architecture_step(estimator, optimizer, generator)
    if name == "parsec":
        assert estimator.collected == 5
    twin = COPIES[how](estimator, name)
    twin_generator = torch.Generator()
    twin_generator.set_state(generator.get_state())
    twin_optimizer = torch.optim.SGD([twin.logits], lr=0.1)
    before = twin.logits.detach().clone()
    for _ in range(21):
        architecture_step(estimator, optimizer, generator)
        architecture_step(twin, twin_optimizer, twin_generator)
        assert_same(snapshot(estimator), snapshot(twin))
    assert torch.equal(before, twin.logits) == (name == "random")


def test_the_state_between_gradient_and_after_step_is_kept():
    estimator = make("proxyless")
    path = estimator.sample()
    path.gates.grad = torch.tensor([[1.0, -1.0]] * 3)
    estimator.assign_grad(path, 0.0)
    twin = resumed_elsewhere(estimator, "proxyless")
    for each in (estimator, twin):
        each.logits.data.add_(TARGET)
        each.after_step(path)
    assert torch.equal(estimator.logits, twin.logits)
    assert not torch.equal(estimator.logits, TARGET)


def test_parsec_writes_a_gradient_every_num_samples_calls():
    estimator = ParsecEstimator(2, 3)
    written = []
    for index in range(17):
        estimator.assign_grad(estimator.sample(), float(index))
        written.append(estimator.logits.grad is not None)
    assert written == ([False] * 7 + [True]) * 2 + [False]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda path: pickle.loads(pickle.dumps(path))])
def test_paths_are_copied_whole(copied):
    path = GdasEstimator(2, 3, total_steps=5, unpicked="sum").sample()
    twin = copied(path)
    assert twin.temperature == path.temperature
    for name in ("ops", "gates", "offsets", "weights"):
        assert torch.equal(getattr(twin, name), getattr(path, name))
    assert twin.gates.requires_grad
    plain = path.detach()
    assert not plain.gates.requires_grad
    assert torch.equal(plain.ops, path.ops)
