"""SOLVER.AMP on the CPU."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from d2_deformable.data import register_custom_datasets
from d2_deformable.engine import Trainer
from yamls import CONFIGS, load


def losses(tmp_path, *overrides):
    """Train the small deformable DeepLab for 3 steps: losses, output types of layers, trainer."""
    cfg = load(CONFIGS / "quick/warped_shapes_deeplab_R_18_dconv3.yaml")
    settings = {
        "OUTPUT_DIR": str(tmp_path),
        "SEED": 1,
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 2,
        "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": 4,
        "DATALOADER.NUM_WORKERS": 0,
    }
    cfg.merge_from_list([x for pair in settings.items() for x in pair])
    cfg.merge_from_list(overrides)
    register_custom_datasets(cfg)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    types = set()
    for module in trainer.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: types.add(output.dtype))
    found = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(3):
            trainer._trainer.iter = trainer.iter
            trainer.run_step()
            found.append(trainer.storage.latest()["total_loss"][0])
    return found, types, trainer


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


def test_bfloat16_follows_float32(tmp_path, data):
    exact, types, _ = losses(tmp_path)
    assert types == {torch.float32}
    half, types, trainer = losses(tmp_path, "SOLVER.AMP.ENABLED", True)
    assert torch.bfloat16 in types
    assert half == pytest.approx(exact, rel=0.02) and half != exact
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
