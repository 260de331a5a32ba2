"""Search spaces, by name: modules with OPS, NUM_EDGES, ZERO_OP, parse_arch, format_arch, Network, FixedNetwork, cost."""

from types import ModuleType

from advnas.spaces import nasbench201

SPACES: dict[str, ModuleType] = {"nasbench201": nasbench201}

__all__ = ["SPACES"]
