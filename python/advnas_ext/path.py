"""A path through the supernet: which candidate operations run on each edge, and the gates that multiply their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False, slots=True)
class Path:
    """The picked operations of every edge and their gates, both on the host.

    Attributes:
        ops: int64 [num_edges, picks]. ``picks`` is 1 for sparse paths, 2 for ProxylessNAS, ``num_ops`` for dense paths. The
            operations of one edge differ from each other.
        gates: floating point [num_edges, picks]. After ``loss.backward()`` its ``grad`` holds, for each picked operation,
            <dL/dy, op(x)> summed over every place that shares the edge; with a gate of 1 that is the edge's advantage
            (Sato et al. 2021). Where gates do not require a gradient, an operation with a gate of 0 does not run.
        offsets: zeros [num_edges], added to the output of each edge, or None. Their ``grad`` holds the sum of dL/dy over the
            edge's output: what GDAS gives to operations that did not run.
        active: bool [num_edges], the edges that took part in the loss, or None: all of them. A decision may be idle on a path,
            such as one inside of a block that another decision left out; it learns nothing then. :class:`advnas_ext.OnePathChoice`
            keeps this up to date on the paths of :class:`advnas_ext.Search`.

    An operation beyond those that an edge has is padding and does not run: an estimator whose edges differ in size fills its rows
    with it.

    Raises:
        TypeError: ``ops`` is not an int64 tensor, or ``gates`` is not a floating point tensor.
        ValueError: shapes differ or are not [num_edges, picks], a tensor is not on the host, an operation is negative or picked
            twice by one edge.
    """

    ops: Tensor
    gates: Tensor
    offsets: Tensor | None = None
    active: Tensor | None = None
    _counterparts: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        ops, gates = self.ops, self.gates
        if not isinstance(ops, Tensor) or ops.dtype != torch.int64:
            raise TypeError(f"Path: ops must be an int64 tensor, got {getattr(ops, 'dtype', type(ops).__name__)}")
        if not isinstance(gates, Tensor) or not gates.is_floating_point():
            raise TypeError(
                f"Path: gates must be a floating point tensor, got {getattr(gates, 'dtype', type(gates).__name__)}"
            )
        if ops.dim() != 2 or ops.shape[1] == 0:
            raise ValueError(f"Path: ops must have shape [num_edges, picks] with picks >= 1, got {list(ops.shape)}")
        if gates.shape != ops.shape:
            raise ValueError(f"Path: gates must have the shape of ops, {list(ops.shape)}, got {list(gates.shape)}")
        if ops.device.type != "cpu" or gates.device.type != "cpu":
            raise ValueError(
                f"Path: ops and gates live on the host, got {ops.device} and {gates.device}; call .cpu() on them, "
                "the cell moves what it needs"
            )
        if self.offsets is not None and self.offsets.shape != ops.shape[:1]:
            raise ValueError(f"Path: offsets must have shape [{ops.shape[0]}], got {list(self.offsets.shape)}")
        active = self.active
        if active is not None and (
            active.dtype != torch.bool or active.shape != ops.shape[:1] or active.device.type != "cpu"
        ):
            raise ValueError(
                f"Path: active must be bool [{ops.shape[0]}] on the host, got {active.dtype} {list(active.shape)} on "
                f"{active.device}"
            )
        if ops.numel() > 0 and int(ops.min()) < 0:
            raise ValueError(f"Path: ops must not be negative, got {ops.tolist()}")
        if ops.shape[1] > 1 and any(len(set(row)) != len(row) for row in ops.tolist()):
            raise ValueError(f"Path: an edge must not pick an operation twice, got {ops.tolist()}")

    @classmethod
    def from_ops(
        cls,
        ops: Tensor | Sequence[int] | Sequence[Sequence[int]],
        requires_grad: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        """A path given by hand, with gates of 1.

        Args:
            ops: integers [num_edges], one operation an edge, or [num_edges, picks].
            requires_grad: whether the backward pass fills ``gates.grad``.
            dtype: of the gates.
        """
        picked = torch.as_tensor(ops, device="cpu")
        if picked.dtype.is_floating_point or picked.dtype.is_complex or picked.dtype == torch.bool:
            raise TypeError(f"Path.from_ops: ops must be integers, got {picked.dtype}")
        picked = picked.detach().to(torch.int64)
        if picked.dim() == 1:
            picked = picked.unsqueeze(1)
        return cls(picked, torch.ones(picked.shape, dtype=dtype, requires_grad=requires_grad, device="cpu"))

    @property
    def num_edges(self) -> int:
        return self.ops.shape[0]

    @property
    def picks(self) -> int:
        return self.ops.shape[1]

    @property
    def leaves(self) -> list[Tensor]:
        """What the backward pass of an architecture step has to reach: ``loss.backward(inputs=path.leaves)``."""
        return [self.gates] if self.offsets is None else [self.gates, self.offsets]

    def with_offsets(self) -> Path:
        """The same path with offsets that require a gradient."""
        return Path(
            self.ops, self.gates, torch.zeros(self.num_edges, dtype=self.gates.dtype, requires_grad=True, device="cpu")
        )

    def gates_on(self, device: torch.device | str) -> Tensor:
        """``gates`` on another device, for :func:`advnas_ext.gate` on outputs that are there.

        Made once for a path and a device: the gradients of all who use it add up there, and cross to ``gates.grad`` in one
        copy when the backward pass is through. On the host, and where no gradient is wanted, it is ``gates`` itself.
        """
        return self._on(self.gates, torch.device(device))

    def offsets_on(self, device: torch.device | str) -> Tensor | None:
        """``offsets`` likewise, or None."""
        return None if self.offsets is None else self._on(self.offsets, torch.device(device))

    def _on(self, tensor: Tensor, device: torch.device) -> Tensor:
        if device.type == "cpu" or not tensor.requires_grad or not torch.is_grad_enabled():
            return tensor
        key = (id(tensor), device)
        if key not in self._counterparts:
            self._counterparts[key] = tensor.to(device, non_blocking=True)
        return self._counterparts[key]

    def detach(self) -> Path:
        """The same path for a weight step: no gradient of the gates is computed."""
        return Path(self.ops, self.gates.detach())
