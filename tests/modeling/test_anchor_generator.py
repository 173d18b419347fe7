import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator


def anchors(cfg, stride=16, name="RoundedAnchorGenerator", grid=(2, 3)):
    cfg.MODEL.ANCHOR_GENERATOR.NAME = name
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=stride)])
    (boxes,) = generator([torch.zeros(1, 1, *grid)])
    return boxes.tensor.view(*grid, -1, 4)


# Copied from the comment in rpn/generate_anchor.py, where the last pixel belongs to the box.
RELEASED = [
    [[-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199]],
    [[-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263]],
    [[-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359]],
]


def test_are_the_released_ones(cfg):
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[128, 256, 512]]
    found = anchors(cfg)
    first = torch.tensor(RELEASED).transpose(0, 1).reshape(9, 4) + torch.tensor([0, 0, 1, 1])
    assert found[0, 0].equal(first.float())
    assert found[1, 2].equal(first + torch.tensor([32.0, 16, 32, 16]))


@pytest.mark.parametrize("stride, sides", [(16, (92, 48)), (32, (90, 44)), (4, (96, 48))])
def test_are_rounded_at_the_size_of_their_stride(cfg, stride, sides):
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64]]
    x0, y0, x1, y1 = anchors(cfg, stride)[0, 0, 0].tolist()
    assert (x1 - x0, y1 - y0) == sides


def test_differ_from_detectron2s_by_their_rounding_alone(cfg):
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64, 128]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    ours, theirs = anchors(cfg), anchors(cfg, name="DefaultAnchorGenerator")
    assert ours.shape == theirs.shape
    sides = (ours[..., 2:] - ours[..., :2]) / (theirs[..., 2:] - theirs[..., :2])
    assert 0.01 < (sides - 1).abs().max() < 0.07
    torch.testing.assert_close(ours[..., :2] + ours[..., 2:], theirs[..., :2] + theirs[..., 2:])
