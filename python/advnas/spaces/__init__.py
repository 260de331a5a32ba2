"""Search spaces, by name. A new one is one file and one line of SPACES."""

from advnas.spaces.base import Space
from advnas.spaces.nasbench201 import NASBENCH201

SPACES: dict[str, Space] = {space.name: space for space in (NASBENCH201,)}

__all__ = ["SPACES", "Space"]
