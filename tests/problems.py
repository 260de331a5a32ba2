"""Random problems of which every path can be listed, in float64, for the tests of the theory."""

import torch
from benchmarks.paper.expected import batch_norm, half_square, listed, node
from hypothesis import settings
from hypothesis import strategies as st

DOUBLE = {"dtype": torch.float64}
seeds = st.integers(0, 2**31)
few = settings(deadline=None, max_examples=25)


def equal(actual, expected, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, **DOUBLE)


def policy(seed, edges=3, num_ops=3, scale=1.5):
    return (scale * noise(seed)(edges, num_ops)).softmax(1)


def before_batch_norm(seed, edges=2, num_ops=3, size=8):
    """Edges that meet at a node: their outputs [edges, num_ops + 1, size], the input's the last, and the loss of their sum."""
    draw = noise(seed)
    outputs, loss = draw(edges, num_ops + 1, size), half_square(draw(size))
    return outputs, lambda sums: loss(batch_norm(sums))


def normed(seed, edges=2, num_ops=3):
    """The paths of such a node."""
    return listed(node(*before_batch_norm(seed, edges, num_ops)), edges, num_ops, num_ops + 1)


def centred(p, values):
    """p_k (value_k - sum_j p_j value_j): the covariance of the score with values that the pick decides."""
    return p * (values - (p * values).sum(1, keepdim=True))
