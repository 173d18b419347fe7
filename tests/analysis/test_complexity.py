import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Instances
from torch import nn

from d2_deformable import add_deformable_config
from d2_deformable.analysis import complexity
from d2_deformable.layers import DeformConv2d, DeformRoIAlign, DeformRoIPool, PSRoIPredictor


def test_parameters_and_frozen_affine_pairs():
    model = nn.ModuleDict(
        {
            "backbone": nn.Sequential(
                nn.Conv2d(3, 4, 3, bias=False), FrozenBatchNorm2d(4), nn.BatchNorm2d(4)
            ),
            "conv": DeformConv2d(4, 4, 3),
            "pool": DeformRoIPool(4, 2),
            "align": DeformRoIAlign(4, 2, hidden_channels=5, modulated=True),
            "vote": PSRoIPredictor(4, 3, 2, spatial_scale=1.0, offset_classes=3),
            "relu": nn.ReLU(),
        }
    )
    offsets = [18 * 4 * 9 + 18, 8 * 16 + 8, 24 * 4 + 24]
    offsets += [(16 + 1) * 5 + (5 + 1) * 5 + (5 + 1) * 8, (16 + 1) * 5 + (5 + 1) * 4]
    parts = complexity.parameters_by_part(model)
    assert parts["backbone"] == 108 + 8 + 8
    assert parts["conv"] == 4 * 4 * 9 + 4 + offsets[0]
    assert parts["offsets"] == sum(offsets)
    assert parts["total"] == sum(parts[k] for k in ("backbone", "conv", "pool", "align", "vote"))
    assert "relu" not in parts


def test_images_are_resized_as_for_testing():
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 100
    image = complexity.random_image((30, 40))
    assert image.shape == (30, 40, 3) and image.std() > 50
    x = complexity.image_as_tested(cfg, image)
    assert (x["image"].shape, x["height"], x["width"]) == ((3, 60, 80), 30, 40)
    assert complexity.image_as_tested(cfg, image[:10])["image"].shape == (3, 25, 100)
    cfg.INPUT.MIN_SIZE_TEST = 0
    same = complexity.image_as_tested(cfg, image)["image"]
    assert np.array_equal(same.permute(1, 2, 0), image)


def test_fixed_proposals_are_as_many_as_an_RPN_would_keep():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = "PrecomputedProposals", 30
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 100
    proposals = complexity.image_as_tested(cfg, complexity.random_image((30, 40)))["proposals"]
    assert proposals.image_size == (60, 80) and len(proposals) == 30
    x0, y0, x1, y1 = proposals.proposal_boxes.tensor.T
    assert ((x0 >= 0) & (x0 < x1) & (x1 <= 80) & (y0 >= 0) & (y0 < y1) & (y1 <= 60)).all()
    assert x1.max() > 60


class Clock:
    """Replaces time.perf_counter; modules advance it."""

    def __init__(self):
        self.now = 0.0


class TimedModule(nn.Module):
    def __init__(self, clock, seconds, output):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock, self.seconds, self.output = clock, seconds, output

    def forward(self):
        self.clock.now += self.seconds
        return self.output


class Detector(nn.Module):
    """1 + 2 seconds in the network, 4 in NMS, then 8 outside of any module."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.backbone = TimedModule(clock, 1, {"res5": torch.zeros(1)})
        self.head = TimedModule(clock, 2, ([torch.zeros(1)], None))
        self.nms = TimedModule(clock, 4, (Instances((1, 1)), {}))

    def forward(self, inputs):
        self.backbone(), self.head(), self.nms()
        self.clock.now += 8
        return []


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(complexity.time, "perf_counter", lambda: clock.now)
    return clock


def test_forward_pass_ends_with_the_last_tensors(clock):
    model = Detector(clock)
    assert complexity.Stopwatch(model)([{}]) == (3, 15)
    assert not any(module._forward_hooks for module in model.modules())


def test_models_take_turns(clock):
    calls, models = [], [Detector(clock), Detector(clock)]
    for i, model in enumerate(models):
        model.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
        model.backbone.register_forward_hook(
            lambda module, *_: setattr(module, "seconds", module.seconds + 1)
        )
    first, second = complexity.time_interleaved(models, [[{}], [{}]], repeats=3, warm_up=2)
    assert calls == [0, 1] * 5
    assert first["forward"]["all"] == second["forward"]["all"] == [5, 6, 7]
    assert first["forward"]["median"] == 6
    assert first["whole"]["quartiles"] == [17.5, 18.5]
    (once,) = complexity.time_interleaved(models[:1], [[{}]], repeats=1, warm_up=0)
    assert once["whole"]["quartiles"] == [once["whole"]["median"]] * 2
