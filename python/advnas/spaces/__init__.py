"""Search spaces, by name. A new one is one file and one line of SPACES."""

from advnas.spaces.base import Space
from advnas.spaces.darts import DARTS
from advnas.spaces.nasbench201 import NASBENCH201
from advnas.spaces.recurrent import DARTS_RECURRENT, RECURRENT

SPACES: dict[str, Space] = {space.name: space for space in (NASBENCH201, DARTS, RECURRENT, DARTS_RECURRENT)}

__all__ = ["SPACES", "Space"]
