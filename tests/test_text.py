"""Texts, their vocabulary, and windows that go on where they stopped."""

import pytest
import torch

from advnas.data import text as texts
from advnas.data.text import Corpus, Windows
from advnas.device import Placement

LINES = {"train": "the cat sat\nthe <unk> sat\n", "valid": "the cat sat\n", "test": "the dog sat\n"}


def write(folder, prefix="", **parts):
    folder.mkdir(exist_ok=True)
    for part, content in (LINES | parts).items():
        (folder / f"{prefix}{part}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize("prefix", ["", "ptb."])
def test_a_folder_of_texts(tmp_path, prefix):
    corpus = texts.load(str(write(tmp_path, prefix)))
    assert corpus.words == ("the", "cat", "sat", "<eos>", "<unk>")
    assert corpus.train.tolist() == [0, 1, 2, 3, 0, 4, 2, 3]
    assert corpus.valid.tolist() == [0, 1, 2, 3]
    assert corpus.test.tolist() == [0, 4, 2, 3]  # a dog is unknown
    assert torch.equal(texts.load("ptb", tmp_path).train, corpus.train)


def test_what_editors_write(tmp_path):
    """A byte-order mark, ends of lines of other systems, and characters that only Python takes for the end of a line."""
    parts = {part: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() for part, text in LINES.items()}
    corpus = texts.load(str(write(tmp_path, **parts)))
    plain = texts.load(str(write(tmp_path / "plain")))
    assert corpus.words == plain.words
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(corpus, part), getattr(plain, part))
    odd = write(tmp_path / "odd", train="the cat\x0c sat\u2028on <unk>\n", valid="the\n", test="the\n")
    assert texts.load(str(odd)).train.tolist().count(texts.load(str(odd)).words.index("<eos>")) == 1


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"train": ""}, r"train\.txt: must hold words, got an empty text"),
        ({"valid": "\n \n"}, r"valid\.txt: must hold words, got an empty text"),
        (
            {"train": "the cat sat\n", "test": "the\na dog\n"},
            r"test\.txt, line 2: must have words of .*train\.txt, got 'a'",
        ),
        ({"valid": b"the cat\ncaf\xe9\n"}, r"valid\.txt, line 2: must be UTF-8, got byte 0xe9; convert the file"),
        (
            {"valid": b"\xef\xbb\xbfthe cat\ncaf\xe9\n"},
            r"valid\.txt, line 2: must be UTF-8, got byte 0xe9; convert the file",
        ),
    ],
)
def test_texts_that_are_none(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        texts.load(str(write(tmp_path, **parts)))


def test_files_that_are_missing_or_too_many(tmp_path):
    folder = write(tmp_path / "texts")
    (folder / "other.valid.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must hold one text for valid, got other\.valid\.txt, valid\.txt"):
        texts.load(str(folder))
    (folder / "test.txt").unlink()
    (folder / "other.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.txt: no such file; the folder must hold train\.txt"):
        texts.load(str(folder))
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        texts.load("ptb", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data_dir: needed to find the text"):
        texts.load("ptb")
    with pytest.raises(FileNotFoundError, match=rf"one of {', '.join(texts.TEXTS)}, or a folder .* no folder wikitext"):
        texts.load("wikitext")


@pytest.mark.parametrize("name", texts.TEXTS)
def test_every_text_that_comes_with_the_package(name):
    """What the task and a resumed search take for granted."""
    try:
        corpus, again = texts.load(name), texts.load(name)
    except ValueError as error:
        assert str(error).startswith("data_dir: ")  # noqa: PT017
        pytest.skip("lies in files")
    assert corpus.words == again.words
    for part in ("train", "valid", "test"):
        tokens = getattr(corpus, part)
        assert torch.equal(tokens, getattr(again, part))
        assert 0 <= tokens.min() <= tokens.max() < len(corpus.words)
    assert len(corpus.train.unique()) == len(corpus.words)


def test_the_embedded_text():
    corpus = texts.load("tiny")
    parts = corpus.train, corpus.valid, corpus.test
    assert 60_000 < len(corpus.train) < 300_000
    assert all(len(corpus.train) / 12 < len(part) < len(corpus.train) / 5 for part in parts[1:])
    assert 500 < len(corpus.words) < 3000
    assert {"<unk>", "<eos>", "N", "the", "function"} <= set(corpus.words)
    again = texts.load("tiny")
    assert all(
        torch.equal(one, other) for one, other in zip(parts, (again.train, again.valid, again.test), strict=True)
    )
    unknown = corpus.words.index("<unk>")
    assert all((part == unknown).float().mean() < 0.1 for part in parts)


def test_penn_treebank(shared):
    corpus = texts.load("ptb", shared / "data" / "ptb")
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [929_589, 73_760, 82_430]
    assert len(corpus.words) == 10_000
    assert all(0 <= part.min() <= part.max() < 10_000 for part in (corpus.train, corpus.valid, corpus.test))


# Windows


def windows(count=47, batch_size=4, length=3, **settings):
    return Windows(torch.arange(count), batch_size, length, Placement(), **settings)


def test_a_pass_has_every_token_but_the_last_row_as_input_and_its_follower_as_target():
    source = windows()  # 4 columns of 11 rows; 3 tokens are left over
    batches = list(source)
    assert [len(batch.inputs) for batch in batches] == [3, 3, 3, 1]
    assert len(source) == 4
    rows = torch.cat([batch.inputs for batch in batches])
    assert rows.t().tolist() == [list(range(11 * column, 11 * column + 10)) for column in range(4)]
    for batch in batches:
        assert torch.equal(batch.targets, batch.inputs + 1)
        assert dict(batch.masks) == {}
    assert torch.equal(torch.cat([batch.inputs for batch in source]), rows)  # and again


def test_the_hidden_state_goes_from_window_to_window_and_not_from_pass_to_pass():
    source = windows()
    for step, batch in enumerate(source):
        assert (batch.hidden is None) == (step == 0)
        assert step == 0 or batch.hidden.tolist() == [step - 1]
        batch.carry(torch.tensor([100.0], requires_grad=True))  # of another path on the same batch
        batch.carry(torch.tensor([float(step)], requires_grad=True))
        assert not source.hidden.requires_grad
    assert next(iter(source)).hidden is None


def masks(generator):
    return {"input": torch.rand(4, 5, generator=generator)}


@pytest.mark.parametrize("stop", range(1, 9))
def test_windows_go_on_bit_for_bit(stop, tmp_path):
    def forever(source):
        while True:
            for batch in source:
                batch.carry(batch.masks["input"].sum() + batch.inputs.sum())
                yield batch

    def make(seed=0):
        return windows(masks=masks, generator=torch.Generator().manual_seed(seed), start=0.5)

    whole = forever(make())
    expected = [next(whole) for _ in range(stop + 9)][stop:]
    stopped = make()
    running = forever(stopped)
    for _ in range(stop):
        batch = next(running)
    batch.carry(batch.masks["input"].sum() + batch.inputs.sum())
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = make(seed=7)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    running = forever(resumed)
    for batch in expected:
        again = next(running)
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.masks["input"], batch.masks["input"])
        assert (again.hidden is None) == (batch.hidden is None)
        assert batch.hidden is None or torch.equal(again.hidden, batch.hidden)


def test_the_first_pass_can_begin_in_the_middle():
    source = windows(start=0.5)
    assert [len(batch.inputs) for batch in source] == [3, 1]
    assert [len(batch.inputs) for batch in source] == [3, 3, 3, 1]


def test_a_text_that_is_too_short_and_a_state_of_another_text():
    with pytest.raises(
        ValueError, match=r"in 4 columns must have at least 4 \* \(bptt \+ 1\) = 16 tokens, got 15; use a longer"
    ):
        windows(count=15)
    with pytest.raises(ValueError, match="the state must be of a text of 11 rows, got 12; give the same data"):
        windows().load_state_dict(windows(count=48).state_dict())


def test_a_corpus_of_lines_names_its_parts():
    with pytest.raises(ValueError, match=r"test, line 1: must have words of train, got 'b'"):
        Corpus.of_lines([["a"], ["a"], ["b"]])
