"""Recurrent cells for language: that of AdvantageNAS (Sato et al., AAAI 2021) and that of DARTS (Liu et al., ICLR 2019)."""

from advnas.networks.language import darts, one_path
from advnas.spaces.base import Space
from advnas_ext.recurrent import OPS

# Node 0 joins the input and the hidden state; what leaves the cell is the mean of the others.
RECURRENT = Space(
    name="recurrent",
    task="language",
    ops=OPS,
    num_nodes=4,
    network=one_path,
    zero_op="none",
    node_names=("input", "1", "2", "3"),
    bends={(2, 0): (-104, 12), (3, 0): (-196, -12), (3, 1): (104, 0)},
)

DARTS_RECURRENT = Space(
    name="darts_recurrent",
    task="language",
    ops=OPS,
    num_nodes=9,
    network=darts,
    zero_op="none",
    node_names=("input", *"12345678"),
)


def from_genotype(genotype: tuple[tuple[str, int], ...]) -> str:
    """The string of a DARTS cell, of which each node has one edge: its operation and where it comes from."""
    nodes = []
    for target, (op, source) in enumerate(genotype, 1):
        nodes.append("".join(f"{op if source == s else 'none'}~{s}|" for s in range(target)))
    return "+".join(f"|{node}" for node in nodes)


# The cell that DARTS published for Penn Treebank, found with its second-order gradient.
DARTS_V2 = from_genotype(
    (
        ("sigmoid", 0),
        ("relu", 1),
        ("relu", 1),
        ("identity", 1),
        ("tanh", 2),
        ("sigmoid", 5),
        ("tanh", 3),
        ("relu", 5),
    )
)
