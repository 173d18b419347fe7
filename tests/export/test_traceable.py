"""Each replacement of a Detectron2 function gives the same results as the original."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.modeling import anchor_generator, poolers
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes

from d2_deformable.export import traceable
from d2_deformable.modeling.meta_arch.class_aware_rpn import top_indices

SIZE = (60, 100)


@pytest.fixture(params=[False, True], ids=["traced", "exported"])
def exporting(request, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: request.param)


def random_boxes(*shape):
    """Boxes, of which some are empty and some reach beyond an image of SIZE."""
    corner = torch.rand(*shape, 2) * 120 - 10
    return torch.cat([corner, corner + torch.rand(*shape, 2) * 50 - 2], dim=-1)


def add_non_finite(*tensors):
    """Overwrite a few values by inf and nan."""
    for i, x in enumerate(tensors):
        x.view(-1)[3 + 7 * i] = torch.inf
        x.view(-1)[11 + 5 * i] = torch.nan


@pytest.mark.parametrize("finite", [True, False])
def test_proposals(exporting, finite):
    boxes, logits = [random_boxes(1, n) for n in (300, 40)], [torch.randn(1, n) for n in (300, 40)]
    if not finite:
        add_non_finite(*boxes)
    arguments = (boxes, logits, [SIZE], 0.7, 100, 50, 1.0, False)
    (expected,) = find_top_rpn_proposals(*arguments)
    with traceable.traceable():
        (found,) = traceable._top_proposals(*arguments)
    assert len(expected) == 50
    assert torch.equal(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
    assert torch.equal(found.objectness_logits, expected.objectness_logits)


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("classes_of_boxes", [1, 5])
def test_detections(exporting, finite, classes_of_boxes):
    boxes = random_boxes(80, classes_of_boxes).flatten(1)
    probs = torch.randn(80, 6).softmax(1)
    if not finite:
        add_non_finite(boxes, probs)
    arguments = (boxes, probs, SIZE, 0.1, 0.5, 60)
    expected, expected_rows = fast_rcnn_inference_single_image(*arguments)
    with traceable.traceable():
        found, rows = traceable._detections(*arguments)
    assert len(expected) == 60
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    if finite:  # otherwise Detectron2's rows count only the finite boxes
        assert torch.equal(rows, expected_rows)


@pytest.mark.parametrize("boxes", [0, 1, 30, 1100])  # above 1000 torchvision runs NMS per class
def test_nms(exporting, boxes):
    given = random_boxes(boxes).clamp(min=0), torch.rand(boxes), torch.randint(0, 3, (boxes,)), 0.5
    expected = torchvision.ops.batched_nms(*given)
    assert torch.equal(traceable.batched_nms(*given), expected)


@pytest.mark.parametrize("k", [10, 50, 60])
def test_top_indices(k):
    scores = torch.rand(50)
    assert torch.equal(traceable._top_indices(scores, k), top_indices(scores, k))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors(offset):
    with torch.device("cpu"):
        generator = anchor_generator.DefaultAnchorGenerator(
            sizes=[[32]], aspect_ratios=[[0.5, 1]], strides=[16], offset=offset
        )
    maps = [torch.zeros(1, 1, 5, 7)]
    (expected,) = generator(maps)
    with traceable.traceable():
        (found,) = generator(maps)
    assert torch.equal(found.tensor, expected.tensor)


def test_boxes():
    boxes = [Boxes(random_boxes(n)) for n in (5, 0, 3)]
    expected = poolers.convert_boxes_to_pooler_format(boxes)
    assert torch.equal(traceable._rois(boxes), expected)
    clipped = [b.clone() for b in boxes]
    for b in boxes:
        b.clip(SIZE)
    with traceable.traceable():
        for b in clipped:
            b.clip(SIZE)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(clipped, boxes, strict=True))


@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
@pytest.mark.parametrize("arguments", [(3, 2, 1), (3, 2), (2,), ((3, 2), (2, 1), (1, 0))])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pooling(exporting, size, arguments, ceil_mode):
    x = torch.randn(2, 3, *size)
    expected = F.max_pool2d(x, *arguments, ceil_mode=ceil_mode)
    assert torch.equal(traceable._max_pool2d(x, *arguments, ceil_mode=ceil_mode), expected)


def test_max_pooling_of_every_other_pixel(exporting):
    """The last level of a feature pyramid is computed like this."""
    x = torch.randn(2, 3, 5, 8)
    assert torch.equal(traceable._max_pool2d(x, 1, 2, 0), x[..., ::2, ::2])
