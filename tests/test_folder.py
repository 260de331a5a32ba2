"""What a run folder holds comes back as it was; where networks run."""

import pytest
import torch

from advnas.device import Placement
from advnas.run.folder import Logits, RunFolder
from advnas.tasks.base import Score, Scores
from advnas.tasks.image import ImageSearchConfig
from advnas.tasks.language import LanguageSearchConfig

ROWS = [
    {"epoch": 1, "seconds": 0.25, "train_loss": 1e-7, "arch": "|a~0|"},
    {"epoch": 2, "seconds": 3.0, "train_loss": 2.5, "arch": "b"},
]


def test_history_and_logits_come_back(tmp_path):
    folder = RunFolder.new(tmp_path / "run", "unused")
    folder.write_history(ROWS)
    assert folder.history() == ROWS
    logits = Logits(["1<-0", "2<-0"], ["none", "skip", "conv"], [[[0.0, 1.5, -2.0], [1e-9, 0.1, 0.2]]] * 3)
    folder.write_logits(logits)
    assert folder.logits() == logits


@pytest.mark.parametrize("config", [ImageSearchConfig(channels=3), LanguageSearchConfig(units=7)])
def test_settings_come_back_as_those_of_their_task(tmp_path, config):
    folder = RunFolder(tmp_path)
    folder.write_config(config, {})
    assert folder.config() == config


def test_a_folder_of_another_time_has_the_settings_of_images(tmp_path):
    (tmp_path / "config.yaml").write_text("channels: 4\njudge_cells: 2\n")
    assert RunFolder(tmp_path).config() == ImageSearchConfig(channels=4, halving_cells=2)


def test_a_file_that_is_no_checkpoint_of_a_search(tmp_path):
    file = tmp_path / "checkpoint" / "retrain.pt"
    file.parent.mkdir()
    file.touch()
    with pytest.raises(
        ValueError, match=r"retrain\.pt: must be the run folder of a search or the checkpoint/search\.pt"
    ):
        RunFolder.of(file)
    (tmp_path / "checkpoint" / "search.pt").touch()
    assert RunFolder.of(tmp_path / "checkpoint" / "search.pt").path == tmp_path == RunFolder.of(tmp_path).path


@pytest.mark.parametrize(
    "device, amp, message",
    [
        ("gpu", None, "device: must be cpu, cuda or cuda:N, got 'gpu'"),
        ("cuda:x", None, "device: must be cpu, cuda or cuda:N, got 'cuda:x'"),
        ("cpu:1", None, "device: must be cpu, cuda or cuda:N, got 'cpu:1'"),
        ("cpu:", None, "device: must be cpu, cuda or cuda:N, got 'cpu:'"),
        ("cuda:", None, "device: must be cpu, cuda or cuda:N, got 'cuda:'"),
        ("cuda:99", None, "device: cuda:99 is not there, torch sees"),
        ("cpu", "bfloat16", "amp: bfloat16 needs a GPU, got the device cpu; leave --amp out"),
    ],
)
def test_devices_that_are_none(device, amp, message):
    with pytest.raises(ValueError, match=message):
        Placement.of(device, amp)


def test_the_host_in_float32():
    placement = Placement.of("cpu")
    assert placement == Placement()
    with placement.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not placement.scaler().is_enabled()
    gates = torch.ones(3, requires_grad=True)
    placement.backward((2 * gates).sum(), [gates])
    assert gates.grad.tolist() == [2, 2, 2]


def test_gradients_of_a_scaled_loss_come_back_unscaled():
    gates = torch.ones(3, requires_grad=True)
    Placement(torch.device("cuda"), torch.float16).backward((2 * gates).sum(), [gates])
    assert gates.grad.tolist() == [2, 2, 2]


def test_scores_are_means_over_items():
    scores = Scores()
    scores.add(Score(torch.tensor(2.0, requires_grad=True), 3, {"accuracy": torch.tensor(2)}))
    scores.add(Score(torch.tensor(4.0), 1, {"accuracy": torch.tensor(1)}))
    assert scores.means() == {"loss": 2.5, "accuracy": 0.75}
    again = Scores()
    again.load_state_dict(scores.state_dict())
    again.add(Score(torch.tensor(6.5), 4, {"accuracy": torch.tensor(0)}))
    assert again.means() == {"loss": 4.5, "accuracy": 3 / 8}
