"""What the estimators' gradients are on average, exactly: for problems of which every path can be listed.

A loss is a function of gates [..., edges, columns], in float64. Column k is the gate of an edge's operation k; the column after
the operations, where there is one, is that of the edge's input. On a path the gates of the picked operations are 1 and all
others 0, and the loss's derivatives there are

    slopes[a, e, k] = <dL/dy_e, op_k(x_e)>     for every operation k, whether the path a picks it or not

which is all that an estimator can see of a network. docs/theory.md has the formulas of this file with their derivations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.paper.toy import Toy

Loss = Callable[[Tensor], Tensor]
CHUNK = 512  # paths that are evaluated at once


@dataclass(frozen=True)
class Paths:
    """All paths of a problem.

    Attributes:
        ops: int64 [paths, edges].
        losses: [paths].
        slopes: [paths, edges, columns].
        num_ops: operations of every edge; a column beyond them is the edge's input.
    """

    ops: Tensor
    losses: Tensor
    slopes: Tensor
    num_ops: int

    @property
    def picks(self) -> Tensor:
        """[paths, edges, num_ops], 1 for the picked operation."""
        return one_hot(self.ops, self.num_ops).double()

    @property
    def advantages(self) -> Tensor:
        """[paths, edges], in comparison with no output."""
        return self.slopes.gather(2, self.ops[:, :, None])[:, :, 0]

    @property
    def spread(self) -> float:
        """The largest loss less the smallest."""
        return (self.losses.max() - self.losses.min()).item()

    def chances(self, p: Tensor) -> Tensor:
        """Of the paths under the policy p [edges, num_ops]: [paths]."""
        return p[torch.arange(len(p)), self.ops].prod(1)

    def mean(self, p: Tensor, values: Tensor) -> Tensor:
        """E[values], over the first dimension of ``values``, which is that of the paths."""
        return torch.tensordot(self.chances(p), values, 1)

    def score_gradient(self, p: Tensor, values: Tensor) -> Tensor:
        """E[values_e (onehot(a_e) - p_e)], [edges, num_ops], for values [paths, edges]."""
        return self.mean(p, values[:, :, None] * (self.picks - p))


def listed(loss: Loss, edges: int, num_ops: int, columns: int) -> Paths:
    """Every path of a problem, with its loss and slopes."""
    ops = torch.cartesian_prod(*[torch.arange(num_ops)] * edges).reshape(-1, edges)
    losses, slopes = [], []
    for some in ops.split(CHUNK):
        gates = one_hot(some, columns).double().requires_grad_()
        values = loss(gates)
        slopes += torch.autograd.grad(values.sum(), gates)
        losses.append(values.detach())
    return Paths(ops, torch.cat(losses), torch.cat(slopes), num_ops)


def advantage(paths: Paths, p: Tensor) -> Tensor:
    return paths.score_gradient(p, paths.advantages)


def against_input(paths: Paths, p: Tensor) -> Tensor:
    return paths.score_gradient(p, paths.advantages - paths.slopes[:, :, paths.num_ops])


def against_mean(paths: Paths, p: Tensor) -> Tensor:
    """The baseline is the mean over the operations, sum_k p_k op_k(x)."""
    return paths.score_gradient(p, paths.advantages - (paths.slopes[:, :, : paths.num_ops] * p).sum(2))


def swap(paths: Paths, p: Tensor) -> Tensor:
    """E[D_e (onehot(a_e) - onehot(b_e))] / 2 for independent a_e, b_e: pairs of one operation add nothing."""
    difference = p * (paths.advantages[:, :, None] - paths.slopes[:, :, : paths.num_ops])  # by b_e
    return paths.mean(p, paths.picks * difference.sum(2, keepdim=True) - difference) / 2


def reinforce(paths: Paths, p: Tensor) -> Tensor:
    """The gradient of the expected loss itself."""
    return paths.score_gradient(p, paths.losses[:, None].expand_as(paths.ops))


Update = Callable[[Paths, Tensor], Tensor]
UPDATES: dict[str, Update] = {
    "AdvantageNAS": advantage,
    "against the input": against_input,
    "against the mean": against_mean,
    "swap": swap,
    "REINFORCE": reinforce,
}


def descend(paths: Paths, update: Update, step: float, count: int) -> list[float]:
    """The expected loss before and after each of ``count`` steps of gradient descent on the logits, from the uniform policy."""
    logits = torch.zeros(paths.ops.shape[1], paths.num_ops, dtype=torch.float64)
    values = []
    for _ in range(count + 1):
        p = logits.softmax(1)
        values.append(paths.mean(p, paths.losses).item())
        logits = logits - step * update(paths, p)
    return values


def node(outputs: Tensor, after: Loss) -> Loss:
    """Edges that meet at one node: ``after`` of the sum of their outputs [edges, columns, size]."""
    return lambda gates: after(torch.einsum("...ek,eks->...s", gates, outputs))


def batch_norm(values: Tensor) -> Tensor:
    """Of one channel, over the last dimension, with nothing added to the variance."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


def half_square(target: Tensor) -> Loss:
    """Half the mean squared error."""
    return lambda values: (values - target).square().mean(-1) / 2


def linear_cell(generator: torch.Generator, num_ops: int = 3, size: int = 4) -> Loss:
    """Three edges, 1<-0, 2<-0 and 2<-1, of random affine operations, and a random linear function of node 2."""
    draw = {"generator": generator, "dtype": torch.float64}
    weight = torch.randn(3, num_ops + 1, size, size, **draw)
    bias = torch.randn(3, num_ops + 1, size, **draw)
    weight[:, num_ops], bias[:, num_ops] = torch.eye(size, dtype=torch.float64), 0  # the input
    x, readout = torch.randn(size, **draw), torch.randn(size, **draw)

    def loss(gates: Tensor) -> Tensor:
        edges = gates.unsqueeze(-2) @ (torch.einsum("ekij,j->eki", weight, x) + bias)  # of node 0
        inner = edges[..., 0, 0, :]
        chained = torch.einsum("...k,kij,...j->...i", gates[..., 2, :], weight[2], inner) + gates[..., 2, :] @ bias[2]
        return (edges[..., 1, 0, :] + chained) @ readout

    return loss


def toy_loss(toy: Toy) -> Loss:
    """The toy regression of the paper on its held-out images; the operations' input has another shape and no column."""
    channels = torch.einsum("nxi,eki->nxek", toy.held_out.double(), toy.first.double())

    def output(gates: Tensor) -> Tensor:
        return (torch.einsum("nxek,...ek->...nxe", channels, gates).tanh() * toy.second.double()).sum((-2, -1))

    target = output(one_hot(toy.teacher, toy.first.shape[1]).double())
    return lambda gates: 2 * half_square(target)(output(gates))


# Two nodes that batch norm follows, of a fixed part and one decision. Both vectors have mean 0 and mean square 1, are orthogonal,
# and the loss is half the squared error to the target: 1 - the node's correlation with it.
TARGET = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
OTHER = torch.tensor([1.0, 1, -1, -1], dtype=torch.float64)


def multiples(x: Tensor, factors: tuple[float, ...], fixed: Tensor) -> Paths:
    """A node fixed + factor * x before batch norm, for one decision among the factors."""
    outputs = torch.tensor((*factors, 1.0), dtype=torch.float64)[:, None] * x
    loss = node(outputs[None], lambda sums: half_square(TARGET)(batch_norm(fixed + sums)))
    return listed(loss, edges=1, num_ops=len(factors), columns=len(factors) + 1)


def eclipsed() -> Paths:
    """The input is the target, and doubling it helps; but the more an edge rules its node, the less its scale matters."""
    return multiples(TARGET, (1.0, 2.0), fixed=OTHER)


def far_apart() -> Paths:
    """The input is noise beside the target. Taking it away once does less harm than adding it ten times."""
    return multiples(OTHER, (-1.0, 10.0), fixed=TARGET)
