"""Where a network runs, and in which precision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from advnas_ext import _C

AMP = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE = (
    1024.0  # of a float16 loss for gradients of gates, which are sums: they overflow later than the weights' underflow
)
Module = TypeVar("Module", bound=nn.Module)


CPU = torch.device("cpu")


def gpus() -> int:
    """That torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@dataclass(frozen=True)
class Placement:
    """A device, and the type of its automatic mixed precision if there is one.

    Attributes:
        device: where networks and batches are.
        amp: torch.bfloat16 or torch.float16 on a GPU; None: everything is float32.
    """

    device: torch.device = CPU
    amp: torch.dtype | None = None

    @classmethod
    def of(cls, device: str | None = None, amp: str | None = None) -> Placement:
        """The placement of the settings ``--device`` and ``--amp``.

        Args:
            device: cpu, cuda or cuda:N; None: the GPU where there is one and the extension was built for CUDA.
            amp: bfloat16, float16 or None.

        Raises:
            ValueError: there is no such device, or mixed precision is asked for without a GPU.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() and _C.cuda else "cpu"
        kind, colon, number = device.partition(":")
        if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
            raise ValueError(f"device: must be cpu, cuda or cuda:N, got {device!r}")
        if kind == "cuda":
            if int(number or 0) >= gpus():
                raise ValueError(f"device: {device} is not there, torch sees {gpus()} GPUs; use --device cpu")
            return cls(torch.device(device), AMP[amp] if amp else None)
        if amp is not None:
            raise ValueError(f"amp: {amp} needs a GPU, got the device {device}; leave --amp out")
        return cls(torch.device(device))

    def put(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device; nobody waits for the copy."""
        return tensor.to(self.device, non_blocking=True)

    def place(self, network: Module) -> Module:
        """``network`` on the device; on a GPU weights are channels_last, which is how convolutions take them there."""
        if self.device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """What a forward pass runs in."""
        return contextlib.nullcontext() if self.amp is None else torch.autocast(self.device.type, self.amp)

    def backward(self, loss: Tensor, inputs: list[Tensor]) -> None:
        """Fills ``grad`` of the inputs, tensors on the host, whatever the precision."""
        scale = SCALE if self.amp == torch.float16 else 1.0
        (loss * scale if scale != 1 else loss).backward(inputs=inputs)
        for tensor in inputs:
            if scale != 1 and tensor.grad is not None:
                tensor.grad.div_(scale)

    def scaler(self) -> torch.amp.GradScaler:
        """Of the loss, for float16, whose smallest gradients would be 0; elsewhere it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)


HOST = Placement()
