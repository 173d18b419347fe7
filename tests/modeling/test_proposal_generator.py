"""LegacyRPN, where it differs from Detectron2's RPN."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import ImageList

from yamls import load


@pytest.fixture
def rpn():
    def build(name):
        cfg = load()
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
        cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.OFFSET = [[16]], 0.5
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
        return build_proposal_generator(cfg, {"res4": ShapeSpec(channels=4, stride=16)})

    return build


def proposals(rpn, deltas, height=40, width=33, cells=(3, 3)):
    """Boxes of an image with one 16 x 16 anchor per cell; the first cells score best."""
    scores = -torch.arange(cells[0] * cells[1], dtype=torch.float32)[None]
    deltas = torch.tensor(deltas, dtype=torch.float32).expand(1, cells[0] * cells[1], 4)
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    anchors = rpn.anchor_generator([torch.zeros(1, 4, *cells)])
    (result,) = rpn.predict_proposals(anchors, [scores], [deltas], images.image_sizes)
    return result.proposal_boxes.tensor


def test_only_whole_cells_of_the_image_have_anchors(rpn):
    """40 x 33 pixels are 2 x 2 whole cells, although the map has 3 x 3."""
    whole = torch.tensor([[0, 0, 16, 16], [16, 0, 32, 16], [0, 16, 16, 32], [16, 16, 32, 32.0]])
    assert torch.equal(proposals(rpn("LegacyRPN"), [0, 0, 0, 0]), whole)
    assert len(proposals(rpn("RPN"), [0, 0, 0, 0])) == 9


def test_a_box_outside_the_image_is_clipped_to_a_pixel(rpn):
    """Boxes move three widths to the right or left; a column of pixels is left per row of cells."""
    right = proposals(rpn("LegacyRPN"), [3, 0, 0, 0])
    assert torch.equal(right, torch.tensor([[32, 0, 33, 16], [32, 16, 33, 32.0]]))
    left = proposals(rpn("LegacyRPN"), [-3, 0, 0, 0])
    assert torch.equal(left, torch.tensor([[0, 0, 1, 16], [0, 16, 1, 32.0]]))
    assert len(proposals(rpn("RPN"), [3, 0, 0, 0])) == 0


def test_a_box_inside_stays(rpn):
    found = proposals(rpn("LegacyRPN"), [0.25, 0, -0.5, 0])
    half = 8 * math.exp(-0.5)
    torch.testing.assert_close(found[0], torch.tensor([12 - half, 0, 12 + half, 16]))


def test_the_best_are_counted_among_those_of_the_image(rpn):
    """Border cells do not count towards PRE_NMS_TOPK."""
    model = rpn("LegacyRPN")
    model.pre_nms_topk = {True: 3, False: 3}
    assert len(proposals(model.eval(), [0, 0, 0, 0])) == 3
    assert len(proposals(model.train(), [0, 0, 0, 0])) == 3
