"""NAS-Bench-201 (Dong & Yang, ICLR 2020): cells of four nodes, six edges and five operations."""

from collections.abc import Sequence
from functools import partial

from advnas.networks.nasbench201 import Network
from advnas.spaces.base import Space
from advnas_ext import NAS_BENCH_201

NUM_NODES = 4


def identity(names: Sequence[str], resolved: bool) -> str:
    """What the output node adds up, as a text: ``x`` is the cell's input, ``(x)op`` an operation on it, ``#`` nothing.

    A skip connection stands for its source; what hangs on ``none`` is nothing.

    Args:
        names: operations in the order of the edges.
        resolved: nothing is left out of sums, and a sum inside a sum is one sum: 4,930 networks. Otherwise the text is that of
            NAS-Bench-201, which keeps both and so tells 6,466 apart, of which some compute the same. There the order of terms
            counts, and with it how they are written.
    """
    picked = iter(names)
    nodes: list[list[str]] = [["x"]]
    for _ in range(1, NUM_NODES):
        terms: list[str] = []
        for source in nodes:
            op, text = next(picked), "+".join(source)
            if op == "none" or text in ("", "#"):
                terms += [] if resolved else ["#"]
            elif op == "skip_connect":
                terms += source if resolved else [text]
            else:
                terms.append(f"({text}){op}")
        nodes.append(sorted(terms))
    return "+".join(nodes[-1])


NASBENCH201 = Space(
    name="nasbench201",
    task="image",
    ops=NAS_BENCH_201,
    num_nodes=NUM_NODES,
    network=Network,
    zero_op="none",
    labels={
        "skip_connect": "skip",
        "nor_conv_1x1": "conv 1×1",
        "nor_conv_3x3": "conv 3×3",
        "avg_pool_3x3": "avg pool 3×3",
    },
    node_names=("input", "1", "2", "output"),
    bends={(2, 0): (-104, 12), (3, 0): (-196, -12), (3, 1): (104, 0)},
    columns=("cifar10_test_200", "cifar100_test_200", "imagenet16_120_test_200", "params_m", "flops_m"),
    identities={
        "the same network": partial(identity, resolved=False),
        "the same but for dead edges and the order of sums": partial(identity, resolved=True),
    },
)
