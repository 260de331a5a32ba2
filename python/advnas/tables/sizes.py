"""NATS-Bench's size space (Dong et al., TPAMI 2021): the channels of five stages. No search here knows it; its tables can be
looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass

CHANNELS = (8, 16, 24, 32, 40, 48, 56, 64)
STAGES = 5


@dataclass(frozen=True)
class Sizes:
    """What a table asks of a space: see :class:`advnas.spaces.Space`."""

    name: str = "nats_size"
    columns: tuple[str, ...] = (
        *("cifar10_test_90", "cifar100_test_90", "imagenet16_120_test_90"),
        *("params_m", "flops_m"),
    )
    num_cells: int = len(CHANNELS) ** STAGES
    form: str = ":".join(["(" + "|".join(map(str, CHANNELS)) + ")"] * STAGES)

    def alike(self, arch: str) -> dict[str, list[str]]:
        """No two are the same network."""
        return {}

    def parse(self, arch: str) -> tuple[int, ...]:
        """The channels of a cell given as a string such as ``8:16:24:32:64``.

        Raises:
            ValueError: it is no such string.
        """
        if not isinstance(arch, str) or not re.fullmatch(self.form, arch):
            channels = ", ".join(map(str, CHANNELS))
            raise ValueError(f"architecture: must have the form c:c:c:c:c with each c among {channels}, got {arch!r}")
        return tuple(map(int, arch.split(":")))


SIZES = Sizes()
