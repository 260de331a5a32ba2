"""Benchmark files as their own packages write them: made of the packages' own classes, with numbers drawn by a seed."""

import bz2
import itertools
import pickle
import random
from collections import OrderedDict

import numpy as np
import torch

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
PARTS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}


def topologies(count, seed=0):
    every = ["|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops) for ops in itertools.product(OPS, repeat=6)]
    return random.Random(seed).sample(every, count)


def sizes(count, seed=0):
    every = [":".join(map(str, channels)) for channels in itertools.product(range(8, 65, 8), repeat=5)]
    return random.Random(seed).sample(every, count)


def trial(module, draw, arch, dataset, seed, epochs, oddity=None):
    """One training as the package's own ResultsCount.

    ``oddity``: no_train_times, no_eval_times, last_only (evaluated after the last epoch alone), no_test, no_latency, half_timed
    (times of one part only), settled (FLOPs that differ from other trainings').
    """

    def curve(keys=range(epochs), high=100.0):
        return {key: draw.uniform(0, high) for key in keys}

    result = module.ResultsCount(
        dataset,
        None,
        curve(),
        curve(high=3.0),
        np.float64(0.5 + len(arch) / 100),  # as the benchmarks' own scripts count them
        20.0 + len(arch) + (seed if oddity == "settled" else 0),
        {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": 10},
        seed,
        epochs,
        None if oddity == "no_latency" else [draw.uniform(0.01, 0.02) for _ in range(draw.randint(1, 3))],
    )
    times = None if oddity == "no_train_times" else OrderedDict(curve(high=60.0))
    result.update_train_info(result.train_acc1es, curve(), result.train_losses, times)
    names = [name for name in PARTS[dataset] if not (oddity == "no_test" and name == PARTS[dataset][-1])]
    if oddity == "last_only":
        for name in names:
            result.update_OLD_eval(name, curve([epochs - 1]), curve([epochs - 1], 3.0))
        return result
    keys = [f"{name}@{epoch}" for name in names for epoch in range(epochs)]
    result.update_eval(dict(curve(keys)), curve(keys, 3.0), curve(keys, 9.0))
    if oddity == "no_eval_times":
        result.eval_times = {}
    if oddity == "half_timed":
        result.eval_times = {key: time for key, time in result.eval_times.items() if key.startswith(names[0])}
    return result


def results(module, draw, index, arch, epochs, seeds, datasets=tuple(PARTS), oddity=None):
    """Trainings of one cell with the same hyper-parameters, as the package's own state dict."""
    made = module.ArchResults(index, arch)
    for dataset in datasets:
        for seed in draw.sample(seeds, draw.randint(1, len(seeds))) if oddity != "settled" else seeds:
            made.update(dataset, seed, trial(module, draw, arch, dataset, seed, epochs, oddity))
    return made.state_dict()


ODDITIES = ("no_train_times", "no_eval_times", "last_only", "no_test", "no_latency", "half_timed", "settled")


def benchmark(module, archs, hps, seeds=(777, 888, 999), oddities=(), absent=(), seed=0):
    """A whole benchmark: ``hps`` has the file's key and the epochs; the first cells have the oddities, one each."""
    draw, infos = random.Random(seed), {}
    for index, arch in enumerate(archs):
        oddity = oddities[index] if index < len(oddities) else None
        if index not in absent:
            infos[index] = {
                key: results(module, draw, index, arch, epochs, list(seeds), oddity=oddity)
                for key, epochs in hps.items()
            }
    return {
        "meta_archs": list(archs),
        "total_archs": len(archs),
        "arch2infos": infos,
        "evaluated_indexes": set(infos),
    }


def save_torch(content, path, legacy):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def save_bz2(content, path):
    with bz2.open(path, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return path


def save_folder(content, path, width=6):
    path.mkdir()
    save_bz2({"meta_archs": content["meta_archs"]}, path / "meta.pickle.pbz2")
    for index, found in content["arch2infos"].items():
        save_bz2(found, path / f"{index:0{width}d}.pickle.pbz2")
    return path
