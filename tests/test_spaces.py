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
