import pytest
import torch
from torch import nn

from d2_deformable.engine.checkpointer import TrainingCheckpointer
from d2_deformable.engine.non_finite import LastStep, first_non_finite


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.head = nn.Linear(2, 1)

    def forward(self, batch):
        x = self.head(self.body(batch))
        return {"loss_a": x.sum() * 0 + 1, "loss_b": x.sum()}


def test_a_finite_step_has_no_fault():
    assert first_non_finite(Model(), torch.ones(1, 2)) == ""


def test_the_first_module_is_named():
    model = Model()
    with torch.no_grad():
        model.body[0].weight[0, 0] = float("inf")
    found = first_non_finite(model, torch.ones(1, 2))
    assert "output is body.0, whose weights are not finite" in found
    found = first_non_finite(Model(), torch.full((1, 2), float("nan")))
    assert found.endswith("output is body.0, whose input is not finite")
    model = Model()
    model.head.forward = lambda x: x / 0
    assert first_non_finite(model, torch.ones(1, 2)).endswith("output is head")
    assert not model._forward_hooks and not model.head._forward_hooks


def test_diagnosis_names_the_loss():
    model = Model()
    last = LastStep(model)
    model(torch.full((1, 2), float("nan")))
    text = last.diagnose(model)
    assert text.startswith("loss_a is nan; the first module with such an output is body.0")
    model.eval()
    model(torch.ones(1, 2))
    assert last.batch.isnan().all(), "a batch of an evaluation replaces that of the step"


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = Model()
    checkpointer = TrainingCheckpointer(model, str(tmp_path))
    checkpointer.save("good")
    model.head.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="head.bias is NaN or infinite, so bad.pth is not"):
        checkpointer.save("bad")
    assert checkpointer.get_checkpoint_file().endswith("good.pth")
    assert not (tmp_path / "bad.pth").exists()
