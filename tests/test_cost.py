"""Parameters and FLOPs: by hand, and those of NAS-Bench-201."""

import functools
import re

import pytest
import torch

from advnas.cost import Cost, cost
from advnas.networks.nasbench201 import Network
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tables import Table

EDGES = NASBENCH201.edges
MIXED = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
POOLS = "|none~0|+|none~0|none~1|+|avg_pool_3x3~0|skip_connect~1|none~2|"
CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_1x1~2|"


def cost_of(ops, channels=16, cells=5, image_size=32, in_channels=3, num_classes=10):
    network = Network(channels, cells, in_channels, num_classes, affine=True, track_running_stats=True).fix(ops)
    return cost(network, (1, in_channels, image_size, image_size))


def test_cost_by_hand():
    """One cell a stage, 2 channels, 4x4 grey images, 3 classes; one 1x1 convolution in each cell."""
    arch = "|nor_conv_1x1~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|"
    stem = 1 * 2 * 9
    blocks = [2 * 4 * 9, 4 * 4 * 9, 2 * 4], [4 * 8 * 9, 8 * 8 * 9, 4 * 8]
    cells = [2 * 2, 4 * 4, 8 * 8]
    classifier = 8 * 3 + 3
    norms = 2 * (2 + 2 * 4 + 2 * 8 + (2 + 4 + 8) + 8)
    found = cost_of(NASBENCH201.parse(arch), 2, 1, 4, 1, 3)
    assert found.params == stem + sum(blocks[0]) + sum(blocks[1]) + sum(cells) + classifier + norms
    assert (
        found.flops
        == 16 * (stem + cells[0]) + 4 * (sum(blocks[0]) + cells[1]) + (sum(blocks[1]) + cells[2]) + classifier
    )


def function_of(arch):
    """What a cell computes, the same for cells that differ only in dead edges, skips and repeated terms."""
    picked = dict(zip(EDGES, re.findall(r"([^|~+]+)~", arch), strict=True))
    nodes = ["x"]
    for target in range(1, 4):
        terms = set()
        for source in range(target):
            op = picked[target, source]
            if op != "none" and nodes[source]:
                terms.add(nodes[source] if op == "skip_connect" else f"{op}({nodes[source]})")
        nodes.append("" if not terms else "[" + " + ".join(sorted(terms)) + "]" if len(terms) > 1 else terms.pop())
    return nodes[3]


@functools.cache
def of_one_operation(edge, op):
    """What an operation on one edge adds to the cell of nothing."""
    ops = torch.zeros(6, dtype=torch.int64)
    nothing = cost_of(ops)
    ops[edge] = op
    found = cost_of(ops)
    return found.params - nothing.params, found.flops - nothing.flops


def added_up(ops):
    """The cost of a cell, operation by operation: measuring each of 15,625 networks would take long."""
    parts = [of_one_operation(edge, op) for edge, op in enumerate(ops)]
    nothing = nothing_costs()
    return Cost(nothing.params + sum(p for p, _ in parts), nothing.flops + sum(f for _, f in parts))


@functools.cache
def nothing_costs():
    return cost_of(torch.zeros(6, dtype=torch.int64))


def test_costs_of_operations_add_up():
    for ops in torch.randint(5, (8, 6), generator=torch.Generator().manual_seed(0)):
        assert cost_of(ops) == added_up(ops.tolist())


def test_cost_is_the_tables(shared):
    rows = Table.load(shared / "data" / "nasbench201.csv", NASBENCH201).rows
    costs = {arch: added_up(NASBENCH201.parse(arch).tolist()) for arch in rows}
    table = {arch: (row["params_m"] * 1e6, row["flops_m"] * 1e6) for arch, row in rows.items()}

    def equal(cost, params, flops):
        return abs(cost.params - params) < 1.5 and abs(cost.flops - flops) < 15  # the table is rounded

    other = [arch for arch in rows if not equal(costs[arch], *table[arch])]
    assert len(other) <= 150
    # The table has these rows' costs from a cell that computes the same.
    functions = {function_of(arch) for arch in other}
    alike = {}
    for arch in rows:
        if (function := function_of(arch)) in functions:
            alike.setdefault(function, []).append(costs[arch])
    for arch in other:
        assert any(equal(cost, *table[arch]) for cost in alike[function_of(arch)]), arch


def test_full_size_network_has_the_tables_parameters(shared):
    rows = Table.load(shared / "data" / "nasbench201.csv", NASBENCH201).rows
    for arch in (MIXED, POOLS, CONVOLUTIONS):
        params = cost_of(NASBENCH201.parse(arch)).params
        assert params == pytest.approx(rows[arch]["params_m"] * 1e6, abs=1)
