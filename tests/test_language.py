"""Language modelling: the network, the task, searches and retrainings on a small text."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy as plain_cross_entropy

from advnas import cli
from advnas.cost import cost
from advnas.data.text import Corpus
from advnas.networks import language
from advnas.run import retrain, search
from advnas.run.folder import RunFolder
from advnas.run.watch import Interrupted, Watch
from advnas.spaces.recurrent import DARTS_RECURRENT, DARTS_V2, RECURRENT
from advnas.tasks.language import AveragedSgd, LanguageRetrainConfig, LanguageSearchConfig, LanguageTask
from advnas_ext import ESTIMATORS, Path

TINY = {
    "units": 8,
    "batch_size": 8,
    "bptt": 5,
    "epochs": 2,
    "steps_per_epoch": 3,
    "valid_batches": 2,
    "threads": 1,
    "arch_lr": 0.1,
}
CELL = "|tanh~0|+|relu~0|none~1|+|identity~0|sigmoid~1|relu~2|"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text of a hundred words of which each follows from the last one, more or less."""
    path = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 4000), ("valid", 600), ("test", 500)):
        word, words = 0, []
        for skip in torch.randint(3, (count,), generator=generator).tolist():
            word = (7 * word + 1 + skip) % 100
            words.append(f"w{word}")
        lines = [" ".join(words[at : at + 10]) for at in range(0, count, 10)]
        (path / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "curves", lambda *args: b"")
    return LanguageSearchConfig(**TINY, data=str(folder), out=tmp_path / "run")


def rows(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# The network


def model(cell="one_path", dtype=torch.float64):
    torch.manual_seed(0)
    return getattr(language, cell)(50, 6, 3, RECURRENT.ops).to(dtype)


@pytest.mark.parametrize("cell", ["one_path", "darts"])
def test_the_loss_is_that_of_the_scores(cell, close):
    network, path = model(cell), Path.from_ops([1, 3, 4, 0, 2, 3], dtype=torch.float64)
    inputs, targets = torch.randint(50, (2, 7, 4), generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(4, 6, dtype=torch.float64)
    scores, last = network(inputs, path, hidden)
    assert scores.shape == (7, 4, 50)
    expected = plain_cross_entropy(scores.flatten(0, 1), targets.flatten())
    loss, same = network.loss(inputs, targets, path.detach(), hidden)
    close(loss, expected)
    close(same, last)
    wanted = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    loss.backward()
    for (name, p), gradient in zip(network.named_parameters(), wanted, strict=True):
        assert (p.grad is None) == (gradient is None), name
        if gradient is not None:
            close(p.grad, gradient, name)


def test_gradients_of_gates_are_those_of_the_scores(close):
    network = model()
    inputs, targets = torch.randint(50, (2, 7, 4), generator=torch.Generator().manual_seed(1))
    one, other = (Path.from_ops([1, 3, 4, 0, 2, 3], dtype=torch.float64) for _ in range(2))
    plain_cross_entropy(network(inputs, one)[0].flatten(0, 1), targets.flatten()).backward()
    network.loss(inputs, targets, other)[0].backward(inputs=[other.gates])
    close(other.gates.grad, one.gates.grad)


def test_masks_are_dropout(close):
    generator = torch.Generator().manual_seed(0)
    masks = language.draw_masks(generator, 2000, 6, 0.25, 0.5)
    for name, rate in (("input", 0.25), ("output", 0.25), ("hidden", 0.5)):
        assert masks[name].shape == (2000, 6)
        assert masks[name].unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert abs((masks[name] == 0).float().mean() - rate) < 0.02
    assert language.draw_masks(generator, 2, 6, 0.0, 0.0) == {}
    # By hand: the input is masked before the cell, the output after it.
    network, path = model(), Path.from_ops([1, 3, 4, 0, 2, 3], dtype=torch.float64).detach()
    inputs, targets = torch.randint(50, (2, 7, 4), generator=generator)
    masks = {name: mask.double() for name, mask in language.draw_masks(generator, 4, 6, 0.5, 0.0).items()}
    x = network.embedding(inputs) * masks["input"]
    outputs = network.cell(x, path)[0] * masks["output"]
    expected = plain_cross_entropy(
        (outputs @ network.embedding.weight.t() + network.bias).flatten(0, 1), targets.flatten()
    )
    close(network.loss(inputs, targets, path, masks=masks)[0], expected)


def test_without_a_path_it_must_be_fixed():
    with pytest.raises(ValueError, match=r"LanguageModel: path is missing; .* with \.fix\(ops\)"):
        model()(torch.zeros(3, 2, dtype=torch.int64))
    assert model().fix(RECURRENT.parse(CELL))(torch.zeros(3, 2, dtype=torch.int64))[0].shape == (3, 2, 50)


def test_cost_by_hand():
    """A word: the input node's product, those of the cell's six edges, and the scores with their bias."""
    units, words = 6, 50
    found = cost(model(dtype=torch.float32).fix(RECURRENT.parse(CELL.replace("none", "tanh"))), (1, 1), torch.int64)
    assert found.flops == 2 * units * 2 * units + 6 * units * 2 * units + words * units + words
    assert found.params == 2 * units * 2 * units + 6 * units * 2 * units + words * units + words


# The task


def test_the_published_cell_of_darts_is_one_of_the_space():
    ops = DARTS_RECURRENT.parse(DARTS_V2)
    assert DARTS_RECURRENT.format(ops) == DARTS_V2
    picked = [(edge, DARTS_RECURRENT.ops[op]) for edge, op in zip(DARTS_RECURRENT.edges, ops.tolist(), strict=True)]
    found = [(target, source, op) for (target, source), op in picked if op != "none"]
    assert found[:2] == [(1, 0, "sigmoid"), (2, 1, "relu")]
    assert [target for target, _, _ in found] == list(range(1, 9))


@pytest.mark.parametrize("arch_data", ["train", "valid"])
def test_what_the_weights_and_the_architecture_see(folder, arch_data):
    task = LanguageTask(LanguageSearchConfig(**TINY, data=str(folder), arch_data=arch_data))
    text = task.corpus.train
    weights, arch = (stream(torch.Generator()) for stream in (task.weight_stream, task.arch_stream))
    first = [next(iter(stream)).inputs[:, 0] for stream in (weights, arch)]
    if arch_data == "train":
        assert len(weights) == len(arch) == -(-(len(text) // 8 - 1) // 5)
        assert torch.equal(first[0], text[:5])
        assert torch.equal(first[1], text[5 * round(len(arch) / 2) :][:5])  # half a pass ahead
    else:
        assert len(weights) == len(arch) == -(-(len(text) // 2 // 8 - 1) // 5)
        assert torch.equal(first[1], text[len(text) // 2 :][:5])


def test_measuring_carries_the_hidden_state_and_has_no_dropout(folder):
    task = LanguageTask(LanguageSearchConfig(**TINY, data=str(folder), dropout=0.9))
    torch.manual_seed(0)
    network, path = task.supernet(), Path.from_ops(RECURRENT.parse(CELL), requires_grad=False)
    held_out = task.held_out(torch.Generator())
    found = task.measure(network, path, held_out(1000))
    rows = task.corpus.valid[: len(task.corpus.valid) // 8 * 8].view(8, -1).t()
    with torch.no_grad():
        scores = network(rows[:-1], path)[0]
        expected = plain_cross_entropy(scores.flatten(0, 1), rows[1:].flatten()).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_texts_that_do_not_fill_a_window_are_refused():
    corpus = Corpus.of_lines([["a b c d"] * 100, ["a"] * 3, ["a"] * 300])
    with pytest.raises(
        ValueError, match=r"a text in 8 columns must have at least 8 \* \(bptt \+ 1\) = 48 tokens, got 6"
    ):
        LanguageTask(LanguageSearchConfig(**TINY), corpus)


# Searches


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_searches_and_goes_on_bit_for_bit(config, tmp_path, monkeypatch, estimator):
    settings = {**config.to_dict(), "estimator": estimator, "dropout": 0.3, "dropout_hidden": 0.2}
    whole = search.start(LanguageSearchConfig(**{**settings, "out": tmp_path / "whole"}))
    table = rows(whole / "history.csv")
    assert list(table[0]) == ["epoch", "train_loss", "valid_loss", "valid_perplexity", "entropy", "arch"]
    assert all(math.isfinite(float(row["valid_perplexity"])) for row in table)
    RECURRENT.parse(json.loads((whole / "result.json").read_text())["arch"])
    real, count = Watch.after_step, iter(range(1, 1000))

    def after_step(watch):
        watch.stop = next(count) == 4
        real(watch)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_step", after_step)
        with pytest.raises(Interrupted):
            search.start(LanguageSearchConfig(**{**settings, "out": tmp_path / "part"}))
    search.resume(tmp_path / "part")
    assert rows(tmp_path / "part" / "history.csv") == table
    assert (tmp_path / "part" / "logits.csv").read_bytes() == (whole / "logits.csv").read_bytes()
    states = [RunFolder(tmp_path / name).checkpoint("search") for name in ("whole", "part")]
    one, other = (torch.load(state, weights_only=True)["state"]["parts"]["network"] for state in states)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns(config):
    settings = {"steps_per_epoch": None, "epochs": 12, "units": 24, "dropout": 0.0, "lr": 20.0, "bptt": 10}
    folder = search.start(LanguageSearchConfig(**{**config.to_dict(), **settings}))
    table = rows(folder / "history.csv")
    assert float(table[-1]["valid_perplexity"]) < 60  # of a hundred words and an end


def test_the_command_line(config, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert cli.main(["search", "--task", "language", f"--data={folder}", *flags, "--out=run"]) == 0
    assert "valid perplexity" in capsys.readouterr().out
    small = ["--units=8", "--batch-size=8", "--epochs=2"]
    assert cli.main(["retrain", "run", *small]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads((tmp_path / "run" / "retrain.json").read_text())
    assert f"test perplexity  {result['test_perplexity']:.1f}" in out
    assert cli.main(["retrain", "--task=language", f"--arch={CELL}", f"--data={folder}", *small, "--out=given"]) == 0
    assert json.loads((tmp_path / "given" / "retrain.json").read_text())["arch"] == CELL
    capsys.readouterr()
    assert cli.main(["retrain", *small, "run"]) == 2
    assert "run: holds a retraining already" in capsys.readouterr().err  # and not: no option --units
    assert cli.main(["retrain", "run", "--task=image"]) == 2
    assert "run: is a search of the task language; add --task language" in capsys.readouterr().err


# Retraining


def retrain_config(folder, out, **settings):
    small = {"units": 16, "batch_size": 8, "bptt": 10, "epochs": 3, "threads": 1, "lr": 5.0, "dropout": 0.1}
    return LanguageRetrainConfig(**{**small, "arch": CELL, "data": str(folder), "out": out, **settings})


def test_the_test_is_over_all_tokens(folder, tmp_path):
    made = retrain.start(retrain_config(folder, tmp_path / "run"))
    result = json.loads((made / "retrain.json").read_text())
    task = LanguageTask(retrain_config(folder, tmp_path / "run"))
    state = torch.load(RunFolder(made).checkpoint("retrain"), weights_only=True)["state"]["parts"]
    network = task.network(CELL)
    network.load_state_dict(state["network"])
    for part, text in (("valid", task.corpus.valid), ("test", task.corpus.test)):
        with torch.no_grad():
            scores = network(text[:-1, None])[0]
            expected = plain_cross_entropy(scores[:, 0], text[1:]).item()
        assert result[f"{part}_loss"] == pytest.approx(expected, rel=1e-4)
        assert result[f"{part}_perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)
        assert result[f"{part}_tokens"] == len(text)
    assert result["test_perplexity"] < 101
    assert list(rows(made / "retrain.csv")[0]) == [
        "epoch",
        "train_loss",
        "train_perplexity",
        "valid_loss",
        "valid_perplexity",
    ]


def test_an_interrupted_retraining_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    """Also while it averages."""
    whole = retrain.start(retrain_config(folder, tmp_path / "whole", patience=0, epochs=4, lr=100.0))
    real, count = Watch.after_step, iter(range(1, 10_000))
    steps = len(LanguageTask(retrain_config(folder, None)).training(torch.Generator()))

    def after_step(watch):
        watch.stop = next(count) == 3 * steps + 2
        assert not watch.stop or watch.state.recipe.averages
        real(watch)

    config = retrain_config(folder, tmp_path / "part", patience=0, epochs=4, lr=100.0)
    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_step", after_step)
        with pytest.raises(Interrupted):
            retrain.start(config)
    assert not (tmp_path / "part" / "retrain.csv").exists()
    retrain.start(config, go_on=True)
    one, other = (json.loads((folder / "retrain.json").read_text()) for folder in (whole, tmp_path / "part"))
    assert {k: v for k, v in one.items() if k not in ("seconds", "out")} == {
        k: v for k, v in other.items() if k not in ("seconds", "out")
    }


def test_a_cell_with_a_node_that_puts_nothing_out_is_averaged_too(folder, tmp_path):
    """Its weight never has a gradient, and so no average."""
    arch = "|none~0|+|relu~0|none~1|+|identity~0|sigmoid~1|relu~2|"
    config = retrain_config(folder, tmp_path / "run", arch=arch, patience=0, epochs=4, lr=100.0)
    path = retrain.start(config)
    assert retrain.restore(path)[1].recipe.averages
    assert len(rows(path / "retrain.csv")) == 4


def test_averaging_begins_where_the_perplexity_stays(folder):
    config = retrain_config(folder, None, patience=2, lr=0.5, weight_decay=0.0)
    network = torch.nn.Linear(2, 1, bias=False)
    recipe = AveragedSgd(network, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    seen = []
    for perplexity, averages in ((90, False), (80, False), (81, False), (79, False), (80.5, True), (70, True)):
        network.weight.grad = torch.ones(1, 2) * 0.1
        before = network.weight.clone()
        recipe.step(scaler)
        torch.testing.assert_close(network.weight, before - 0.05)
        seen.append(network.weight.clone())
        recipe.after_epoch({"perplexity": float(perplexity)})
        assert recipe.averages == averages
    weight = network.weight.clone()
    with recipe.evaluating():
        torch.testing.assert_close(network.weight, seen[-1])  # one step after the fifth: its average
    for _ in range(3):  # torch's average begins with the next step
        network.weight.grad = torch.ones(1, 2) * 0.1
        recipe.step(scaler)
    with recipe.evaluating():
        torch.testing.assert_close(network.weight, weight - 0.10)  # the mean of three steps
    torch.testing.assert_close(network.weight, weight - 0.15)


def test_a_training_needs_the_validation_text_that_it_reads(folder):
    """Ten columns of it, whatever the batch."""
    config = retrain_config(folder, None, bptt=10, batch_size=64)
    text = [["a b c d"] * 400, ["a"] * 60, ["a"] * 60]  # 120 tokens
    LanguageTask(config, Corpus.of_lines(text))
    with pytest.raises(ValueError, match="= 110 tokens, got 108"):
        LanguageTask(replace(config, batch_size=4), Corpus.of_lines([text[0], ["a"] * 54, text[2]]))
