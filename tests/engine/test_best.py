"""model_best.pth and early stopping, on a training of one number."""

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer

from d2_deformable.checkpoint import SafeCheckpointer
from d2_deformable.engine.best import BestCheckpoint, EarlyStop


class Loop(TrainerBase):
    """Counts its steps in `model.bias`, and evaluates to `results`, one after the other."""

    def __init__(self, folder, results, metric="bbox/AP", patience=0):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.bias)
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        results = iter(results)

        def evaluate():
            return {"bbox": {"AP": (result := next(results)), "AP50": result}}

        self.register_hooks(
            [
                PeriodicCheckpointer(self.checkpointer, 100),
                EvalHook(2, evaluate),
                BestCheckpoint(self.checkpointer, 2, metric, patience),
            ]
        )

    @torch.no_grad()
    def run_step(self):
        self.model.bias += 1


def saved(folder, name="model_best"):
    file = torch.load(folder / f"{name}.pth", weights_only=True)
    return file["iteration"], file["model"]["bias"].item()


@pytest.mark.parametrize(
    "results, best",
    [([1.0, 3.0, 2.0], 3), ([float("nan"), 0.0, 0.0], 3), ([1.0, 2.0, 3.0], 5)],
)
def test_the_best_is_kept(tmp_path, results, best):
    Loop(tmp_path, results).train(0, 6)
    assert saved(tmp_path) == (best, best + 1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert saved(tmp_path, "model_final") == (5, 6)


def test_the_best_value_survives_a_restart(tmp_path):
    Loop(tmp_path, [3.0, 2.0]).train(0, 4)
    loop = Loop(tmp_path, [2.5])
    loop.checkpointer.resume_or_load("", resume=True)
    loop.train(loop.iter + 1, 6)
    assert saved(tmp_path) == (1, 2)


def test_the_best_value_of_another_metric_is_forgotten(tmp_path, caplog):
    Loop(tmp_path, [3.0, 2.0]).train(0, 4)
    loop = Loop(tmp_path, [2.5], metric="bbox/AP50")
    loop.checkpointer.resume_or_load("", resume=True)
    loop.train(loop.iter + 1, 6)
    assert "TEST.BEST_METRIC was bbox/AP and is now bbox/AP50" in caplog.text
    assert saved(tmp_path) == (5, 6)


def test_stops_when_patience_is_over(tmp_path):
    loop = Loop(tmp_path, [1.0, 2.0, 2.0, 1.0], patience=2)
    with pytest.raises(EarlyStop):
        loop.train(0, 20)
    assert loop.iter == 7 and saved(tmp_path) == (3, 4)


def test_an_unknown_metric_names_those_that_exist(tmp_path, caplog):
    Loop(tmp_path, [1.0], metric="voc/AP").train(0, 2)
    assert "voc/AP is not among the results" in caplog.text
    assert "choose one of bbox/AP" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()
