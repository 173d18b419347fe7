"""Several scales and box averaging, against a slow implementation of both."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import DatasetMapperTTA, build_model
from detectron2.structures import Instances
from torch import nn

from d2_deformable.modeling import DetectorWithTTA
from d2_deformable.modeling.tta import AnyAspectMapperTTA


class Scripted(nn.Module):
    """A detector that returns given answers, one (boxes, scores) per call, in pixels of its input.

    It stores the arguments of its calls.
    """

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.calls = list(answers), []

    def predict_raw(self, inputs, boxes=None):
        assert len(inputs) == 1
        self.calls.append((inputs[0]["image"], boxes))
        return [self.answers[len(self.calls) - 1]]


def random_answer(rows=30, classes=3, agnostic=True, size=(60, 80)):
    """Boxes in a few clusters, so that they overlap, and their probabilities."""
    height, width = size
    centre = torch.tensor([width / 4, height / 4]) * torch.randint(1, 4, (rows, 1, 2))
    columns = 1 if agnostic else classes
    centre = centre + 4 * torch.rand(rows, columns, 2)
    extent = torch.tensor([width / 6, height / 6]) * (1 + 0.3 * torch.rand(rows, columns, 2))
    boxes = torch.cat([centre - extent, centre + extent], dim=2).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
    return boxes, torch.randn(rows, classes + 1).mul(2).softmax(dim=1)


def wrap(model, scales=(60,), flip=False, **settings):
    settings = {"score_thresh": 0.05, "nms_thresh": 0.3, "max_detections": 12} | settings
    augment = DatasetMapperTTA(min_sizes=scales, max_size=1000, flip=flip)
    return DetectorWithTTA(model, augment=augment, image_format="BGR", **settings)


def image(height=60, width=80):
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8)}


def detections(output):
    """[(class, score, [x0, y0, x1, y1])] of the only image, in order."""
    (found,) = output
    found = found["instances"]
    return list(
        zip(
            found.pred_classes.tolist(),
            found.scores.tolist(),
            found.pred_boxes.tensor.tolist(),
            strict=True,
        )
    )


# ---- The slow implementation, in loops over single boxes -----------------------------------------


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def candidates(answer, thresh=0.05):
    """[(class, score, box)] above the threshold in one raw prediction."""
    boxes, scores = answer
    found = []
    for row in range(len(scores)):
        for c in range(scores.shape[1] - 1):
            if scores[row, c] > thresh:
                box = boxes[row, c if boxes.shape[1] > 1 else 0]
                found.append((c, float(scores[row, c]), [float(v) for v in box]))
    return found


def merge(union, nms=0.3, most=12, vote_iou=None):
    kept = []
    for c, score, box in sorted(union, key=lambda d: -d[1]):
        if all(c != k[0] or iou(box, k[2]) <= nms for k in kept):
            kept.append((c, score, box))
    kept = kept[:most]
    if vote_iou is None:
        return kept
    averaged = []
    for c, score, box in kept:
        voters = [(s, b) for k, s, b in union if k == c and iou(box, b) >= vote_iou]
        total = sum(s for s, _ in voters)
        averaged.append((c, score, [sum(s * b[i] for s, b in voters) / total for i in range(4)]))
    return averaged


def assert_equal(found, expected):
    assert [d[0] for d in found] == [d[0] for d in expected]
    for (_, score, box), (_, same, other) in zip(found, expected, strict=True):
        assert score == pytest.approx(same, abs=1e-6) and box == pytest.approx(other, abs=1e-3)


def scaled(found, sx, sy):
    return [(c, s, [b[0] * sx, b[1] * sy, b[2] * sx, b[3] * sy]) for c, s, b in found]


def mirrored(found, width):
    return [(c, s, [width - b[2], b[1], width - b[0], b[3]]) for c, s, b in found]


# ---- Merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("vote_iou", [None, 0.5, 0.8])
def test_scales_and_mirrored_images_are_one_union(agnostic, vote_iou):
    sizes = [(60, 80), (60, 80), (90, 120), (90, 120)]
    answers = [random_answer(agnostic=agnostic, size=size) for size in sizes]
    model = Scripted(*answers)
    found = wrap(model, (60, 90), flip=True, vote_iou=vote_iou)([image()])
    assert [tuple(x.shape[1:]) for x, _ in model.calls] == sizes
    assert torch.equal(model.calls[1][0], model.calls[0][0].flip(2))
    union = candidates(answers[0]) + mirrored(candidates(answers[1]), 80)
    large, large_mirrored = candidates(answers[2]), mirrored(candidates(answers[3]), 120)
    union += scaled(large, 2 / 3, 2 / 3) + scaled(large_mirrored, 2 / 3, 2 / 3)
    expected = merge(union, vote_iou=vote_iou)
    assert len(expected) == 12  # there are more: the best over all classes are kept
    assert_equal(detections(found), expected)


def test_the_original_image_has_the_coordinates():
    answer = random_answer(size=(60, 80))
    output = wrap(Scripted(answer))([{**image(30, 40), "height": 120, "width": 400}])
    assert output[0]["instances"].image_size == (120, 400)
    assert_equal(detections(output), merge(scaled(candidates(answer), 5, 2)))


@pytest.mark.parametrize("agnostic", [True, False])
def test_a_pass_takes_the_boxes_of_the_previous_one(agnostic):
    first = random_answer(20, agnostic=agnostic)
    first[1][::4] = torch.tensor([0.01, 0.02, 0.01, 0.96])  # nothing but background
    found = candidates(first)
    boxes, scores = first
    if agnostic:  # each box once, for all classes for which it was found
        rows = [row for row in range(20) if (scores[row, :3] > 0.05).any()]
        given = boxes[rows, 0]
        found_for = [(scores[row, :3] > 0.05).tolist() for row in rows]
    else:
        given = torch.tensor([box for _, _, box in found])
        found_for = [[c == k for k in range(3)] for c, _, _ in found]
    second = random_answer(len(given), agnostic=agnostic)
    model = Scripted(first, second)
    output = wrap(model, iterations=2, vote_iou=0.5)([image()])
    assert model.calls[0][1] is None
    torch.testing.assert_close(model.calls[1][1], [given])
    silent = second[1].clone()
    silent[:, :3] *= torch.tensor(found_for)  # a box does not vote for other classes
    expected = merge(found + candidates((second[0], silent)), vote_iou=0.5)
    assert_equal(detections(output), expected)


def test_a_pass_over_a_mirrored_larger_image_gets_its_coordinates():
    answers = [random_answer(5, 1, size=(60, 80))] * 2 + [random_answer(5, 1, size=(60, 80))] * 2
    model = Scripted(*answers)
    wrap(model, flip=True, iterations=2, score_thresh=0.0)([{**image(), "width": 160}])
    torch.testing.assert_close(model.calls[3][1], [answers[2][0][:, 0]])


def test_nothing_found():
    nothing = torch.zeros(0, 1, 4), torch.zeros(0, 4)
    assert detections(wrap(Scripted(nothing), iterations=2, vote_iou=0.5)([image()])) == []
    boxes, scores = random_answer()
    low = boxes, scores * 0.01
    assert detections(wrap(Scripted(low), iterations=3, vote_iou=0.5)([image()])) == []


def test_numbers_that_are_not_finite_are_left_out():
    boxes, scores = random_answer(3)
    boxes[0, 0, 1] = math.nan
    scores[1, 0] = math.nan
    output = wrap(Scripted((boxes, scores)), vote_iou=0.5)([image()])
    assert_equal(detections(output), merge(candidates((boxes[2:], scores[2:])), vote_iou=0.5))


def test_boxes_without_area_are_left_out():
    boxes = torch.tensor([[[5.0, 5, 5, 20]], [[10, 10, 30, 30]]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    output = wrap(Scripted((boxes, scores)), vote_iou=0.5)([image()])
    assert_equal(detections(output), [(0, 0.8, [10, 10, 30, 30])])


def test_all_detections():
    answer = random_answer(40)
    output = wrap(Scripted(answer), max_detections=-1)([image()])
    assert_equal(detections(output), merge(candidates(answer), most=1000))


# ---- Real networks -------------------------------------------------------------------------------


@pytest.fixture
def detector(small_rcnn_cfg):
    model = build_model(small_rcnn_cfg).eval()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.05)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    return model


def test_no_image_is_reported_and_no_gradients_are_needed(detector, small_rcnn_cfg):
    tester = DetectorWithTTA(small_rcnn_cfg, detector)
    with pytest.raises(ValueError, match="got no image"):
        tester([])
    (found,) = tester([{"image": torch.zeros(3, 64, 64)}])
    assert not found["instances"].scores.requires_grad


@pytest.mark.parametrize("size", [(4, 3000), (3000, 4), (1, 700), (1, 1)])
def test_thin_images(detector, small_rcnn_cfg, size):
    """Detectron2's mapper resizes them to a side of 0 pixels, which fails."""
    small_rcnn_cfg.TEST.AUG.ENABLED, small_rcnn_cfg.TEST.AUG.MIN_SIZES = True, [48, 64]
    small_rcnn_cfg.TEST.AUG.MAX_SIZE = 96
    (found,) = DetectorWithTTA(small_rcnn_cfg, detector)([image(*size)])
    assert found["instances"].image_size == size
    boxes = found["instances"].pred_boxes.tensor
    assert boxes.isfinite().all() and (boxes[:, 2:] <= torch.tensor(size[::-1]) + 1e-3).all()
    for scaled in AnyAspectMapperTTA(small_rcnn_cfg)({**image(*size), "height": size[0],
                                                      "width": size[1]}):  # fmt: skip
        corner = scaled["transforms"].apply_coords(np.array([[size[1], size[0]]], float))
        assert min(scaled["image"].shape) >= 1 and max(scaled["image"].shape) <= 96
        flipped = corner[0, 0] == 0
        assert flipped or tuple(corner[0, ::-1]) == tuple(scaled["image"].shape[1:])


@torch.no_grad()
def test_one_scale_is_ordinary_inference(detector, small_rcnn_cfg):
    small_rcnn_cfg.INPUT.MIN_SIZE_TEST, small_rcnn_cfg.INPUT.MAX_SIZE_TEST = 60, 80
    inputs = [image(60, 72), image(60, 80)]  # of different sizes: padding must not matter
    found = DetectorWithTTA(small_rcnn_cfg, detector)(inputs)
    for x, output in zip(inputs, found, strict=True):
        (expected,) = detector([x])
        assert len(expected["instances"]) > 5
        assert detections([output]) == detections([expected])


@torch.no_grad()
def test_precomputed_proposals_follow_the_image(small_rcnn_cfg, detector):
    cfg = small_rcnn_cfg
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 80
    x = image(60, 80)
    images = detector.preprocess_image([x])
    proposals = detector.proposal_generator(images, detector.backbone(images.tensor), None)[0][0]
    (expected,) = detector([x])
    detector.proposal_generator = None
    (own,) = DetectorWithTTA(cfg, detector)([{**x, "proposals": proposals}])
    assert detections([own]) == detections([expected])
    larger = {**x, "proposals": proposals, "height": 120, "width": 240}
    (scaled_up,) = DetectorWithTTA(cfg, detector)([larger])
    assert_equal(detections([scaled_up]), scaled(detections([expected]), 3, 2))


@torch.no_grad()
def test_a_symmetric_image_has_symmetric_detections(detector, small_rcnn_cfg):
    cfg = small_rcnn_cfg
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = True, (64, 96), True
    cfg.TEST.BOX_AVERAGE.ENABLED = True
    x = image(64, 96)
    model = DetectorWithTTA(cfg, detector)
    found = detections(model([x]))
    other = detections(model([{"image": x["image"].flip(2)}]))
    assert len(found) > 5
    key = lambda d: (d[0], -d[1])  # noqa: E731
    assert_equal(sorted(mirrored(other, 96), key=key), sorted(found, key=key))


def test_settings_come_from_the_keys_of_the_paper(small_rcnn_cfg, detector):
    cfg = small_rcnn_cfg
    cfg.TEST.AUG.ENABLED, cfg.TEST.BOX_AVERAGE.ENABLED = True, True
    cfg.TEST.BOX_AVERAGE.ITERATIONS, cfg.TEST.BOX_AVERAGE.VOTE_IOU = 3, 0.7
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.3, 0.001
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    model = DetectorWithTTA(cfg, detector)
    assert (model.iterations, model.vote_iou, model.max_detections) == (3, 0.7, 300)
    assert (model.nms_thresh, model.score_thresh) == (0.3, 0.001)
    assert model.augment.min_sizes == cfg.TEST.AUG.MIN_SIZES
    cfg.TEST.AUG.ENABLED = cfg.TEST.BOX_AVERAGE.ENABLED = False
    model = DetectorWithTTA(cfg, detector)
    assert (model.iterations, model.vote_iou, model.augment.flip) == (1, None, False)
    assert model.augment.min_sizes == [cfg.INPUT.MIN_SIZE_TEST]


def test_a_model_without_raw_predictions_is_refused(small_rcnn_cfg):
    with pytest.raises(ValueError, match="Linear has no predict_raw, .* GeneralizedRCNN, .* Class"):
        DetectorWithTTA(small_rcnn_cfg, nn.Linear(1, 1))


def test_reads_the_file_where_there_is_no_image(tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 60), (255, 0, 0)).save(tmp_path / "red.png")
    model = Scripted(random_answer())
    (output,) = wrap(model)([{"file_name": str(tmp_path / "red.png")}])
    assert isinstance(output["instances"], Instances)
    assert model.calls[0][0][:, 0, 0].tolist() == [0, 0, 255]  # BGR
