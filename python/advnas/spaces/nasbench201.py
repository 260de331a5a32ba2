"""NAS-Bench-201 (Dong & Yang, ICLR 2020): cells of four nodes, six edges and five operations."""

from advnas.networks.nasbench201 import Network
from advnas.spaces.base import Space
from advnas_ext import NAS_BENCH_201

NASBENCH201 = Space(
    name="nasbench201",
    task="image",
    ops=NAS_BENCH_201,
    num_nodes=4,
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
)
