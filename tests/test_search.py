import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from advnas import search
from advnas import state as states
from advnas.data import images as data
from advnas.report.console import Progress
from advnas.run.folder import RunFolder
from advnas.run.watch import Interrupted, Watch
from advnas.state import SearchState
from advnas.tasks.image import ImageSearchConfig, ImageTask
from advnas.training import generators
from advnas_ext import ESTIMATORS, Path

TINY = {
    "channels": 4,
    "cells": 1,
    "epochs": 2,
    "steps_per_epoch": 3,
    "batch_size": 16,
    "valid_batches": 1,
    "arch_lr": 0.1,
}


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return data.load("digits")


def state_of(digits, **settings) -> SearchState:
    config = ImageSearchConfig(**{**TINY, **settings})
    task = ImageTask(config, digits)
    state = SearchState(config, task)
    state.task = task
    return state


def watch_of(state, tmp_path=None) -> Watch:
    folder = None if tmp_path is None else RunFolder(tmp_path)
    return Watch(state, Progress("searching", state.config.epochs, {}), folder, go_on="the command")


def run(state, watch=None) -> SearchState:
    with watch or watch_of(state) as watching:
        search.search(state.task, state, watching)
    return state


def comparable(state) -> dict:
    """Everything that decides how a search goes on; the time does not."""
    saved = state.state_dict()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in saved["values"]["history"]]
    return {**saved["parts"], **saved["values"], "history": rows}


def assert_equal(actual, expected, where="state"):
    assert type(actual) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual.nan_to_num(), expected.nan_to_num()), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_equal(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_equal(one, other, f"{where}.{index}")
    else:
        assert actual == expected, where


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_searches(digits, estimator):
    state = state_of(digits, estimator=estimator, epochs=1, steps_per_epoch=8)
    before = copy.deepcopy(state.network.state_dict())
    run(state)
    (row,) = state.history
    assert row["epoch"] == 1
    assert all(math.isfinite(row[name]) for name in ("train_loss", "valid_loss", "valid_accuracy", "entropy"))
    assert 0 <= row["valid_accuracy"] <= 1
    state.space.parse(row["arch"])
    after = state.network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if "weight" in name)
    learns = estimator != "random"
    assert (state.logits[1] != state.logits[0]) == learns
    assert state.work == state.total_work == (16 if learns else 8)


# In the warm-up; at the last step of an epoch; in a later epoch.
@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_an_interrupted_search_goes_on_bit_for_bit(digits, tmp_path, stop_after):
    assert_resumes(digits, tmp_path, stop_after, estimator="advantage", warmup_epochs=1, epochs=3)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "advantage"])
def test_so_it_does_with_every_estimator(digits, tmp_path, estimator):
    assert_resumes(digits, tmp_path, 2, estimator=estimator)


def assert_resumes(digits, tmp_path, stop_after, **settings):
    expected = comparable(run(state_of(digits, **settings)))
    state = state_of(digits, **settings)
    watch = watch_of(state, tmp_path)
    stop_at(watch, stop_after)
    with pytest.raises(Interrupted, match="go on with: the command"):
        run(state, watch)
    resumed = state_of(digits, **settings)
    torch.rand(7)  # the global generator has no part in it
    resumed.load_state_dict(RunFolder(tmp_path).load("search", {}))
    assert resumed.epoch * 3 + resumed.step == stop_after
    assert_equal(comparable(run(resumed)), expected)


def stop_at(watch, steps):
    """Ask to stop, as Ctrl-C does, while a step is running."""
    after_step, left = watch.after_step, iter(range(steps, 0, -1))

    def counted():
        watch.stop = next(left) == 1
        after_step()

    watch.after_step = counted


def test_a_checkpoint_after_every_epoch(digits, tmp_path):
    state = state_of(digits)
    epochs = []
    watch = watch_of(state, tmp_path)
    watch.record = lambda: epochs.append(watch.folder.load("search", {})["values"]["epoch"]) or {"epoch": 0}
    run(state, watch)
    assert epochs == [1, 2]


def test_the_seed_decides_everything(digits):
    expected = comparable(run(state_of(digits)))
    torch.manual_seed(1234)
    assert_equal(comparable(run(state_of(digits))), expected)
    other = comparable(run(state_of(digits, seed=1)))
    assert other["history"][0]["train_loss"] != expected["history"][0]["train_loss"]


def test_a_search_leaves_the_global_generator_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(state_of(digits))
    assert torch.equal(torch.rand(3), expected)


def test_streams_of_random_numbers_differ():
    draws = [torch.rand(4, generator=generator).tolist() for seed in (0, 1) for generator in generators(seed, 3)]
    assert len({tuple(draw) for draw in draws}) == 6


def test_a_weight_step_is_a_clipped_step_of_sgd(digits):
    state = state_of(digits, grad_clip=0.01, momentum=0.0, nesterov=False, weight_decay=0.0, lr=0.5)
    twin = copy.deepcopy(state.network)
    x, y = next(iter(copy.deepcopy(state.weight_stream)))
    path = state.estimator.sample(clone(state.path_generator)).detach()
    search.weight_step(state.task, state)
    cross_entropy(twin(x, path), y).backward()
    touched = [p for p in twin.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in touched]).norm()
    assert norm > 0.01  # so that clipping is seen
    for p in touched:
        p.data -= 0.5 * p.grad * 0.01 / (norm + 1e-6)
    for (name, actual), expected in zip(state.network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            actual, expected, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert state.estimator.logits.tolist() == state.logits[0]


def clone(generator):
    return torch.Generator().set_state(generator.get_state())


def test_an_architecture_step_moves_the_logits_by_the_advantage_and_no_weight(digits):
    state = state_of(digits, arch_betas=(0.0, 0.0), arch_weight_decay=0.0)
    twin = copy.deepcopy(state.network)
    x, y = next(iter(copy.deepcopy(state.arch_stream)))
    path = state.estimator.sample(clone(state.path_generator))
    before = copy.deepcopy(list(state.network.parameters()))
    search.architecture_step(state.task, state)
    cross_entropy(twin(x, path), y).backward()
    advantage, zero = path.gates.grad[:, 0], path.ops[:, 0] == state.space.ops.index(state.space.zero_op)
    live = ~zero & (advantage.abs() > 1e-6)
    assert live.any()
    # Adam without averages steps by the sign: against the picked operation where its advantage, the loss it adds, is positive.
    moved = (state.estimator.logits - torch.tensor(state.logits[0])).gather(1, path.ops)[:, 0]
    torch.testing.assert_close(moved[live], -0.1 * advantage[live].sign(), rtol=1e-2, atol=0)
    assert all(p.grad is None for p in state.network.parameters())
    for old, new in zip(before, state.network.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_gradient_that_is_no_number_stops_before_the_step(digits):
    state = state_of(digits)
    weights = [p.clone() for p in state.network.parameters()]
    # The loss is a number and its gradient is not: sqrt has an infinite slope at 0.
    state.network.classifier.register_forward_hook(lambda module, args, scores: scores + scores.sub(scores).sqrt())
    with pytest.raises(FloatingPointError, match="the norm of the weights' gradient must be finite, got nan"):
        search.weight_step(state.task, state)
    assert all(torch.equal(old, new) for old, new in zip(weights, state.network.parameters(), strict=True))


def test_only_an_architecture_step_asks_for_gradients_of_the_gates(digits):
    state = state_of(digits)
    asked = []
    state.network.register_forward_pre_hook(lambda module, args: asked.append(args[1].gates.requires_grad))
    search.weight_step(state.task, state)
    search.architecture_step(state.task, state)
    assert asked == [False, True]


def test_the_learning_rate_falls_as_a_cosine_over_the_whole_search(digits):
    state = state_of(digits, lr=0.1, lr_min=0.02, epochs=2, steps_per_epoch=4)
    rates = []
    watch = watch_of(state)
    watch.after_step = lambda: rates.append(state.weight_optimizer.param_groups[0]["lr"])
    run(state, watch)
    expected = [0.02 + 0.04 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 9)]
    assert rates == pytest.approx(expected)


def test_the_logits_rate_falls_as_a_cosine_after_the_warm_up(digits):
    state = state_of(digits, arch_lr=0.1, arch_lr_min=0.02, epochs=3, warmup_epochs=1, steps_per_epoch=4)
    rates = []
    watch = watch_of(state)
    watch.after_step = lambda: rates.append(state.arch_optimizer.param_groups[0]["lr"])
    run(state, watch)
    expected = [0.02 + 0.04 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 9)]
    assert rates == pytest.approx([0.1] * 4 + expected)


def test_a_part_of_a_longer_schedule_is_its_beginning(digits):
    settings = {"lr_min": 0.02, "arch_lr_min": 0.0, "warmup_epochs": 1, "steps_per_epoch": 4, "estimator": "gdas"}
    whole, part = state_of(digits, epochs=4, **settings), state_of(digits, epochs=2, schedule_epochs=4, **settings)
    run(whole)
    run(part)
    assert [row["train_loss"] for row in part.history] == [row["train_loss"] for row in whole.history[:2]]
    assert part.logits == whole.logits[:3]


def test_a_checkpoint_from_before_the_logits_had_a_schedule_loads(digits):
    state = state_of(digits, epochs=1, steps_per_epoch=2)
    run(state)
    saved = state.state_dict()
    del saved["parts"]["arch_schedule"]
    fresh = state_of(digits, epochs=1, steps_per_epoch=2)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.estimator.logits, state.estimator.logits)


def test_the_warm_up_draws_uniformly_and_leaves_the_logits_alone(digits):
    state = state_of(digits, warmup_epochs=1, epochs=2)
    state.estimator.logits.data[:, 0] = 50.0  # the estimator would draw the first operation always
    drawn = torch.cat([state.draw_path().ops for _ in range(500)])
    assert drawn.flatten().bincount(minlength=5).min() > 400
    watch = watch_of(state)
    watch.after_epoch = lambda: watch.__setattr__("stop", True)
    logits = state.estimator.logits.clone()
    with pytest.raises(Interrupted):
        run(state, watch)
    assert torch.equal(torch.tensor(state.logits[1]), logits)  # after the warm-up
    assert not torch.equal(state.estimator.logits, logits)  # a step later
    assert (state.draw_path().ops == 0).all()


def test_the_halves_are_disjoint_and_the_held_out_images_are_of_the_architecture_half(digits):
    state = state_of(digits, batch_size=64)
    weights, arch = set(state.task.weight_index.tolist()), set(state.task.arch_index.tolist())
    assert not weights & arch
    assert len(weights | arch) == len(digits.train)
    assert sorted(state.held_out.index.tolist()) == sorted(arch)
    assert state.held_out.index[:128].sort().values.tolist() != sorted(arch)[:128]  # a mix of all classes


def test_held_out_batches_are_the_first_ones_always(digits):
    state = state_of(digits, batch_size=64)
    everything = list(state.held_out(1000))
    assert sum(len(y) for _, y in everything) == len(state.task.arch_index)
    for count in (1, 3, 1):
        for (x, y), (same_x, same_y) in zip(state.held_out(count), everything[:count], strict=True):
            assert torch.equal(x, same_x)
            assert torch.equal(y, same_y)


def test_random_search_keeps_the_best_cell_that_it_drew(digits, monkeypatch):
    state = state_of(digits, estimator="random", epochs=2, steps_per_epoch=1)
    measured = {}

    def evaluate(task, state, ops, batches):
        measured[tuple(ops.tolist())] = loss = float(ops.sum())
        return {"loss": loss, "accuracy": 0.0}

    monkeypatch.setattr(search, "evaluate", evaluate)
    run(state)
    assert len(measured) > states.DRAWN
    best = min(measured, key=measured.get)
    assert state.space.parse(state.history[-1]["arch"]).sum() == sum(best)
    assert state.history[-1]["valid_loss"] == sum(best) <= state.history[0]["valid_loss"]


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_steps(digits, monkeypatch):
    losses, real = [], search.check_finite
    monkeypatch.setattr(
        search,
        "check_finite",
        lambda name, value: losses.append(value.item()) or real(name, value) if "loss" in name else None,
    )
    state = run(state_of(digits, steps_per_epoch=5))
    expected = [sum(losses[:5]) / 5, sum(losses[5:]) / 5]
    assert [row["train_loss"] for row in state.history] == pytest.approx(expected)


@pytest.mark.parametrize("where, what", [("weight", "training loss must be"), ("logits", "logits are not")])
def test_a_number_that_is_none_stops_the_search_with_the_last_good_checkpoint(digits, tmp_path, where, what):
    state = state_of(digits)
    watch = watch_of(state, tmp_path)
    after_step = watch.after_step

    def poison():
        if state.epoch == 1:
            target = state.network.classifier.weight if where == "weight" else state.estimator.logits
            target.data.fill_(math.nan)
        after_step()

    watch.after_step = poison
    with pytest.raises(FloatingPointError, match=rf"^epoch 2, step 2: .*{what} .*last good checkpoint is .*search\.pt"):
        run(state, watch)
    good = RunFolder(tmp_path).load("search", {})
    assert good["values"]["epoch"] == 1
    assert all(value.isfinite().all() for value in good["parts"]["network"].values())


def test_settings_of_the_estimator_reach_it(digits):
    assert state_of(digits).estimator.zero_op == 0
    assert state_of(digits, estimator_settings={"zero_op": None}).estimator.zero_op is None
    assert state_of(digits, estimator="parsec", estimator_settings={"num_samples": 3}).estimator.num_samples == 3
    with pytest.raises(ValueError, match=r"must be settings of parsec, num_samples, .*, got 'samples'"):
        state_of(digits, estimator="parsec", estimator_settings={"samples": 3})


def test_the_steps_of_the_schedules_are_those_of_the_logits(digits):
    state = state_of(digits, estimator="gdas", warmup_epochs=1, epochs=3)
    assert state.estimator.total_steps == 6
    run(state)
    assert state.estimator.temperature == pytest.approx(0.1)


def test_evaluation_does_not_touch_the_weights(digits):
    state = state_of(digits)
    before = [p.clone() for p in state.network.parameters()]
    path = Path.from_ops(state.estimator.argmax())
    metrics = search.evaluate(state.task, state, path.ops[:, 0], 3)
    batches = list(state.held_out(3))
    y = torch.cat([y for _, y in batches])
    scores = torch.cat([state.network(x, path) for x, _ in batches])  # batch norm sees a batch at a time
    assert len(y) == 3 * TINY["batch_size"]
    assert metrics["loss"] == pytest.approx(cross_entropy(scores, y).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((scores.argmax(1) == y).float().mean().item())
    assert all(torch.equal(old, new) for old, new in zip(before, state.network.parameters(), strict=True))


# Paths that are measured on one batch


def record(network):
    """What the network is run on from now on: images and whether gradients of the gates are asked for."""
    seen = []
    network.register_forward_pre_hook(
        lambda module, args: seen.append((args[0], args[1], torch.is_grad_enabled() and args[1].gates.requires_grad))
    )
    return seen


def test_paths_that_belong_together_are_measured_on_one_batch(digits):
    state = state_of(digits, estimator="rloo", estimator_settings={"num_samples": 3})
    seen, logits = record(state.network), []
    for _ in range(2):
        search.architecture_step(state.task, state)
        logits.append(state.estimator.logits.clone())
    first, second = seen[:3], seen[3:]
    assert len(second) == 3
    assert all(x is first[0][0] for x, _, _ in first)
    assert all(x is second[0][0] for x, _, _ in second)
    assert not torch.equal(first[0][0], second[0][0])
    assert not any(asked for _, _, asked in seen)
    assert not torch.equal(*logits)  # a step of the logits for every batch
    assert state.estimator.collected == 0
    assert state.work == 2


def test_paths_that_do_not_belong_together_have_batches_of_their_own(digits):
    state = state_of(digits, estimator="parsec", estimator_settings={"num_samples": 2})
    seen = record(state.network)
    search.architecture_step(state.task, state)
    assert torch.equal(state.estimator.logits, torch.tensor(state.logits[0]))
    search.architecture_step(state.task, state)
    assert not torch.equal(state.estimator.logits, torch.tensor(state.logits[0]))
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_weight_step_between_them_does_not_disturb_the_paths(digits):
    """A weight step draws from the same estimator, which is between two groups then."""
    state = state_of(digits, estimator="rloo")
    for _ in range(3):
        search.weight_step(state.task, state)
        search.architecture_step(state.task, state)
        assert state.estimator.collected == 0


# Some of the operations


@pytest.mark.parametrize("estimator", ["advantage", "random", "swap"])
def test_operations_that_are_left_out_are_never_found(digits, estimator):
    state = state_of(digits, estimator=estimator, without=("none",), warmup_epochs=1)
    assert state.ops == ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    assert state.estimator.logits.shape == (6, 4)
    assert state.estimator.zero_op is None
    seen = record(state.network)
    run(state)
    assert all((path.ops < 4).all() for _, path, _ in seen)
    assert not any("none" in row["arch"] for row in state.history)
    assert "none" not in state.arch(state.best[0])
    assert all(len(candidates) == 4 for candidates in state.network.cells[0].edges.values())


def test_cells_are_named_by_the_operations_that_run(digits):
    state = state_of(digits, without=("skip_connect", "avg_pool_3x3"))
    assert state.ops == ("none", "nor_conv_1x1", "nor_conv_3x3")
    assert state.estimator.zero_op == 0
    ops = torch.tensor([2, 1, 0, 1, 2, 2])
    arch = state.arch(ops)
    assert arch == "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|nor_conv_1x1~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    ran = []
    for target, source in state.space.edges:
        for name, op in zip(state.ops, state.network.cells[0].edges[f"{target}<-{source}"], strict=True):
            weight = next((p for p in op.parameters() if p.dim() == 4), None)
            if weight is not None:
                ran.append((f"{name}~{source}", weight))
    loss = state.network(torch.randn(4, 1, 8, 8), Path.from_ops(ops)).sum()
    loss.backward()
    assert [name for name, weight in ran if weight.grad is not None] == [
        name for name in arch.replace("+", "").strip("|").split("|") if name and "none" not in name
    ]


@pytest.mark.parametrize(
    "without, message",
    [
        (("conv",), "without: must be operations among none, skip_connect, .*, got 'conv'"),
        (("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"), "without: must leave at least two operations, got"),
    ],
)
def test_what_cannot_be_left_out(digits, without, message):
    with pytest.raises(ValueError, match=message):
        state_of(digits, without=without)


# Smaller images and lighter networks


@pytest.mark.parametrize(
    "settings", [{"image_size": 5}, {"reduction": "light"}, {"image_size": 3, "reduction": "light"}]
)
def test_other_supernets_search(digits, settings):
    state = state_of(digits, **settings)
    seen = record(state.network)
    run(state)
    assert {tuple(x.shape[1:]) for x, _, _ in seen} == {
        (1, settings.get("image_size", 8), settings.get("image_size", 8))
    }
    assert len(state.history) == 2


def test_images_do_not_grow(digits):
    state = state_of(digits, image_size=9)
    assert torch.equal(state.task.images.train.pixels, digits.train.pixels)
    assert state.task.images.augment == digits.augment
