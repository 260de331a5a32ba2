import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advnas.spaces import SPACES
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tasks import TASKS
from advnas_ext import Path

OPS, EDGES, NUM_EDGES = NASBENCH201.ops, NASBENCH201.edges, NASBENCH201.num_edges
parse_arch, format_arch = NASBENCH201.parse, NASBENCH201.format

MIXED = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_spaces_are_complete(space):
    """Whatever the search needs from a space is there, and fits together."""
    ops = torch.arange(space.num_edges) % len(space.ops)
    assert torch.equal(space.parse(space.format(ops)), ops)
    assert space.zero_op is None or space.zero_op in space.ops
    assert len(space.edges) == len(space.edge_names) == space.num_edges
    assert space.task in TASKS
    assert set(space.labels) <= set(space.ops)
    assert not space.node_names or len(space.node_names) == space.num_nodes
    assert set(space.bends) <= set(space.edges)


SMALL = {"image": {"channels": 4, "cells": 1}, "language": {"units": 8, "bptt": 5}}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_every_space_has_its_networks(space):
    """Every operation on every edge: in a supernet, and in a network of one cell."""
    settings = {"space": space.name, "batch_size": 8, "device": "cpu", **SMALL.get(space.task, {})}
    kind = TASKS[space.task]
    searched = kind(kind.search_config(**settings))
    trained = kind(kind.retrain_config(**settings))
    supernet = searched.supernet()
    for first in range(len(space.ops)):
        ops = (first + torch.arange(space.num_edges)) % len(space.ops)
        path = Path.from_ops(ops)
        searched.loss(supernet, next(iter(searched.weight_stream(torch.Generator()))), path).backward()
        assert path.gates.grad.isfinite().all()
        batch = next(iter(trained.training(torch.Generator())))
        assert trained.loss(trained.network(space.format(ops)), batch, None).isfinite()


def test_a_space_of_another_task_is_refused():
    with pytest.raises(ValueError, match=r"space: recurrent is for the task language; for image choose nasbench201"):
        TASKS["image"](TASKS["image"].search_config(space="recurrent"))


def test_an_object_that_does_not_change():
    with pytest.raises(AttributeError):
        NASBENCH201.ops = ()


@given(st.lists(st.integers(0, len(OPS) - 1), min_size=NUM_EDGES, max_size=NUM_EDGES))
def test_arch_round_trip(ops):
    assert parse_arch(format_arch(torch.tensor(ops))).tolist() == ops


def test_arch_lists_edges_by_target_then_source():
    assert EDGES == ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
    assert [OPS[op] for op in parse_arch(MIXED)] == [
        "nor_conv_3x3",
        "nor_conv_1x1",
        "avg_pool_3x3",
        "skip_connect",
        "none",
        "nor_conv_3x3",
    ]
    assert format_arch(torch.tensor([3, 2, 4, 1, 0, 3])) == MIXED
    assert parse_arch(MIXED).dtype == torch.int64


SAME, FUNCTION = NASBENCH201.identities


def test_networks_of_nasbench201_are_counted():
    """6,466 of 15,625 by its authors' count, which dead edges and brackets still tell apart."""
    cells = list(itertools.product(OPS, repeat=NUM_EDGES))
    networks = [{identity(names) for names in cells} for identity in NASBENCH201.identities.values()]
    assert [len(cells), *map(len, networks)] == [15625, 6466, 4930]
    pairs = {tuple(identity(names) for identity in NASBENCH201.identities.values()) for names in cells}
    assert len(pairs) == 6466  # what is one network by the count is one function


def test_networks_are_those_of_nats_bench():
    genotypes = pytest.importorskip("nats_bench.genotype_utils")
    ours, theirs = {}, {}
    for names in itertools.product(OPS, repeat=NUM_EDGES):
        arch = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names)
        text = genotypes.topology_str2structure(arch).to_unique_str(consider_zero=True)
        theirs.setdefault(text, set()).add(arch)
        ours.setdefault(NASBENCH201.identities[SAME](names), set()).add(arch)
    assert set(map(frozenset, ours.values())) == set(map(frozenset, theirs.values()))


def arch_of(*names):
    places = [{"0": 0, "=": 1, "1": 2, "3": 3, "p": 4}[name] for name in names]
    return format_arch(torch.tensor(places))


@pytest.mark.parametrize(
    "one, other, sameness",
    [
        ("300100", "300p00", None),  # 1x1 convolution and pooling
        ("3003=0", "30033=", None),
        ("3000=0", "03000=", FUNCTION),  # over node 1 or node 2, which has an empty edge more
        ("=00300", "000300", SAME),  # node 1 leads nowhere
        ("0013=0", "00p3=0", SAME),  # from an empty node
        ("==0003", "0=0003", SAME),
        ("===003", "0=0003", None),  # a sum of two inputs, and one
        ("30000=", "000300", None),  # node 2 is empty
        ("0=0300", "000300", SAME),
        ("000301", "000300", FUNCTION),  # a convolution of what is empty
        ("00000=", "000000", FUNCTION),
    ],
)
def test_the_same_network(one, other, sameness):
    found = NASBENCH201.alike(arch_of(*one))
    assert list(found) == [SAME, FUNCTION]
    assert [name for name, archs in found.items() if arch_of(*other) in archs] == ([sameness] if sameness else [])
    assert arch_of(*one) not in found[SAME] + found[FUNCTION]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_cells_that_are_the_same_network_compute_the_same(space):
    """Of the spaces that say so: with the weights of one operation on one source shared, the outputs agree."""
    if not space.identities:
        pytest.skip("every cell is a network of its own")
    draw = random.Random(0)
    functions = {op: draw.uniform(0.5, 2) for op in space.ops}

    def output(arch):
        """A cell of numbers, in which an operation is a function that leaves 0 where it is."""
        nodes, picked = [1.0], iter(space.parse(arch).tolist())
        for target in range(1, space.num_nodes):
            values = []
            for source in range(target):
                op = space.ops[next(picked)]
                x = nodes[source]
                values.append(
                    0.0 if op == space.zero_op else x if op == "skip_connect" else math.sin(functions[op] * x) * x
                )
            nodes.append(math.fsum(values))
        return nodes[-1]

    for _ in range(5):
        arch = space.format(torch.tensor([draw.randrange(len(space.ops)) for _ in space.edges]))
        for others in space.alike(arch).values():
            for other in draw.sample(others, min(20, len(others))):
                assert output(other) == pytest.approx(output(arch))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("", "must have the form"),
        (None, "must have the form"),
        ("nor_conv_3x3", r"must have the form \|op~0\|.*, got 'nor_conv_3x3'"),
        (MIXED + " ", "must have the form"),
        (MIXED + "\n", "must have the form"),
        (MIXED + "+|none~0|none~1|none~2|none~3|", "must have the form"),  # a node too many
        ("|none~0|+|none~0|none~1|", "must have the form"),  # a node too few
        ("|none~0|+|none~0|none~1|+|none~0|none~2|none~1|", "must have the form"),  # sources in another order
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "must have the form"),  # no such source
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "must have the form"),  # a missing edge
        (MIXED.replace("nor_conv_1x1", "conv_1x1"), "unknown operation 'conv_1x1'; did you mean nor_conv_1x1?"),
        (MIXED.replace("none", "None"), "unknown operation 'None'; did you mean none?"),
        (MIXED.replace("none", "zzz"), "unknown operation 'zzz'; choose among none, skip_connect"),
    ],
)
def test_malformed_arch(arch, message):
    with pytest.raises(ValueError, match=message):
        parse_arch(arch)


@pytest.mark.parametrize("ops", [[0] * 5, [0] * 7, [[0] * 6], [5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, -1], [0.0] * 6])
def test_malformed_ops(ops):
    with pytest.raises(ValueError, match="needs 6 integers from 0 to 4, got"):
        format_arch(torch.tensor(ops))
