"""Soft-NMS equals its definition, and every detector of the package uses it."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import Boxes, pairwise_iou
from torchvision.ops import batched_nms

from d2_deformable.config import read_config
from d2_deformable.modeling import DetectorWithTTA
from d2_deformable.modeling.meta_arch.fcos import FCOS
from d2_deformable.modeling.soft_nms import SoftNMS
from export_networks import noise, small_config, small_network
from yamls import CONFIGS

ENABLED = ["TEST.SOFT_NMS.ENABLED", True]
GAUSSIAN = [*ENABLED, "TEST.SOFT_NMS.METHOD", "gaussian", "TEST.SOFT_NMS.SIGMA", 0.6]
DETECTORS = ["rfcn", "faster_rcnn", "class_aware_rpn", "cascade_rcnn", "mask_rcnn"]


def reference(soft, boxes, scores, classes, iou_thresh, most=-1):
    """The paper's figure 2, one class after the other, with Python's numbers."""
    ious = pairwise_iou(Boxes(boxes.double()), Boxes(boxes.double())).double().tolist()
    selected = []
    for label in set(classes.tolist()):
        left = {i: s for i, s in enumerate(scores.tolist()) if classes[i] == label}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            score = left.pop(best)
            selected.append((-score, best))
            for i in left:
                iou = ious[best][i]
                if soft.method == "gaussian":
                    left[i] *= math.exp(-(iou**2) / soft.sigma)
                elif iou > iou_thresh:
                    left[i] *= 1 - iou
    selected = [(i, -s) for s, i in sorted(selected) if -s > soft.min_score]
    return selected if most < 0 else selected[:most]


def detections(count, labels=3):
    corners = torch.rand(count, 2) * 50
    boxes = torch.cat([corners, corners + 10 + torch.rand(count, 2) * 30], dim=1)
    return boxes, torch.rand(count), torch.randint(labels, (count,))


def check(soft, boxes, scores, classes, iou_thresh, most=-1):
    keep, new = soft(boxes, scores, classes, iou_thresh, most)
    expected = reference(soft, boxes, scores, classes, iou_thresh, most)
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(
        new, torch.tensor([s for _, s in expected], dtype=new.dtype), rtol=1e-4, atol=1e-6
    )
    return keep


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [-1, 0, 7, 1000])
@pytest.mark.parametrize(
    "soft", [SoftNMS("linear"), SoftNMS("gaussian"), SoftNMS("gaussian", 0.1, 0.2)], ids=repr
)
def test_equals_the_definition(soft, most, seed):
    torch.manual_seed(seed)
    check(soft, *detections(60), 0.3, most)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_ties(method):
    """Equal boxes and scores: the first in the input comes first."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [30, 0, 40, 10], [0, 0, 10, 10], [31, 0, 41, 10]])
    scores, classes = torch.full((4,), 0.5), torch.zeros(4, dtype=torch.int64)
    keep = check(SoftNMS(method, min_score=0.0), boxes, scores, classes, 0.3)
    assert keep.tolist() == ([0, 1, 3] if method == "linear" else [0, 1, 3, 2])
    separate = torch.arange(4)
    keep, new = SoftNMS(method)(boxes, scores, separate, 0.3)
    assert keep.tolist() == [0, 1, 2, 3] and torch.equal(new, scores)


def test_an_iou_equal_to_the_threshold_does_not_count():
    """As in ordinary NMS."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores, classes = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert SoftNMS()(boxes, scores, classes, 0.5)[1].tolist() == scores.tolist()
    assert SoftNMS()(boxes, scores, classes, 0.49)[1][1] == pytest.approx(0.4)


def test_empty_and_degenerate_boxes():
    for method in ("linear", "gaussian"):
        keep, new = SoftNMS(method)(*detections(0), 0.5, 100)
        assert keep.shape == new.shape == (0,) and keep.dtype == torch.int64
        # Boxes without area overlap nothing.
        boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 0]])
        scores, classes = torch.tensor([0.3, 0.9, 0.6]), torch.zeros(3, dtype=torch.int64)
        keep, new = SoftNMS(method)(boxes, scores, classes, 0.5)
        assert keep.tolist() == [1, 2, 0] and torch.equal(new, scores[keep])


@pytest.mark.parametrize("seed", range(3))
def test_extreme_settings_are_ordinary_nms_and_no_nms(seed):
    torch.manual_seed(seed)
    boxes, scores, classes = detections(80)

    def kept(soft, iou_thresh, scores=scores):
        keep, new = soft(boxes, scores, classes, iou_thresh)
        torch.testing.assert_close(new, scores[keep])
        return keep.tolist()

    def nms(threshold, scores=scores):
        return batched_nms(boxes, scores, classes, threshold).tolist()

    assert kept(SoftNMS("linear"), 1.0) == nms(1.0)
    assert kept(SoftNMS("gaussian", sigma=1e9), 0.5) == nms(1.0)
    assert kept(SoftNMS("gaussian", sigma=1e-9, min_score=0.0), 0.5) == nms(0.0)
    # Any lowered score is at most 0.7, and any other is above it.
    high = 0.75 + scores / 4
    assert kept(SoftNMS("linear", min_score=0.7), 0.3, high) == nms(0.3, high)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("settings", [ENABLED, GAUSSIAN], ids=["linear", "gaussian"])
def test_every_detector(name, settings):
    """The detections are soft-NMS of those before NMS."""
    if name == "cascade_rcnn":
        settings = [*settings, "MODEL.ROI_HEADS.NAME", "DeformCascadeROIHeads"]
    plain = small_network(name, *settings[2:], "TEST.DETECTIONS_PER_IMAGE", -1)
    model = small_network(name, *settings, "TEST.DETECTIONS_PER_IMAGE", -1)
    for module in plain.modules():
        if hasattr(module, "test_nms_thresh"):
            module.test_nms_thresh = 1.0
    if name == "class_aware_rpn":
        model.test_topk_candidates = plain.test_topk_candidates = 30
    image = {"image": noise(96, 128)}
    with torch.no_grad():
        before, found = (m([image])[0]["instances"] for m in (plain, model))
    thresh = small_config(name).MODEL.ROI_HEADS.NMS_THRESH_TEST
    soft = SoftNMS.from_config(small_config(name, *settings))
    expected = reference(soft, before.pred_boxes.tensor, before.scores, before.pred_classes, thresh)
    assert len(found) == len(expected) > 50
    rows, scores = zip(*expected, strict=True)
    torch.testing.assert_close(found.scores, torch.tensor(scores), rtol=1e-3, atol=1e-6)
    assert (found.scores < before.scores[list(rows)] - 1e-4).any()
    assert found.has("pred_masks") == (name == "mask_rcnn")


@torch.no_grad()
def unclipped(model, image):
    """Detections of a dense detector, whose boxes are clipped to the image after NMS only."""
    found, inference = [], model.inference_single_image

    def record(*args):
        result = inference(*args)
        found.append(deepcopy(result))  # it is clipped in place
        return result

    model.inference_single_image = record
    model([{"image": image}])
    return found[0]


@pytest.mark.parametrize("settings", [ENABLED, GAUSSIAN], ids=["linear", "gaussian"])
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_dense_detectors(name, settings):
    if name == "fcos" and FCOS is None:
        pytest.skip("Detectron2 0.5 has no FCOS")
    small = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18]
    small += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
    small += ["MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CLASSES", 3]
    small += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 40]
    cfg = read_config(CONFIGS / f"COCO-Detection/{name}_R_50_FPN_1x.yaml", small)
    cfg.merge_from_list(["MODEL.RETINANET.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", 999])
    plain = build_model(cfg).eval()
    if name == "fcos":
        plain.head.bbox_pred.bias.data.fill_(2.0)  # boxes of 4 cells, which overlap
    else:
        cfg.MODEL.META_ARCHITECTURE = "SoftNMSRetinaNet"
    cfg.merge_from_list([*settings, "MODEL.RETINANET.NMS_THRESH_TEST", 0.4])
    cfg.TEST.DETECTIONS_PER_IMAGE = 50
    model = build_model(cfg).eval()
    model.load_state_dict(plain.state_dict())
    image = noise(96, 128)
    before, found = (unclipped(m, image) for m in (plain, model))
    boxes, soft = before.pred_boxes.tensor, SoftNMS.from_config(cfg)
    expected = reference(soft, boxes, before.scores, before.pred_classes, 0.4, most=50)
    assert len(found) == len(expected) == 50 < len(before)
    rows, scores = zip(*expected, strict=True)
    torch.testing.assert_close(found.scores, torch.tensor(scores), rtol=1e-3, atol=1e-6)
    assert rows != tuple(range(50))  # the best ones before NMS


@pytest.mark.parametrize("name", DETECTORS)
def test_off_by_default_and_training_is_not_affected(name):
    assert not any(getattr(m, "soft_nms", None) for m in small_network(name).modules())


def test_multi_scale_tests():
    """One scale without NMS of its own: the same detections as in ordinary inference."""
    cfg = small_config("rfcn", *GAUSSIAN, "INPUT.MIN_SIZE_TEST", 96)
    model = small_network("rfcn", *GAUSSIAN)
    image = {"image": noise(96, 128).byte()}
    with torch.no_grad():
        (merged,), (found,) = DetectorWithTTA(cfg, model)([image]), model([image])
        hard = DetectorWithTTA(small_config("rfcn", "INPUT.MIN_SIZE_TEST", 96), model)([image])
    merged, found, hard = (x["instances"] for x in (merged, found, hard[0]))
    torch.testing.assert_close(merged.scores, found.scores)
    torch.testing.assert_close(merged.pred_boxes.tensor, found.pred_boxes.tensor)
    assert len(hard) < len(merged)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("METHOD", "hard", "METHOD is 'hard'; expected linear or gaussian"),
        ("SIGMA", 0.0, "SIGMA is 0.0; expected a number above 0"),
        ("MIN_SCORE", -1.0, "MIN_SCORE is -1.0; expected 0 or a higher"),
    ],
)
def test_bad_values(key, value, message):
    with pytest.raises(ValueError, match=f"TEST.SOFT_NMS.{message}"):
        build_model(small_config("rfcn", *ENABLED, f"TEST.SOFT_NMS.{key}", value))


def test_detect_equals_detectron2_without_decay():
    torch.manual_seed(0)
    boxes, scores = [detections(50)[0]], [torch.rand(50, 4).softmax(1)]
    scores[0][3] = torch.nan
    soft = replace(SoftNMS(), min_score=0.0)
    (ours,) = soft.detect(boxes, scores, [(60, 70)], 0.2, 1.0, 30)
    ((theirs,), _) = fast_rcnn.fast_rcnn_inference(boxes, scores, [(60, 70)], 0.2, 1.0, 30)
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
