"""The moving average of the weights, on a training of one number."""

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import nn

from d2_deformable.checkpoint import SafeCheckpointer
from d2_deformable.engine.ema import WeightAverage


class Loop(TrainerBase):
    """Counts its steps in a weight and a running statistic."""

    def __init__(self, folder, decay):
        super().__init__()
        self.model = nn.BatchNorm1d(1)
        nn.init.zeros_(self.model.weight)
        self.average = WeightAverage(self.model, decay, folder)
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        self.register_hooks([self.average, PeriodicCheckpointer(self.checkpointer, 3)])

    @torch.no_grad()
    def run_step(self):
        self.model.weight += 1
        self.model.running_mean += 2


def expected(decay, steps):
    """The average of 1, 2, ... steps."""
    average = 1.0
    for n in range(1, steps):
        keep = min(decay, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * (n + 1)
    return average


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_average_beside_the_last_weights(tmp_path, decay):
    loop = Loop(tmp_path, decay)
    loop.train(0, 20)
    average = torch.load(tmp_path / "model_ema.pth", weights_only=True)["model"]
    assert average["weight"].item() == pytest.approx(expected(decay, 20))
    assert average["running_mean"].item() == pytest.approx(2 * expected(decay, 20))
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert final["weight"] == 20 and final.keys() == average.keys()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert loop.average.model.weight.item() == average["weight"].item()


def test_a_resumed_training_goes_on_with_the_average(tmp_path):
    Loop(tmp_path, 0.9).train(0, 8)
    loop = Loop(tmp_path, 0.9)
    loop.checkpointer.resume_or_load("", resume=True)
    loop.train(loop.iter + 1, 20)
    assert loop.average.model.weight.item() == pytest.approx(expected(0.9, 20))


def test_an_average_that_is_not_finite_is_not_written(tmp_path):
    loop = Loop(tmp_path, 0.9)
    nn.init.constant_(loop.model.weight, float("nan"))
    loop.train(0, 2)
    assert not (tmp_path / "model_ema.pth").exists()


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_a_decay_without_an_average_is_refused(decay, tmp_path):
    with pytest.raises(ValueError, match=f"MODEL_EMA.DECAY is {decay}; expected"):
        WeightAverage(nn.BatchNorm1d(1), decay, tmp_path)
