"""Recurrent one-path cells: a sequence through the picked operations of every edge, fused."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from advnas_ext import _C, fidelity, native, reference
from advnas_ext.path import Path

INITIAL_RANGE = 0.04  # as in DARTS
OPS = ("identity", "tanh", "sigmoid", "relu", "none")


class Activation(NamedTuple):
    """A candidate operation of a recurrent edge."""

    native: int
    function: Callable[[Tensor], Tensor] | None
    """None: contributes nothing."""


ACTIVATIONS = {
    "identity": Activation(int(_C.RecurrentOp.IDENTITY), lambda u: u),
    "tanh": Activation(int(_C.RecurrentOp.TANH), torch.tanh),
    "sigmoid": Activation(int(_C.RecurrentOp.SIGMOID), torch.sigmoid),
    "relu": Activation(int(_C.RecurrentOp.RELU), torch.relu),
    "none": Activation(int(_C.RecurrentOp.NONE), None),
}


class _RecurrentCell(nn.Module, ABC):
    """What the two cells share: an edge goes from every node to every later one, in the order 1<-0, 2<-0, 2<-1, 3<-0, ...,
    node 0 joins the input and the hidden state, and the hidden state becomes the mean of all nodes but node 0."""

    _gates_whole_edges: ClassVar[bool]

    def __init__(self, units: int, num_nodes: int, ops: Sequence[str], num_weights: int) -> None:
        super().__init__()
        if units < 1 or not 1 <= num_nodes <= _C.MAX_RECURRENT_NODES:
            raise ValueError(
                f"{self._name}: needs units >= 1 and num_nodes from 1 to {_C.MAX_RECURRENT_NODES}, "
                f"got {units} and {num_nodes}"
            )
        if not ops or any(op not in ACTIVATIONS for op in ops) or len(set(ops)) < len(ops):
            raise ValueError(f"{self._name}: ops must be different names among {sorted(ACTIVATIONS)}, got {list(ops)}")
        self.units = units
        self.num_nodes = num_nodes
        self.ops = tuple(ops)
        self.weights = nn.ParameterList(
            torch.empty(rows, 2 * units).uniform_(-INITIAL_RANGE, INITIAL_RANGE)
            for rows in [2 * units] + num_weights * [units]
        )

    @property
    def num_edges(self) -> int:
        return self.num_nodes * (self.num_nodes + 1) // 2

    def forward(
        self,
        x: Tensor,
        path: Path,
        h: Tensor | None = None,
        x_mask: Tensor | None = None,
        h_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run a sequence.

        Args:
            x: [length, batch, units], of the dtype and on the device of the weights.
            path: picks for ``num_edges`` edges among ``len(ops)`` operations.
            h: [batch, units], the hidden state before the first step; None: zeros.
            x_mask: [batch, units], by which ``x`` is multiplied, the same in all steps: variational dropout (Gal and
                Ghahramani 2016), which a caller has drawn and scaled; None: no dropout.
            h_mask: [batch, units], by which the hidden state is multiplied where it enters W_0, likewise. The highway
                connection around node 0 carries the hidden state on without it.

        Returns:
            The hidden states after each step, [length, batch, units], and the last of them, [batch, units].

        Raises:
            TypeError: ``path`` is not a Path, ``x``, ``h`` or a mask is not a tensor of the dtype of the weights.
            ValueError: a shape, a device or an operation does not fit.
            RuntimeError: in a double backward pass, which is not implemented.
        """
        self._check_path(path)
        self._check("x", x, 3, "length, batch")
        for name, tensor in (("h", h), ("x_mask", x_mask), ("h_mask", h_mask)):
            if tensor is None:
                continue
            self._check(name, tensor, 2, "batch")
            if tensor.shape != x.shape[1:]:
                raise ValueError(f"{self._name}: {name} must have shape {list(x.shape[1:])}, got {list(tensor.shape)}")
        if h is None:
            h = x.new_zeros(x.shape[1:])
        if x.is_cpu and not self._gates_whole_edges:
            found = self._run_if_native(x, path, h, x_mask, h_mask)
        else:  # a graph of torch.compile has a gradient for every weight, but a path may leave out some of DARTS's nodes
            found = native.eagerly(self._run_if_native, x, path, h, x_mask, h_mask)
        if found is not None:
            return found
        if int(path.ops.max()) >= len(self.ops):
            raise ValueError(
                f"{self._name}: path.ops must be below {len(self.ops)}, the number of ops, got {path.ops.tolist()}"
            )
        return self._plain(x, path, h, x_mask, h_mask)

    def obstacle(self) -> fidelity.Obstacle:
        """Why it does not run natively, whatever its input; None: it does."""
        for weight in self.weights:  # a loop, which every version of torch.compile reads
            obstacle = fidelity.tensor_obstacle(weight)
            if obstacle is not None:
                return obstacle
        return None

    def extra_repr(self) -> str:
        return f"units={self.units}, num_nodes={self.num_nodes}, ops={self.ops}"

    @abstractmethod
    def _plain(
        self, x: Tensor, path: Path, h: Tensor, x_mask: Tensor | None, h_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``forward`` behind its checks, in plain PyTorch."""

    def _run_if_native(
        self, x: Tensor, path: Path, h: Tensor, x_mask: Tensor | None, h_mask: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """The same by the native executor; None where something keeps it from that."""
        if not (native.runs_natively(x) and native.noticed(self, self.obstacle())) or native.is_offset(path):
            return None
        weights, dtype = list(self.weights), native.autocast_type(x)
        if dtype is not None:
            x, h, weights = x.to(dtype), h.to(dtype), [weight.to(dtype) for weight in weights]
            x_mask, h_mask = (None if mask is None else mask.to(dtype) for mask in (x_mask, h_mask))
        kinds = [ACTIVATIONS[op].native for op in self.ops]
        gates, offsets = path.gates_on(x.device), path.offsets_on(x.device)
        outputs = _run(
            x, h, gates, path.gates, offsets, path.ops, kinds, weights, x_mask, h_mask, self._gates_whole_edges
        )
        return outputs, outputs[-1] if len(x) > 0 else h

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _functions(self) -> list[Callable[[Tensor], Tensor] | None]:
        return [ACTIVATIONS[op].function for op in self.ops]

    def _check(self, name: str, tensor: Tensor, dims: int, sizes: str) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self._name}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != dims or tensor.shape[-1] != self.units:
            raise ValueError(f"{self._name}: {name} must have shape [{sizes}, {self.units}], got {list(tensor.shape)}")
        weight = self.weights[0]
        if tensor.device != weight.device:
            raise ValueError(
                f"{self._name}: {name} is on {tensor.device} and the cell on {weight.device}; "
                "move one of them with .to()"
            )
        if tensor.dtype != weight.dtype and not torch.is_autocast_enabled(tensor.device.type):
            raise TypeError(
                f"{self._name}: {name} is {tensor.dtype} and the cell's weights are {weight.dtype}; "
                "convert one of them with .to(), or run under torch.autocast"
            )

    def _check_path(self, path: Path) -> None:
        if not isinstance(path, Path):
            raise TypeError(f"{self._name}: path must be an advnas_ext.Path, got {type(path).__name__}")
        if path.num_edges != self.num_edges:
            raise ValueError(f"{self._name}: path must have {self.num_edges} edges, got {path.num_edges}")


class OnePathRecurrentCell(_RecurrentCell):
    """The recurrent cell of AdvantageNAS (Sato et al. 2021), which runs one path at a time.

    An edge goes from every node to every later one, in the order 1<-0, 2<-0, 2<-1, 3<-0, ... It is a highway connection
    around the gated output of its picked activation, with weights of its own; a node is the mean of its edges, and the
    hidden state becomes the mean of all nodes but node 0: see :func:`advnas_ext.reference.recurrent_cell`. An edge with
    "none" still carries on what its highway lets through. The path, and with it the gates, is the same in all steps: the
    backward pass fills ``path.gates.grad`` with the advantage of every edge, summed over time.

    float32 and float64 on the host run natively, in one call a sequence: a thread takes its rows of the batch through all
    steps, products and what is pointwise alike. So do float32, float16 and bfloat16 on a GPU, in a build with CUDA, where
    the products are the library's, and autocast to the latter two. Everything else runs the plain PyTorch specification. To
    torch.compile it is one operator on the host, whose graph serves all paths.

    Attributes:
        weights: Parameters W_0 [2 units, 2 units], whose first rows belong to the input, and W_1, W_2, ...
            [units, 2 units], one for each edge; their first columns make the gates of the highway connections. They
            start uniform in [-0.04, 0.04], as in DARTS.

    Args:
        units: of the input, of the hidden state and of every node.
        num_nodes: nodes besides node 0, from 1 to 64.
        ops: names of the candidate operations, among "identity", "tanh", "sigmoid", "relu" and "none".

    Raises:
        ValueError: an argument is out of range or an operation unknown.
    """

    _gates_whole_edges = False

    def __init__(self, units: int, num_nodes: int = 3, ops: Sequence[str] = OPS) -> None:
        super().__init__(units, num_nodes, ops, num_nodes * (num_nodes + 1) // 2)

    def _plain(
        self, x: Tensor, path: Path, h: Tensor, x_mask: Tensor | None, h_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return reference.recurrent_cell(x, path, h, list(self.weights), self._functions, x_mask, h_mask)


class DartsRecurrentCell(_RecurrentCell):
    """The recurrent cell of DARTS (Liu et al. 2019), which runs one path at a time.

    An edge goes from every node to every later one, in the order 1<-0, 2<-0, 2<-1, 3<-0, ... It is a highway connection
    around its picked activation, all edges into one node have the same weight, and a gate multiplies the whole edge; a
    node is the sum of its edges, and the hidden state becomes the mean of all nodes but node 0: see
    :func:`advnas_ext.reference.darts_recurrent_cell`. The path, and with it the gates, is the same in all steps: the
    backward pass fills ``path.gates.grad`` with the advantage of every edge, summed over time.

    What runs natively is as in :class:`OnePathRecurrentCell`, outside of torch.compile's graphs. An edge whose operation is
    "none", or whose gate is 0 and needs no gradient, is not run.

    Attributes:
        weights: Parameters W_0 [2 units, 2 units], whose first rows belong to the input, and W_1, W_2, ...
            [units, 2 units], one for each node; their first columns make the gates of the highway connections. They
            start uniform in [-0.04, 0.04], as in DARTS.

    Args:
        units: of the input, of the hidden state and of every node.
        num_nodes: nodes besides node 0, from 1 to 64.
        ops: names of the candidate operations, among "identity", "tanh", "sigmoid", "relu" and "none".

    Raises:
        ValueError: an argument is out of range or an operation unknown.
    """

    _gates_whole_edges = True

    def __init__(self, units: int, num_nodes: int = 8, ops: Sequence[str] = OPS) -> None:
        super().__init__(units, num_nodes, ops, num_nodes)

    def _plain(
        self, x: Tensor, path: Path, h: Tensor, x_mask: Tensor | None, h_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return reference.darts_recurrent_cell(x, path, h, list(self.weights), self._functions, x_mask, h_mask)


_run = torch.ops.advnas_ext.recurrent.default


@torch.library.register_fake("advnas_ext::recurrent_forward")
def _recurrent_forward(
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    h_mask: Tensor | None,
    gate_values: Tensor,
    ops: Tensor,
    kinds: list[int],
    whole: bool,
    keeps_zeros: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _register_flops()  # who traces has all that this imports
    length, batch, units = x.shape
    num_edges = gate_values.shape[0]
    num_nodes = next(n for n in range(num_edges + 1) if n * (n + 1) // 2 >= num_edges)
    kept = length if save else 1
    return (
        x.new_empty(x.shape),
        x.new_empty(length, batch, 2 * units),
        x.new_empty(1 + num_nodes, kept, batch, units),
        x.new_empty(kept * batch * 2 * units * num_edges),
    )


@torch.library.register_fake("advnas_ext::recurrent_backward")
def _recurrent_backward(
    dout: Tensor, x: Tensor, h: Tensor, weights: list[Tensor], h_mask: Tensor | None, gate_values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    *_, (wants_x, wants_h, wants_mask, wants_sums), wanted = rest
    dx, dh, dmask = (x.new_empty(t.shape if w else 0) for t, w in ((x, wants_x), (h, wants_h), (h, wants_mask)))
    num_sums = gate_values.numel() + gate_values.shape[0] if wants_sums else 0
    sums = x.new_empty(num_sums, dtype=torch.float64)
    return dx, dh, dmask, sums, [x.new_empty(weights[i].shape) for i in wanted]


@functools.cache
def _register_flops() -> None:
    """Tells FLOP counters what a compiled cell does. Others see the operators of plain PyTorch."""
    from torch.utils.flop_counter import register_flop_formula

    def forward(x: Sequence[int], h: object, weights: Sequence[object], *_: object, **__: object) -> int:
        length, batch, units = x
        return 4 * length * batch * units**2 * (1 + len(weights))  # the first weight has twice as many rows

    def backward(dout: object, *inputs: Any, **named: Any) -> int:
        *_, wanted_weights = inputs
        return (2 if wanted_weights else 1) * forward(*inputs, **named)

    register_flop_formula(torch.ops.advnas_ext.recurrent_forward)(forward)
    register_flop_formula(torch.ops.advnas_ext.recurrent_backward)(backward)
