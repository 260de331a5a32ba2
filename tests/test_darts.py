"""Cells and networks of DARTS: native beside plain PyTorch, and the plain one beside the authors' definitions written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import advnas_ext
from advnas.cli import SearchArguments, preset
from advnas.networks.darts import DartsNetwork
from advnas.run.folder import RunFolder
from advnas.run.search import Search, start
from advnas.spaces.darts import DARTS
from advnas.tasks.image import ImageRetrainConfig, ImageSearchConfig, ImageTask
from advnas_ext import ESTIMATORS, Path
from advnas_ext.darts import NUM_EDGES, DartsCell, FactorizedReduce

OPS = DARTS.ops
SIZES = {"even": (8, 8), "odd": (9, 7), "long": (4, 10)}


def network(channels=4, cells=1, **settings):
    torch.manual_seed(0)
    made = DartsNetwork(channels, cells, **settings).double()
    for buffer in made.buffers():
        if buffer.dim() == 1:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return made


def drawn(seed, picks=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(len(OPS), generator=generator)[:picks] for _ in range(DARTS.num_edges)])


def run(model, ops, size, plain=False, training=True):
    """Output and all gradients."""
    model = copy.deepcopy(model).train(training)
    x = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gates = torch.linspace(0.5, 1.5, ops.numel(), dtype=torch.float64).view(ops.shape).requires_grad_()
    path = Path(ops, gates).with_offsets()
    assert plain or model.obstacle(path) is None
    y = (model.plain if plain else model)(x, path)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    parameters = {name: parameter.grad for name, parameter in model.named_parameters()}
    results = {"y": y, "x": x.grad, "gates": gates.grad, "offsets": path.offsets.grad}
    return {**results, **parameters, **dict(model.named_buffers())}


def assert_equal(found, expected):
    for name, value in expected.items():
        ours = torch.zeros_like(value) if found[name] is None and value is not None else found[name]
        assert (ours is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("picks", "size", "training"),
    [(1, "even", True), (1, "odd", True), (1, "long", False), (2, "odd", True), (2, "even", False), (8, "long", True)],
)
def test_native_is_plain(picks, size, training):
    model, ops = network(), drawn(picks, picks)
    found, expected = (run(model, ops, SIZES[size], plain, training) for plain in (False, True))
    assert_equal(found, expected)


@pytest.mark.parametrize("op", range(len(OPS)), ids=OPS)
def test_every_operation_on_every_edge(op):
    model, ops = network(cells=1, affine=True), torch.full((DARTS.num_edges, 1), op)
    expected = run(model, ops, (8, 6), plain=True)
    if OPS[op] == "none":  # nothing reaches the output, so natively nothing runs that statistics could be of
        expected = {name: value for name, value in expected.items() if "running" not in name and "tracked" not in name}
    assert_equal(run(model, ops, (8, 6)), expected)


def test_several_cells_a_stage_and_no_running_statistics():
    model = network(2, 2, track_running_stats=False)
    assert len(model.cells) == 8
    assert [bool(cell.first_edge) for cell in model.cells] == [False, False, True, False, False, True, False, False]
    assert_equal(run(model, drawn(5), (8, 8)), run(model, drawn(5), (8, 8), plain=True))


def written_out(x, weights, ops):
    """The network of one cell a stage as functions of its ``state_dict``, in training, by the authors' definitions."""

    def conv(x, name, **settings):
        return F.conv2d(x, weights[f"{name}.weight"], **settings)

    def norm(x, name):
        return F.batch_norm(x, None, None, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"), training=True)

    def relu_conv_bn(x, name):
        return norm(conv(F.relu(x), f"{name}.op.1"), f"{name}.op.2")

    def reduce(x, name):
        x = F.relu(x)
        halves = conv(x, f"{name}.conv_1", stride=2), conv(x[:, :, 1:, 1:], f"{name}.conv_2", stride=2)
        return norm(torch.cat(halves, 1), f"{name}.bn")

    def separable(x, name, first, size, dilation, stride):
        groups = x.shape[1]
        padding = dilation * (size - 1) // 2
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        y = conv(F.relu(x), f"{name}.op.{first}", **settings)
        return norm(conv(y, f"{name}.op.{first + 1}"), f"{name}.op.{first + 2}")

    def operation(x, op, name, stride):
        size = int(op[-1]) if op[-1].isdigit() else 0
        if op == "none":
            return 0 * x[:, :, ::stride, ::stride]
        if op == "skip_connect":
            return x if stride == 1 else reduce(x, name)
        if op == "avg_pool_3x3":
            return norm(F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), f"{name}.1")
        if op == "max_pool_3x3":
            return norm(F.max_pool2d(x, 3, stride, 1), f"{name}.1")
        if op.startswith("dil"):
            return separable(x, name, 1, size, 2, stride)
        return separable(separable(x, name, 1, size, 1, stride), name, 5, size, 1, 1)

    before = x = norm(conv(x, "stem.0", padding=1), "stem.1")
    reduced = False
    for i in range(5):
        reduces = i in (1, 3)
        first = reduce if reduced else relu_conv_bn
        nodes = [first(before, f"cells.{i}.preprocess0"), relu_conv_bn(x, f"cells.{i}.preprocess1")]
        edge = 0
        for _ in range(4):
            total = 0
            for source, node in enumerate(nodes):
                place = ops[edge + NUM_EDGES * reduces]
                stride = 2 if reduces and source < 2 else 1
                total = total + operation(node, OPS[place], f"cells.{i}._ops.{edge}._ops.{place}", stride)
                edge += 1
            nodes.append(total)
        before, x, reduced = x, torch.cat(nodes[2:], 1), reduces
    return F.linear(x.mean((2, 3)), weights["classifier.weight"], weights["classifier.bias"])


@pytest.mark.parametrize("seed", range(4))
def test_the_network_by_its_definition(seed):
    model, ops = network(), drawn(seed).flatten()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = written_out(x, model.state_dict(), ops.tolist())
        torch.testing.assert_close(model.plain(x, Path.from_ops(ops)), expected)
        torch.testing.assert_close(model(x, Path.from_ops(ops)), expected)


def test_parameter_names_of_the_authors():
    names = set(network().state_dict())
    assert {
        "stem.0.weight",
        "cells.0.preprocess0.op.1.weight",
        "cells.2.preprocess0.conv_1.weight",
        "cells.2.preprocess0.bn.running_mean",
        "cells.0._ops.3._ops.4.op.1.weight",
        "cells.1._ops.0._ops.3.conv_2.weight",
        "cells.0._ops.0._ops.1.1.running_var",
        "classifier.bias",
    } <= names
    assert not any("identity" in name or "shift" in name for name in names)


def test_a_changed_layer_runs_plainly():
    model, ops = network(), torch.full((DARTS.num_edges, 1), OPS.index("sep_conv_3x3"))
    changes = {
        "a stem": lambda m: setattr(m.stem, "0", nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect")),
        "hooks": lambda m: m.cells[2].register_forward_hook(lambda *_: None),
        "an operation": lambda m: m.cells[0]._ops[0]._ops[4].op.__setitem__(0, nn.SiLU()),
        "a join": lambda m: m.cells[1].preprocess1.op.__setitem__(1, nn.Conv2d(16, 8, 1)),
        "a pool": lambda m: setattr(m, "global_pooling", nn.AdaptiveMaxPool2d(1)),
        "a classifier": lambda m: m.classifier.register_forward_pre_hook(lambda *_: None),
    }
    for name, change in changes.items():
        changed = copy.deepcopy(model)
        change(changed)
        changed.double()
        path = Path.from_ops(ops)
        assert changed.obstacle(path) is not None, name
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(changed(x, path), changed.plain(x, path))


def test_explain_names_every_operation():
    model = network()
    found = advnas_ext.explain(model)
    assert sum("_ops" in name for name in found) == 5 * NUM_EDGES * len(OPS)
    assert set(found.values()) == {None}
    model.cells[1]._ops[0]._ops[3].conv_1 = nn.Conv2d(8, 4, 1)
    assert "stride" in advnas_ext.explain(model)["cells.1._ops.0._ops.3"]


def test_bad_arguments():
    model, x = network(), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    for call, message in [
        (lambda: model(x), "path is missing"),
        (lambda: model(x[:, :2], Path.from_ops([0] * 28)), r"x must have shape \[batch, 3, height, width\]"),
        (lambda: model(x, Path.from_ops([0] * 14)), "path must have 28 edges, got 14"),
        (lambda: model(x, Path.from_ops([8] * 28)), "path.ops must be below 8"),
        (lambda: DartsCell((4, 4), 4, ("conv",)), "ops must be names among none"),
        (lambda: FactorizedReduce(4, 3, False, True), "channels must be even"),
        (lambda: DartsCell((4, 4), 4)(x, x, Path.from_ops([0] * 3)), "at least 14 edges, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_fixed_network_has_one_operation_an_edge():
    ops = drawn(3).flatten()
    fixed = network(affine=True).fix(ops)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fixed(x), network(affine=True)(x, Path.from_ops(ops)))
    with pytest.raises(ValueError, match="discarded"):
        fixed(x, Path.from_ops((ops + 1) % len(OPS)))


GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)  # that of the paper, found with the second-order gradient


def test_genotypes():
    ops = DARTS.parse(GENOTYPE)
    picked = {name: OPS[op] for name, op in zip(DARTS.edge_names, ops.tolist(), strict=True) if OPS[op] != "none"}
    assert len(picked) == 16
    assert (picked["normal 5<-2"], picked["reduce 3<-2"]) == ("dil_conv_3x3", "skip_connect")
    arch = DARTS.format(ops)
    again = DARTS.genotype(arch)
    assert torch.equal(DARTS.parse(again), ops)
    assert torch.equal(DARTS.parse(arch), ops)
    assert again.startswith("Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ")
    assert again.endswith("reduce_concat=range(2, 6))")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sep_conv_3x3", "conv_3x3", "unknown operation 'conv_3x3'; did you mean"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", "node 5 of normal cannot take node 5"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)", "node 5 of normal must have two inputs, got node 0 twice"),
        (", ('dil_conv_3x3', 2)", "", "normal must have 8 pairs"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[2, 3, 4]", "nodes 2 to 5 as its output"),
        ("Genotype(", "Genotype(__import__('os'), ", "a genotype must have the form"),
    ],
)
def test_malformed_genotypes(old, new, message):
    with pytest.raises(ValueError, match=message):
        DARTS.parse(GENOTYPE.replace(old, new, 1))


def test_a_cell_without_two_inputs_a_node_has_no_genotype():
    with pytest.raises(ValueError, match="node 2 of the cell normal must have 2 inputs, got 0"):
        DARTS.genotype(DARTS.format(torch.zeros(28, dtype=torch.int64)))


@pytest.mark.parametrize("name", ["advantage", "darts", "random"])
def test_what_is_derived_has_two_inputs_a_node(name):
    estimator = ESTIMATORS[name](DARTS.num_edges, len(OPS), zero_op=0)
    estimator.logits.data.normal_(generator=torch.Generator().manual_seed(0))
    cell = DARTS.derive(estimator, 0)
    DARTS.genotype(DARTS.format(cell))
    probabilities = estimator.probabilities()
    kept = cell > 0
    assert torch.equal(cell[kept], probabilities[:, 1:].argmax(1)[kept] + 1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        path = torch.randint(len(OPS), (28,), generator=generator)
        drawn_cell = DARTS.completed(path, len(OPS), 0, generator)
        DARTS.genotype(DARTS.format(drawn_cell))
        agrees = (drawn_cell == path) | (drawn_cell == 0) | (path == 0)
        assert agrees.all()


SMALL = {"space": "darts", "channels": 2, "cells": 1, "epochs": 1, "valid_batches": 1, "device": "cpu", "threads": 1}


@pytest.mark.parametrize(
    ("estimator", "told"), [("advantage", {}), ("random", {}), ("advantage", {"estimator_settings": {"zero_op": None}})]
)
def test_a_search_finds_a_genotype(tmp_path, estimator, told):
    config = ImageSearchConfig(**SMALL, **told, estimator=estimator, seed=1, steps_per_epoch=2, out=tmp_path / "run")
    folder = RunFolder(start(config))
    result = folder.result()
    assert torch.equal(DARTS.parse(result["genotype"]), DARTS.parse(result["arch"]))
    assert set(folder.logits().edges) == set(DARTS.edge_names)
    assert (folder / "cell.svg").read_text().count("<g transform") == 2
    assert (folder / "curves.png").is_file()
    network = ImageTask(ImageRetrainConfig(**{name: SMALL[name] for name in ("space", "channels", "cells", "device")}))
    assert isinstance(network.network(result["genotype"]), DartsNetwork)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"halving_cells": 1}, "halving_cells: darts has no neighbours to compare a cell with; set it to 0"),
        ({"max_flops": (10**9,)}, "are for spaces in which every path is a cell, not for darts"),
        ({"without": ("none",)}, "darts needs none, which stands for the edges that a cell leaves out"),
        ({"gate_baseline": "input"}, "gate_baseline: cells of darts have none, got 'input'"),
    ],
)
def test_settings_that_do_not_suit_the_space(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(ImageSearchConfig(**SMALL, **settings))


def test_a_preset_is_that_of_the_space(tmp_path):
    given = SearchArguments(settings=ImageTask.search_defaults(), preset="fast")
    ours, others = preset(ImageTask, given, "darts"), preset(ImageTask, given, None)
    assert (ours.halving_cells, ours.without, ours.estimator) == (0, (), "advantage")
    assert (others.halving_cells, others.without, others.estimator) == (3, ("none",), "rloo")
    assert ours.epochs == others.epochs
    file = tmp_path / "settings.yaml"
    file.write_text("space: darts\nestimator: gdas\n")
    of_file = preset(ImageTask, SearchArguments(settings=given.settings, preset="fast", config=file), None)
    assert (of_file.halving_cells, of_file.estimator) == (0, "gdas")
