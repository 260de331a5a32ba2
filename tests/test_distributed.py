"""Estimators over processes of torch.distributed: one path, the mean of what was measured."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from advnas_ext import ESTIMATORS, AdvantageEstimator, OnePathChoice, Search

WORLD = 2


def in_processes(function, tmp_path, *arguments):
    mp.spawn(started, (function, tmp_path / "rendezvous", tmp_path, arguments), nprocs=WORLD)
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def started(rank, function, rendezvous, tmp_path, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    torch.save(function(rank, *arguments), tmp_path / f"{rank}.pt")
    dist.destroy_process_group()


def loss_on(path, part):
    """Of a part of the batch: each has a slope of its own."""
    target = torch.arange(6.0).reshape(2, 3) - 2 + part
    return (path.gates * target.gather(1, path.ops)).sum().div(4).exp()


def all_estimators(rank):
    """Logits after some steps of every estimator, each process with randomness of its own."""
    group, found = dist.group.WORLD, {}
    for name, kind in ESTIMATORS.items():
        estimator = kind(2, 3, total_steps=20)
        optimizer = torch.optim.Adam([estimator.logits], lr=0.1)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(20):
            path = estimator.sample(generator, group=group)
            loss = loss_on(path, rank)
            loss.backward()
            estimator.assign_grad(path, loss, group=group)
            optimizer.step()
            estimator.after_step(path)
        found[name] = estimator.state_dict()
    return found


def mean_of_two(rank):
    estimator = AdvantageEstimator(2, 3)
    path = estimator.sample(torch.Generator().manual_seed(rank), group=dist.group.WORLD)
    loss = loss_on(path, rank)
    loss.backward()
    estimator.assign_grad(path, loss, group=dist.group.WORLD)
    return {"ops": path.ops, "gate": path.gates.grad, "grad": estimator.logits.grad, "p": estimator.probabilities()}


def errors(rank):
    """What each process says where one of them has another path, or no number."""
    said = []
    estimator = AdvantageEstimator(2, 3)
    path = estimator.sample(torch.Generator().manual_seed(0), group=dist.group.WORLD)
    if rank == 1:
        path.ops = (path.ops + 1) % 3
    path.gates.grad = torch.ones(2, 1)
    for function, value in ((dist.group.WORLD, 1.0), (dist.group.WORLD, float("nan") if rank == 0 else 1.0)):
        try:
            estimator.assign_grad(path, value, group=function)
        except (RuntimeError, FloatingPointError) as error:
            said.append(str(error))
        path.ops = torch.zeros(2, 1, dtype=torch.int64)
    return said


def without_group(rank):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        AdvantageEstimator(2, 3).sample()
        AdvantageEstimator(2, 3).sample(group=dist.group.WORLD)
    return [str(warning.message) for warning in seen]


def search(rank):
    torch.manual_seed(0)
    model = nn.Sequential(OnePathChoice([nn.Linear(3, 3), nn.Identity()]), OnePathChoice([nn.Linear(3, 3), nn.Tanh()]))
    driver = Search(nn.parallel.DistributedDataParallel(model, find_unused_parameters=True), group=dist.group.WORLD)
    logits = torch.optim.Adam([driver.logits], lr=0.1)
    weights = torch.optim.SGD(driver.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(rank)
    for _ in range(5):
        driver.sample()
        loss = driver.model(torch.randn(4, 3, generator=data)).square().mean()
        weights.zero_grad()
        loss.backward()
        driver.assign_grad(loss)
        weights.step()
        logits.step()
        driver.after_step()
    return driver.state_dict()


class Exits(nn.Module):
    """A second choice that runs where the data say so."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (OnePathChoice([nn.Tanh(), nn.Identity(), nn.Sigmoid()], baseline=None) for _ in range(2))

    def forward(self, x):
        x = self.a(x)
        return self.b(x) if x.mean() > 0 else x


def data_dependent(rank):
    logits = {}
    for estimator in (AdvantageEstimator, ESTIMATORS["reinforce"], ESTIMATORS["rloo"]):
        model = Exits()
        driver = Search(model, estimator, group=dist.group.WORLD)
        optimizer = torch.optim.SGD([driver.logits], lr=0.5)
        data, paths = torch.Generator().manual_seed(rank), torch.Generator().manual_seed(0)
        for _ in range(12):
            driver.sample(paths)
            loss = model(torch.randn(4, 3, generator=data)).square().sum()
            driver.backward(loss)
            driver.assign_grad(loss)
            optimizer.step()
            driver.after_step()
        logits[estimator.__name__] = driver.logits.detach()
    return logits


def test_an_edge_is_active_that_is_so_in_one_process(tmp_path):
    first, second = in_processes(data_dependent, tmp_path)
    for name, logits in first.items():
        assert torch.equal(logits, second[name]), name
        assert logits[1].any(), name


def test_every_estimator_stays_the_same_in_all_processes(tmp_path):
    first, second = in_processes(all_estimators, tmp_path)
    for name, state in first.items():
        for key, value in state.items():
            torch.testing.assert_close(value, second[name][key], rtol=0, atol=0, equal_nan=True, msg=f"{name}, {key}")
        assert not ESTIMATORS[name].learns or state["logits"].any(), name


def test_the_gradient_is_the_mean(tmp_path):
    first, second = in_processes(mean_of_two, tmp_path)
    assert torch.equal(first["ops"], second["ops"])
    assert not torch.equal(first["gate"], second["gate"])
    mean = (first["gate"] + second["gate"]) / 2
    onehot = nn.functional.one_hot(first["ops"][:, 0], 3)
    for found in (first, second):
        torch.testing.assert_close(found["grad"], mean * (onehot - found["p"]))


def test_all_processes_say_so_together(tmp_path):
    for said in in_processes(errors, tmp_path):
        assert len(said) == 2
        assert "the processes of the group have different paths" in said[0]
        assert "loss is nan" in said[1]


def test_warns_where_no_group_was_given(tmp_path):
    for said in in_processes(without_group, tmp_path):
        assert len(said) == 1
        assert "2 processes and no group was given" in said[0]


def test_a_search_of_a_model_under_data_parallel(tmp_path):
    first, second = in_processes(search, tmp_path)
    for part in ("model", "estimator"):
        for key, value in first[part].items():
            torch.testing.assert_close(value, second[part][key], msg=key)
    assert first["estimator"]["logits"].any()


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_one_process_needs_no_group(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ESTIMATORS[name](2, 3, total_steps=5).sample()
