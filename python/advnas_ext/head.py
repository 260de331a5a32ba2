"""What follows the last cell of a network: batch norm, ReLU, mean over the pixels."""

from __future__ import annotations

from torch import Tensor, nn

from advnas_ext import _C, fidelity, native

DEVICES = ("cpu",)  # with kernels for it
LAYERS = (fidelity.BATCH_NORM, fidelity.RELU)


class NormReluMean(nn.Sequential):
    """Batch norm, ReLU and the mean over the pixels, fused.

    float32 and float64 on the host run natively. The rest runs in plain PyTorch, and so does a head whose layers are not
    what they were when it was made (:func:`advnas_ext.explain` says why).

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Run it.

        Args:
            x: [batch, channels, height, width], of the type of the parameters. channels_last is the native layout.

        Returns:
            [batch, channels].

        Raises:
            ValueError: ``x`` has another shape, or batch statistics would be of one value.
            TypeError: ``x`` has another type than the parameters.
            RuntimeError: in a double backward pass or in forward mode, which are not implemented.
        """
        y = native.eagerly(self._run_if_native, x)
        return self.plain(x) if y is None else y

    def plain(self, x: Tensor) -> Tensor:
        """The same in plain PyTorch."""
        return super().forward(x).mean((2, 3))

    def obstacle(self) -> fidelity.Obstacle:
        """Why it does not run natively, whatever its input; None: it does."""
        return fidelity.layers_obstacle(self, LAYERS)

    def _is_native(self, x: Tensor) -> bool:
        return x.device.type in DEVICES and native.runs_natively(x) and native.noticed(self, self.obstacle())

    def _run_if_native(self, x: Tensor) -> Tensor | None:
        if not self._is_native(x):
            return None
        norm: nn.BatchNorm2d = self[0]  # type: ignore[assignment]
        if x.dim() != 4 or x.shape[1] != norm.num_features:
            raise ValueError(
                f"head: x must have shape [batch, {norm.num_features}, height, width], got {list(x.shape)}"
            )
        weight, bias = native.weight_and_bias(norm)
        mean, variance, tracked = native.running_statistics(norm)
        if weight is not None and weight.dtype != x.dtype:
            raise TypeError(
                f"head: x is {x.dtype} and the parameters are {weight.dtype}; convert one of them with .to()"
            )
        use_running = mean is not None and not norm.training
        if not use_running and x.numel() == norm.num_features:
            raise ValueError(
                "head: batch statistics need more than one value per channel, got one image of one pixel; use more or larger "
                "images, or running statistics and eval()"
            )
        return _C.head(x, weight, bias, mean, variance, tracked, use_running, norm.eps, native.momentum_of(norm))
