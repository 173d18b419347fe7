"""LegacyRPN, where it differs from Detectron2's RPN."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances

from yamls import load


@pytest.fixture
def rpn():
    def build(name, levels=1):
        cfg = load()
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
        strides = {f"res{4 + i}": 16 * 2**i for i in range(levels)}
        cfg.MODEL.RPN.IN_FEATURES = [*strides]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[stride] for stride in strides.values()]
        cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
        shapes = {name: ShapeSpec(channels=4, stride=s) for name, s in strides.items()}
        return build_proposal_generator(cfg, shapes)

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


def test_all_levels_compete(rpn):
    """One of three proposals is kept per level by Detectron2, and of all levels as released."""
    found = {}
    for name in ("RPN", "LegacyRPN"):
        model = rpn(name, levels=2).eval()
        model.pre_nms_topk = {False: 1}
        anchors = model.anchor_generator([torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 1, 1)])
        scores, deltas = [torch.zeros(1, 4), torch.ones(1, 1)], [torch.zeros(1, 4, 4)] * 2
        deltas[1] = deltas[1][:, :1]
        (result,) = model.predict_proposals(anchors, scores, deltas, [(32, 32)])
        found[name] = result.proposal_boxes.tensor.tolist()
    assert found["LegacyRPN"] == [[0, 0, 32, 32]] and len(found["RPN"]) == 2


def test_anchors_outside_do_not_compete_for_an_object(rpn):
    """The object overlaps the anchors of two cells, of which the better one crosses the border."""
    labels = {}
    for name in ("RPN", "LegacyRPN"):
        model = rpn(name)
        model.anchor_boundary_thresh = 0
        anchors = model.anchor_generator([torch.zeros(1, 4, 1, 3)])
        gt = Instances((16, 40), gt_boxes=Boxes(torch.tensor([[28.0, 0, 40, 16]])))
        (found,), (boxes,) = model.label_and_sample_anchors(anchors, [gt])
        labels[name] = found.tolist()
        assert name == "RPN" or boxes[1].tolist() == [28, 0, 40, 16]
    # Detectron2 also leaves out all that end with the image, here by their height.
    assert labels == {"RPN": [-1, -1, -1], "LegacyRPN": [0, 1, -1]}


def test_an_object_that_no_anchor_inside_overlaps_has_none(rpn):
    model = rpn("LegacyRPN")
    model.anchor_boundary_thresh = 0
    anchors = model.anchor_generator([torch.zeros(1, 4, 1, 3)])
    boxes = Boxes(torch.tensor([[34.0, 0, 40, 16]]))
    (labels,), _ = model.label_and_sample_anchors(anchors, [Instances((16, 40), gt_boxes=boxes)])
    assert labels.tolist() == [0, 0, -1]
