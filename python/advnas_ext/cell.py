"""The one-path cell: all candidate operations of every edge, of which a call runs the picked ones, fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from advnas_ext import native, reference
from advnas_ext.gate import checked_baseline
from advnas_ext.operations import NAS_BENCH_201, OPERATIONS, Discarded
from advnas_ext.path import Path


class OnePathCell(native.Block):
    """A densely connected cell (NAS-Bench-201, Dong & Yang 2020) that runs one path at a time.

    ``num_nodes`` nodes; an edge goes from every node to every later one, in the order 1<-0, 2<-0, 2<-1, 3<-0, ... Each
    node is the sum of the gated outputs of the operations picked on its incoming edges: see
    :func:`advnas_ext.reference.cell`. The forward and backward passes are fused, an edge that cannot reach the output is
    not run, and the backward pass fills ``path.gates.grad`` with the advantage of every edge. Gradients that nobody asks
    for are not computed: of the gates for ``path.detach()``, of the weights in ``loss.backward(inputs=[path.gates])``.

    float32 and float64 on the host run natively, in as many threads as ``torch.get_num_threads()`` says, each with its own
    images; float32, float16 and bfloat16 on CUDA where the extension was built for it, autocast to the latter two included.
    Results are the same bit for bit from run to run. Everything else (other dtypes and devices, autocast on the host) runs
    the plain PyTorch specification, and so does a path with an operation that is not what it was when it was made: another
    layer, other settings, hooks, a pruned or parametrized weight (:func:`advnas_ext.explain` says which), and a call inside of an
    export, a transform of ``torch.func`` or a mode that counts operators. Edges that do not reach the output run there too, and
    their batch norms see their inputs. A process made by ``os.fork`` must call ``torch.set_num_threads(1)`` first, as for
    PyTorch's own operators: the threads of its parent are not there.

    Args:
        channels: of the input and of every node.
        ops: names of the candidate operations, from ``advnas_ext.operations.OPERATIONS``.
        num_nodes: nodes, input and output included; at least 2.
        affine: whether batch norm has a weight and a bias (then the convolutions have no bias).
        track_running_stats: whether batch norm keeps running statistics for ``eval()``; without them it uses batch
            statistics always. Statistics of operations that did not run stay as they were.
        baseline: what an operation is compared with in its advantage: None: no output at all, as AdvantageNAS does; "input": the
            node that it takes, as if it were a skip connection. Without affine parameters batch norm makes a loss blind to the
            scale of a node that feeds convolutions alone, and an edge that is its only input has no advantage at all without a
            baseline (see :func:`advnas_ext.gate`). The output is the same.

    Raises:
        ValueError: an argument is out of range or an operation unknown.
    """

    def __init__(
        self,
        channels: int,
        ops: Sequence[str] = NAS_BENCH_201,
        num_nodes: int = 4,
        affine: bool = False,
        track_running_stats: bool = False,
        baseline: str | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or num_nodes < 2:
            raise ValueError(f"OnePathCell: needs channels >= 1 and num_nodes >= 2, got {channels} and {num_nodes}")
        unknown = [op for op in ops if op not in OPERATIONS]
        if unknown or not ops:
            raise ValueError(f"OnePathCell: ops must be names among {sorted(OPERATIONS)}, got {list(ops)}")
        self.channels = channels
        self.ops = tuple(ops)
        self.num_nodes = num_nodes
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.baseline = checked_baseline("OnePathCell", baseline)
        self.edges = nn.ModuleDict(
            {
                f"{target}<-{source}": nn.ModuleList(
                    OPERATIONS[op](channels, affine, track_running_stats) for op in ops
                )
                for target in range(1, num_nodes)
                for source in range(target)
            }
        )

    @property
    def num_edges(self) -> int:
        return self.num_nodes * (self.num_nodes - 1) // 2

    def forward(self, x: Tensor, path: Path) -> Tensor:  # type: ignore[override]  # a cell has a path
        """Run the picked operations.

        Args:
            x: [batch, channels, height, width], of the dtype and on the device of the parameters. channels_last is the
                native layout; any other is converted once.
            path: picks for ``num_edges`` edges among ``len(ops)`` operations.

        Returns:
            [batch, channels, height, width], channels_last.

        Raises:
            TypeError: ``path`` is not a Path, or the dtype of ``x`` is not that of the parameters.
            ValueError: a shape, a device or an operation does not fit.
            RuntimeError: in a double backward pass, which is not implemented.
        """
        self._check(x)
        return super().forward(x, path)

    def plain(self, x: Tensor, path: Path) -> Tensor:  # type: ignore[override]  # a cell has a path
        """The same by the plain PyTorch specification."""
        self._check_path(path)
        return reference.cell(x, path, self._candidates(), self.num_nodes, self.baseline == "input")

    def obstacle(self, path: Path) -> native.Obstacle:  # type: ignore[override]
        """Why the native executor does not run what ``path`` picks; None: it does."""
        rows = self._check_path(path)
        found = (native.operation_obstacle(op) for op in self._picked(rows))
        return next(filter(None, found), None)

    def add_to(self, graph: native.Graph, source: int, path: Path) -> int:  # type: ignore[override]
        """The cell as a part of a graph."""
        picks, nodes = path.picks, [source]
        picked = enumerate(self._picked(path.ops.tolist()))
        compares = self.baseline == "input" and path.gates.requires_grad
        edge = 0
        for _ in range(1, self.num_nodes):
            arrivals = [(op.steps(), node, gate) for node in nodes for gate, op in islice(picked, picks)]  # type: ignore[operator]
            if compares:
                arrivals += graph.baselines(nodes, path, edge)
            edge += len(nodes)
            nodes.append(graph.node(arrivals))
            graph.edges_into(nodes[-1], len(nodes) - 1)
        return nodes[-1]

    def keep_only(self, ops: Tensor) -> None:
        """Discard the parameters of every candidate but ``ops`` (int64 [num_edges]): the cell of one architecture."""
        picks = Path.from_ops(ops, requires_grad=False)
        self._check_path(picks)
        for candidates, row in zip(self._candidates(), picks.ops.tolist(), strict=True):
            for op in range(len(candidates)):
                if op not in row:
                    candidates[op] = Discarded()

    def extra_repr(self) -> str:
        return f"channels={self.channels}, ops={self.ops}, num_nodes={self.num_nodes}"

    def operations(self) -> Iterator[tuple[str, nn.Module]]:
        """All candidates that are left, by name."""
        for edge, candidates in self.edges.items():
            for number, op in candidates.named_children():
                if not isinstance(op, Discarded):
                    yield f"edges.{edge}.{number}", op

    def _candidates(self) -> list[nn.ModuleList]:
        return list(self.edges.values())  # type: ignore[arg-type]

    def _picked(self, rows: list[list[int]]) -> list[nn.Module]:
        """The operations of all edges, in the order of their gates."""
        # self.edges and candidates[op] search and count; a network asks for a hundred operations in a step.
        edges: nn.ModuleDict = self._modules["edges"]  # type: ignore[assignment]
        pairs = zip(edges.values(), rows, strict=True)
        return [candidates._modules[str(op)] for candidates, row in pairs for op in row]  # type: ignore[misc]

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"OnePathCell: x must have shape [batch, {self.channels}, height, width], got {list(x.shape)}"
            )
        parameter = next(self.parameters(), None)
        if parameter is None:
            return
        if x.device != parameter.device:
            raise ValueError(
                f"OnePathCell: x is on {x.device} and the cell on {parameter.device}; move one of them with .to()"
            )
        if x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"OnePathCell: x is {x.dtype} and the cell's parameters are {parameter.dtype}; "
                "convert one of them with .to(), or run under torch.autocast"
            )

    def _check_path(self, path: Path) -> list[list[int]]:
        """The operations of every edge, if the cell has them."""
        if not isinstance(path, Path):
            raise TypeError(f"OnePathCell: path must be an advnas_ext.Path, got {type(path).__name__}")
        rows = path.ops.tolist()
        if len(rows) != self.num_edges:
            raise ValueError(f"OnePathCell: path must have {self.num_edges} edges, got {len(rows)}")
        if max(map(max, rows)) >= len(self.ops):
            raise ValueError(f"OnePathCell: path.ops must be below {len(self.ops)}, the number of ops, got {rows}")
        return rows
