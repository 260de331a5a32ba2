"""What the rule for the zero operation does, on a task that is made for it.

Two edges add up to an output y, and the loss is -y_0 + |y_1..3|^2 / 2. The operations of the first edge give more or less of y_0.
All operations of the second one give vectors across it: whatever it picks but ``none`` adds half its squared length to the loss,
so that nothing is its right operation.
"""

import pytest
import torch

from advnas_ext import AdvantageEstimator, gate

NONE, LENGTHS = 0, (0.0, 0.4, 0.6, 0.8)  # of the second edge's vectors; the first one is none's
USEFUL = torch.tensor([0.0, 1.0, 0.5, -0.5])[:, None] * torch.tensor([1.0, 0.0, 0.0, 0.0])
USELESS = torch.diag(torch.tensor(LENGTHS))


def searched(zero_op, steps=3000):
    estimator = AdvantageEstimator(2, 4, zero_op)
    optimizer = torch.optim.SGD([estimator.logits], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        path = estimator.sample(generator)
        ops = path.ops[:, 0].tolist()
        y = gate(USEFUL[ops[0]], path.gates[0, 0]) + gate(USELESS[ops[1]], path.gates[1, 0])
        loss = y[1:].square().sum() / 2 - y[0]
        loss.backward()
        estimator.assign_grad(path, loss)
        optimizer.step()
        estimator.after_step(path)
    return estimator.probabilities()


def test_without_the_rule_a_useless_edge_ends_as_none():
    """Its operations have a positive advantage, which is what they add to the loss, and none has 0."""
    useful, useless = searched(zero_op=None)
    assert useless[NONE] > 0.9
    assert useful.argmax() == 1


def test_with_the_rule_it_ends_as_the_operation_that_harms_least():
    """none counts as the worst of them: the rule keeps edges, it does not remove them."""
    useful, useless = searched(zero_op=NONE)
    assert useless[NONE] < 0.1
    assert useless.argmax() == 1
    assert useful.argmax() == 1


@pytest.mark.parametrize("zero_op", [None, NONE])
def test_a_useful_edge_keeps_its_operation_either_way(zero_op):
    assert searched(zero_op)[0].argmax() == 1
