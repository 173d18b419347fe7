"""Trainer.test_with_TTA: the test-time augmentation it selects, and the images it gets."""

import pytest
from detectron2.config import get_cfg
from torch import nn

from d2_deformable import add_deformable_config
from d2_deformable.engine import Trainer, trainer
from d2_deformable.modeling import DetectorWithTTA


class Detector(nn.Module):
    def predict_raw(self, inputs, boxes=None):
        raise NotImplementedError


@pytest.fixture
def cfg(monkeypatch):
    """A config; Trainer.test is replaced by a function that returns the config and model it got."""
    monkeypatch.setattr(Trainer, "test", lambda cfg, model, evaluators: {"got": (cfg, model)})
    monkeypatch.setattr(Trainer, "build_evaluator", lambda *_: None)
    monkeypatch.setattr(trainer, "GeneralizedRCNNWithTTA", lambda *_, **__: "Detectron2's")
    cfg = get_cfg()
    add_deformable_config(cfg)
    return cfg


def test_scales_are_resized_from_the_original_image(cfg):
    cfg.TEST.BOX_AVERAGE.ENABLED = True
    cfg.freeze()
    given, tester = Trainer.test_with_TTA(cfg, Detector())["got_TTA"]
    assert isinstance(tester, DetectorWithTTA)
    assert given.INPUT.MIN_SIZE_TEST == 0 and cfg.INPUT.MIN_SIZE_TEST == 800
    assert tester.augment.min_sizes == [800]


def test_detectron2s_serves_masks_and_other_networks(cfg):
    assert Trainer.test_with_TTA(cfg, nn.Identity())["got_TTA"] == (cfg, "Detectron2's")
    cfg.MODEL.MASK_ON = True
    assert Trainer.test_with_TTA(cfg, Detector())["got_TTA"] == (cfg, "Detectron2's")


def test_box_average_of_another_network_is_refused(cfg):
    cfg.TEST.BOX_AVERAGE.ENABLED = True
    with pytest.raises(ValueError, match="Identity has no predict_raw"):
        Trainer.test_with_TTA(cfg, nn.Identity())
