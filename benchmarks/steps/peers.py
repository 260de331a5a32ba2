"""Steps of a search in other projects' spaces, by their own methods and by this package: medians of CPU times taken in turns in one
process, and the peak memory of a process for each side. In the environment that `make test-peers` makes for a project:

    .venv-nni/bin/python -m benchmarks.steps.peers nni        # or timm, whittle
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from advnas_ext import DartsEstimator, Search
from benchmarks.steps.peak import in_own_process

MODULE = "benchmarks.steps.peers"  # also where it is run as a script
Step = Callable[[], object]  # one of the weights and one of the architecture, as far as the method has both


def cross_entropy(y: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(y.flatten(0, -2), targets.flatten())


def turns_of(search: Search, data: tuple[torch.Tensor, torch.Tensor]) -> Step:
    """Ours: the advantages on one path, then the weights on another."""

    def step() -> None:
        search.sample()
        loss = cross_entropy(search.model(data[0]), data[1])
        search.backward(loss)
        search.assign_grad(loss)
        search.sample(gates=False)
        cross_entropy(search.model(data[0]), data[1]).backward()

    return step


def on_one_path(search: Search, data: tuple[torch.Tensor, torch.Tensor]) -> Step:
    """The weights alone, on a random path."""

    def step() -> None:
        search.sample(gates=False)
        cross_entropy(search.model(data[0]), data[1]).backward()

    return step


def nni_sides(space: str) -> dict[str, Callable[[], Step]]:
    from nni.nas.hub.pytorch import DARTS, NasBench201, ProxylessNAS
    from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
    from nni.nas.strategy import DARTS as AllOps
    from nni.nas.strategy import GumbelDARTS, Proxyless, RandomOneShot

    from advnas.adapters import convert

    make, size = {
        "nasbench201": (lambda: NasBench201(16, 1), 32),
        "darts": (lambda: DARTS(width=16, num_cells=3, dataset="cifar"), 32),
        "proxylessnas": (lambda: ProxylessNAS(10), 64),
    }[space]
    data = torch.randn(8, 3, size, size), torch.randint(10, (8,))

    def theirs(strategy: type, turns: int) -> Step:
        model = strategy().mutate_model(make())
        sampled = [module for module in model.modules() if isinstance(module, BaseSuperNetModule)]

        def step() -> None:
            for _ in range(turns):
                memo: dict = {}
                for module in sampled:
                    memo.update(module.resample(memo))
                cross_entropy(model(data[0]), data[1]).backward()

        return step

    sides: dict[str, Callable[[], Step]] = {
        "NNI DARTS": lambda: theirs(AllOps, 2),
        "NNI GumbelDARTS": lambda: theirs(GumbelDARTS, 2),
        "NNI RandomOneShot (weights alone)": lambda: theirs(RandomOneShot, 1),
        "AdvantageNas": lambda: turns_of(Search(convert(make())), data),
    }
    if space != "darts":  # of which it has no cells
        sides["NNI Proxyless"] = lambda: theirs(Proxyless, 2)
    return sides


def timm_sides(space: str) -> dict[str, Callable[[], Step]]:
    import timm
    from timm.models._efficientnet_blocks import InvertedResidual

    from advnas_ext import OnePathChoice

    data = torch.randn(16, 3, 64, 64), torch.randint(10, (16,))

    def model() -> nn.Module:
        network = timm.create_model(space, num_classes=10)
        for stage in network.blocks:
            for place, block in enumerate(stage):
                if isinstance(block, InvertedResidual):
                    ins, outs, stride = block.conv_pw.in_channels, block.conv_pwl.out_channels, block.conv_dw.stride[0]
                    kinds = [(kernel, ratio) for kernel in (3, 5, 7) for ratio in (3, 6)]
                    stage[place] = OnePathChoice(InvertedResidual(ins, outs, k, stride, exp_ratio=r) for k, r in kinds)
        return network

    return {
        "all candidates (DARTS)": lambda: turns_of(Search(model(), DartsEstimator), data),
        "random path (weights alone)": lambda: on_one_path(Search(model()), data),
        "AdvantageEstimator": lambda: turns_of(Search(model()), data),
    }


def whittle_sides(space: str) -> dict[str, Callable[[], Step]]:
    from litgpt import Config
    from syne_tune.config_space import choice, randint
    from whittle.models.gpt import GPT
    from whittle.sampling.random_sampler import RandomSampler
    from whittle.training_strategies import RandomStrategy

    from advnas.adapters.whittle import AdvantageStrategy, Supernet

    shape = {"n_layer": 4, "n_embd": 256, "n_head": 4, "intermediate_size": 1024, "block_size": 128}
    choices = {
        "sub_network_n_embd": choice([128, 256]),
        "sub_network_intermediate_size": choice([512, 1024]),
        "sub_network_num_heads": choice([2, 4]),
        "sub_network_n_layers": randint(2, 4),
    }
    tokens = torch.randint(256, (4, 129))
    data = tokens[:, :-1], tokens[:, 1:]

    def model() -> GPT:
        return GPT(Config(**shape, padded_vocab_size=256))

    def strategy(kind: type, compiled: bool = False) -> Step:
        run = kind(sampler=RandomSampler(choices, seed=0), loss_function=cross_entropy, device="cpu")
        network = model()
        if compiled:
            network.compile()
        return lambda: run(network, *data)

    return {
        "RandomStrategy (weights alone)": lambda: strategy(RandomStrategy),
        "RandomStrategy, torch.compile": lambda: strategy(RandomStrategy, compiled=True),
        "AdvantageStrategy": lambda: strategy(AdvantageStrategy),
        "of that, weights alone": lambda: on_one_path(Search(Supernet(model(), choices)), data),
    }


PEERS = {
    "nni": (nni_sides, ("nasbench201", "darts", "proxylessnas")),
    "timm": (timm_sides, ("mobilenetv3_small_050",)),
    "whittle": (whittle_sides, ("gpt",)),
}


def once(peer: str, space: str, side: str | None) -> None:
    """What a process does whose memory is measured: three steps of a side; None: its imports."""
    sides = PEERS[peer][0](space)
    if side is not None:
        torch.manual_seed(0)
        step = sides[side]()
        for _ in range(3):
            step()


def medians(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """Milliseconds of CPU time, so that neighbours on the machine do not count. Each turn begins with another side; the first two
    warm up."""
    ms: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, turns):
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                ms[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in ms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip", help="leave out the sides whose name contains this, such as compile")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    make_sides, spaces = PEERS[settings.peer]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {settings.turns} turns\n")
    print("| space | side | CPU ms a step | against ours | peak MiB | of imports |\n|---|---|---:|---:|---:|---:|")
    for space in spaces:
        torch.manual_seed(0)
        sides = make_sides(space)
        wanted = [name for name in sides if settings.skip is None or settings.skip not in name]
        found = medians({name: sides[name]() for name in wanted}, settings.turns)
        ours = next(ms for name, ms in found.items() if name.startswith("Advantage"))
        imports = in_own_process(MODULE, "once", settings.threads, peer=settings.peer, space=space, side=None)
        for name, ms in found.items():
            peak = in_own_process(MODULE, "once", settings.threads, peer=settings.peer, space=space, side=name)
            print(f"| {space} | {name} | {ms:.0f} | {ms / ours:.2f} | {peak:.0f} | {imports:.0f} |", flush=True)


if __name__ == "__main__":
    main()
