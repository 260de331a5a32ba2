"""One path for all processes of a ``torch.distributed`` group, and the mean of what they measured on it."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor


def shared_generator(generator: torch.Generator | None, group: dist.ProcessGroup) -> torch.Generator:
    """A generator that is in the same state in all processes: its seed is drawn by the first one, from ``generator``."""
    seed = torch.randint(2**62, (1,), generator=generator, device="cpu").to(device_of(group))
    dist.broadcast(seed, group=group, group_src=0)
    return torch.Generator().manual_seed(int(seed))


def mean(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Of a tensor on the host that all processes have, in its dtype, on the host."""
    total = values.to(device_of(group), torch.float64, copy=True)
    dist.all_reduce(total, group=group)
    return (total / dist.get_world_size(group)).to("cpu", values.dtype)


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Where the group's backend takes tensors."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


def warn_without_group(where: str) -> None:
    """Processes that draw paths of their own train different networks under one name; nothing else would tell."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        warnings.warn(
            f"{where}: torch.distributed runs {dist.get_world_size()} processes and no group was given, so each draws paths "
            "of its own and the logits will differ; pass group=torch.distributed.group.WORLD to sample and assign_grad",
            stacklevel=4,
        )
