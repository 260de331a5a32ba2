"""The experiment on Penn Treebank: what it has done is taken for what it is."""

import pytest
import torch
from benchmarks.paper import jobs, ptb

from advnas.run.watch import Interrupted
from advnas.spaces.recurrent import RECURRENT
from advnas.tasks.language import LanguageSearchConfig
from advnas.training import Training

TANH, RELU = (RECURRENT.format(torch.full((RECURRENT.num_edges,), RECURRENT.ops.index(op))) for op in ("tanh", "relu"))


@pytest.fixture
def experiment(tmp_path):
    small = {"epochs": "1", "units": "8", "batch_size": "16"}
    return ptb.Experiment(ptb.Settings(data="tiny", retrain=small, out=tmp_path / "runs", results=tmp_path))


def test_another_cell_is_another_training(experiment):
    folders = [experiment.training("rloo-1", arch, 1).folder for arch in (TANH, RELU, TANH)]
    assert folders[0] == folders[2] != folders[1]


def test_equal_time_of_another_reference(tmp_path):
    file, recipe = tmp_path / "epochs.json", LanguageSearchConfig(epochs=5, warmup_epochs=1)
    given = ["advantage", "rloo"], lambda: {"advantage": 1.0, "rloo": 2.0}
    assert jobs.equal_time(file, recipe, "advantage", *given) == {"advantage": 5, "rloo": 3}
    assert jobs.equal_time(file, recipe, "advantage", *given) == {"advantage": 5, "rloo": 3}
    with pytest.raises(ValueError, match="the time is that of advantage, not of rloo; choose another --out"):
        jobs.equal_time(file, recipe, "rloo", *given)


def test_an_lstm_goes_on_whatever_threads_torch_has(experiment, interrupt):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        interrupt(Training, 0, 2)
        with pytest.raises(Interrupted):
            experiment.train_lstm()
        torch.set_num_threads(2)
        experiment.train_lstm()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
