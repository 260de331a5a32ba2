"""The model of a step on a GPU launches what the passes launch."""

from collections import Counter

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("to_gates", [False, True], ids=["weight", "architecture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [16, 3])
def test_the_walk_is_what_a_step_launches(launches, channels, dtype, to_gates):
    """Every launch with its grid, block and shared memory, and the operators of the library."""
    import cuda_model
    import cuda_walk
    import sides
    from operators import Operators
    from work import Case

    case = Case(channels, 2, batch_size=3, image_size=8)
    network, batch = sides.make_network(case)
    ours = sides.Ours(network.to(dtype), batch.to(dtype))
    for ops in [*sides.make_paths(12, seed=3), torch.zeros(6, dtype=torch.int64)]:
        with launches.counted() as found, Operators() as operators:
            ours.step(ops, to_gates)
        walk = cuda_walk.step(case, ops.tolist(), to_gates, dtype.itemsize)
        assert found == Counter(work.launch for work in walk if work.launch is not None), ops
        if dtype != torch.float32:
            continue  # the rows of batch norm that are cast are counted by hand
        library = Counter()
        for work in [*walk, *cuda_model.head(case, dtype, to_gates)]:
            if work.launch is None:
                library[work.name] += work.launches
        counted = Counter()
        for operator in operators.found:
            counted[operator.name] += operator.launches
        assert library == counted, ops


def test_launches_by_hand(launches):
    """Cells of skip connections: a launch for each node each way, but for the first of a cell, which is its input; and nothing of
    the library but what stem and blocks need."""
    import cuda_launches
    import sides
    from work import Case

    case = Case(4, 2, batch_size=2, image_size=8)
    network, batch = sides.make_network(case)
    side = sides.Ours(network, batch)
    skip, none = (cuda_launches.count_step(launches, side, torch.full((6,), op), False) for op in (1, 0))
    nodes = 1 + 6 * 2 + 2 * 2  # the stem's, two of a cell, two of a reduction block
    assert skip["node_forward_kernel"] == nodes
    assert skip["node_backward_kernel"] == nodes - 1, "all but the last, where nothing is to be summed"
    assert skip["library: convolution"] == 1 + 2 * 2, "3x3 convolutions"
    assert none["node_forward_kernel"] == 1, "the output does not depend on anything"
    assert none["node_backward_kernel"] == none["library: convolution"] == 0
