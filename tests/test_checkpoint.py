import errno
import os

import pytest
import torch

from advnas import checkpoint

CONFIG = {"lr": 0.1, "epochs": 3}


@pytest.fixture
def saved(tmp_path):
    state = {
        "weights": torch.randn(100, 10),
        "generator": torch.Generator().get_state(),
        "rows": [{"a": 0.1, "b": "x"}],
    }
    file = tmp_path / "search.pt"
    checkpoint.save(file, "search", CONFIG, state)
    return file, state


def test_a_state_comes_back_bit_for_bit(saved):
    file, state = saved
    loaded = checkpoint.load(file, "search", CONFIG)
    assert torch.equal(loaded["weights"], state["weights"])
    assert torch.equal(loaded["generator"], state["generator"])
    assert loaded["rows"] == state["rows"]


def test_every_cut_is_noticed(saved):
    file, _ = saved
    content = file.read_bytes()
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.load(file, "search", CONFIG)


def test_a_flipped_bit_never_changes_a_state(saved):
    file, state = saved
    content = file.read_bytes()
    noticed = 0
    for position in range(0, len(content), 61):
        file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            loaded = checkpoint.load(file, "search", CONFIG)
        except ValueError:
            noticed += 1
        else:  # padding between the records of the archive
            assert torch.equal(loaded["weights"], state["weights"])
    assert noticed > 50


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_something_else_is_not_a_checkpoint(tmp_path, content):
    file = tmp_path / "search.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"search\.pt: not a checkpoint, or a damaged one"):
        checkpoint.load(file, "search", CONFIG)


def test_other_files_of_torch_are_not_checkpoints(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="not a checkpoint of an advnas search"):
        checkpoint.load(file, "search", CONFIG)
    torch.save([torch.nn.Linear(2, 2)], file)  # a pickle that could run code is not even opened
    with pytest.raises(ValueError, match="UnpicklingError"):
        checkpoint.load(file, "search", CONFIG)


def test_kind_and_settings_must_be_the_same(saved):
    file, _ = saved
    with pytest.raises(ValueError, match="not a checkpoint of an advnas retrain"):
        checkpoint.load(file, "retrain", CONFIG)
    with pytest.raises(ValueError, match=r"other settings \(epochs 3, now 4\)"):
        checkpoint.load(file, "search", {**CONFIG, "epochs": 4})


def test_a_checkpoint_of_another_format_says_what_made_it(saved):
    file, _ = saved
    payload = torch.load(file, weights_only=True)
    assert payload["format"] == checkpoint.FORMAT
    for version in ({"version": "advnas-ext 9.1"}, {}):
        torch.save({"kind": "search", "format": 1, "config": CONFIG, "state": {}, **version}, file)
        made_by = version.get("version", "an advnas-ext without a version")
        with pytest.raises(ValueError, match=f"must have format 2, got 1, made by {made_by}; go on with that version"):
            checkpoint.load(file, "search", CONFIG)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"search\.pt: there is no checkpoint here"):
        checkpoint.load(tmp_path / "search.pt", "search", CONFIG)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, monkeypatch, call):
    file, state = saved

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"search\.pt: cannot be written: No space left on device") as error:
        checkpoint.save(file, "search", CONFIG, {"weights": torch.zeros(3)})
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(file.parent) == ["search.pt"]
    assert torch.equal(checkpoint.load(file, "search", CONFIG)["weights"], state["weights"])
