"""ClassAwareRPN against slow and obvious implementations."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2_deformable.modeling import ClassAwareRPNHead

K = 3
STRIDES = [16, 32]
SIZES = [[24, 40], [56, 64]]
RATIOS = [0.25, 1.0]  # their square roots are exact
WEIGHTS = (2.0, 2.0, 0.5, 0.5)


@BACKBONE_REGISTRY.register()
class TwoLevels(Backbone):
    """A backbone whose positions each see a square of the image as large as their stride."""

    size_divisibility = 32

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 6, s, stride=s) for s in STRIDES)

    def forward(self, x):
        return {f"p{i}": conv(x) for i, conv in enumerate(self.convs)}

    def output_shape(self):
        return {f"p{i}": ShapeSpec(channels=6, stride=s) for i, s in enumerate(STRIDES)}


@pytest.fixture
def toy(cfg):
    """No key has its default value, so that every key matters. The sample exceeds all anchors."""
    cfg.MODEL.META_ARCHITECTURE = "ClassAwareRPN"
    cfg.MODEL.BACKBONE.NAME = "TwoLevels"
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = SIZES
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [RATIOS]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    rpn, heads = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
    rpn.IN_FEATURES = ["p0", "p1"]
    rpn.CONV_DIMS = [5]
    rpn.IOU_THRESHOLDS = [0.2, 0.55]
    rpn.BATCH_SIZE_PER_IMAGE = 400
    rpn.BBOX_REG_WEIGHTS = WEIGHTS
    rpn.SMOOTH_L1_BETA = 0.3
    rpn.LOSS_WEIGHT = 2.0
    rpn.BBOX_REG_LOSS_WEIGHT = 3.0
    rpn.PRE_NMS_TOPK_TEST = 30
    heads.NUM_CLASSES = K
    heads.SCORE_THRESH_TEST = 0.3
    heads.NMS_THRESH_TEST = 0.4
    cfg.TEST.DETECTIONS_PER_IMAGE = 12
    return cfg


def varied(cfg):
    """Build the model with predictions that differ from anchor to anchor."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, layer in model.head.named_children():
        nn.init.normal_(layer.weight, std=0.2 if name == "anchor_deltas" else 0.7)
        nn.init.normal_(layer.bias, std=0.2)
    return model


def ground_truth(size, boxes, classes):
    boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    return Instances(size, gt_boxes=boxes, gt_classes=torch.tensor(classes, dtype=torch.long))


def inputs(*gt):
    """Images for the ground truths, by default two of different sizes.

    The first image is to be enlarged. No anchor inside the default one overlaps its last object.
    """
    boxes = [[10.0, 6, 44, 40], [50.0, 12, 90, 62], [0.0, 0, 8, 2]]
    gt = gt or (
        ground_truth((64, 96), boxes, [2, 0, 1]),
        ground_truth((50, 70), [[20.0, 16, 50, 44]], [1]),
    )
    generator = torch.Generator().manual_seed(1)
    images = [
        {"image": torch.randint(0, 256, (3, *x.image_size), generator=generator), "instances": x}
        for x in gt
    ]
    images[0] |= {"height": 128, "width": 288}
    return images


def train(model, batch):
    model.train()
    with EventStorage() as storage:
        return model(batch), storage


@torch.no_grad()
def predictions(model, batch):
    """Per image and level [(anchor, K + 1 logits, 4 deltas), ...] in the maps' memory order."""
    x = model.preprocess_image(batch).tensor
    maps = model.head(list(model.backbone(x).values()))
    images = [[], []]
    for level, (logits, deltas) in enumerate(zip(*maps, strict=True)):
        stride = STRIDES[level]
        shapes = [(size / r**0.5, size * r**0.5) for size in SIZES[level] for r in RATIOS]
        for n, image in enumerate(images):
            image.append([])
            for y in range(x.shape[2] // stride):
                for column in range(x.shape[3] // stride):
                    cx, cy = (column + 0.5) * stride, (y + 0.5) * stride
                    for a, (w, h) in enumerate(shapes):
                        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                        at = slice(a * (K + 1), (a + 1) * (K + 1)), y, column
                        of_box = slice(a * 4, a * 4 + 4), y, column
                        image[-1].append((box, logits[n][at].tolist(), deltas[n][of_box].tolist()))
    return images


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def softmax(logits):
    exp = [math.exp(x) for x in logits]
    return [x / sum(exp) for x in exp]


# ---- Targets -------------------------------------------------------------------------------------


def slow_labels(anchors, gt, border):
    """Label and box of each anchor by the rule of Faster R-CNN (sec. 2.3), the toy's thresholds."""
    height, width = gt.image_size
    boxes, classes = gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist()
    labels, matched = [-1] * len(anchors), [[0.0] * 4] * len(anchors)
    best = [0.0] * len(boxes)
    ious = {}
    for i, (x0, y0, x1, y1) in enumerate(anchors):
        inside = min(x0, y0) >= -border and x1 < width + border and y1 < height + border
        if border < 0 or inside:
            ious[i] = [iou(anchors[i], box) for box in boxes]
            best = [max(pair) for pair in zip(best, ious[i], strict=True)]
    for i, overlaps in ious.items():
        most = max(overlaps, default=0)
        is_best = any(0 < b == o for b, o in zip(best, overlaps, strict=True))
        if most >= 0.55 or is_best:
            k = overlaps.index(most)
            labels[i], matched[i] = classes[k], boxes[k]
        elif most < 0.2:
            labels[i] = K
    return labels, matched, best


def label(model, batch):
    maps = list(model.backbone(model.preprocess_image(batch).tensor).values())
    anchors = model.anchor_generator(maps)
    return model.label_anchors(anchors, [x["instances"] for x in batch])


@pytest.mark.parametrize("border", [-1, 0, 8])
def test_labels(toy, border):
    toy.MODEL.RPN.BOUNDARY_THRESH = border
    model, batch = build_model(toy), inputs()
    gt_labels, gt_boxes = label(model, batch)
    for n, (x, image) in enumerate(zip(batch, predictions(model, batch), strict=True)):
        anchors = [anchor for level in image for anchor, _, _ in level]
        labels, matched, best = slow_labels(anchors, x["instances"], border)
        assert gt_labels[n].tolist() == labels
        positive = [0 <= c < K for c in labels]
        assert gt_boxes[n][positive].tolist() == torch.tensor(matched)[positive].tolist()
        assert (-1 in labels) and (K in labels)
        assert (0.0 in best) == (border == 0 and n == 0)
        seen = {c for c, b in zip(x["instances"].gt_classes.tolist(), best, strict=True) if b}
        assert set() < set(labels) - {-1, K} <= seen


def test_samples_some(toy):
    toy.MODEL.RPN.IOU_THRESHOLDS = [0.2, 0.3]  # many positive ones
    everything = label(build_model(toy), inputs())[0]
    toy.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 8
    toy.MODEL.RPN.POSITIVE_FRACTION = 0.25
    model = build_model(toy)
    draws = [label(model, inputs())[0] for _ in range(2)]
    for labels, sampled in zip(everything, draws[0], strict=True):
        chosen = sampled >= 0
        assert sampled[chosen].equal(labels[chosen])
        assert (chosen.sum(), (sampled[chosen] < K).sum()) == (8, 2)
    assert not draws[0][0].equal(draws[1][0])


# ---- Losses --------------------------------------------------------------------------------------


def test_losses(toy):
    toy.MODEL.RPN.BOUNDARY_THRESH = 0
    model, batch = varied(toy), inputs()
    losses, storage = train(model, batch)
    cross_entropy, right, smooth_l1, positives = [], [], 0.0, 0
    for x, image in zip(batch, predictions(model, batch), strict=True):
        image = [anchor for level in image for anchor in level]
        labels, matched, _ = slow_labels([anchor for anchor, _, _ in image], x["instances"], 0)
        for (anchor, logits, deltas), c, box in zip(image, labels, matched, strict=True):
            if c < 0:
                continue
            cross_entropy.append(-math.log(softmax(logits)[c]))
            right.append(max(logits) == logits[c])
            if c == K:
                continue
            positives += 1
            w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
            target = [
                (box[0] + box[2] - anchor[0] - anchor[2]) / 2 / w,
                (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / h,
                math.log((box[2] - box[0]) / w),
                math.log((box[3] - box[1]) / h),
            ]
            for weight, t, d in zip(WEIGHTS, target, deltas, strict=True):
                error = abs(d - weight * t)
                smooth_l1 += error**2 / 0.3 / 2 if error < 0.3 else error - 0.15
    assert losses["loss_cls"].item() == pytest.approx(
        2 * sum(cross_entropy) / len(cross_entropy), rel=1e-4
    )
    assert losses["loss_box_reg"].item() == pytest.approx(6 * smooth_l1 / (400 * 2), rel=1e-4)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["rpn/num_pos_anchors"] == positives / 2 > 0
    assert latest["rpn/num_neg_anchors"] == (len(cross_entropy) - positives) / 2
    assert latest["rpn/cls_accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("border", [-1, 0])
def test_images_without_objects_train(toy, border):
    toy.MODEL.RPN.BOUNDARY_THRESH = border
    model = build_model(toy)
    nothing = ground_truth((64, 96), [], [])
    losses, storage = train(model, inputs(nothing, nothing))
    assert losses["loss_cls"].item() == pytest.approx(2 * math.log(K + 1), rel=0.3)
    assert losses["loss_box_reg"] == 0
    assert storage.latest()["rpn/num_pos_anchors"][0] == 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    losses, _ = train(model, inputs(nothing, inputs()[0]["instances"]))
    assert losses["loss_box_reg"] > 0


def test_an_image_smaller_than_every_anchor_has_no_loss(toy):
    toy.MODEL.RPN.BOUNDARY_THRESH = 0
    model = build_model(toy)
    losses, _ = train(model, inputs(ground_truth((10, 10), [[1.0, 1, 9, 9]], [0])))
    assert losses == {"loss_cls": 0, "loss_box_reg": 0}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_visualizes_while_it_trains(toy):
    toy.VIS_PERIOD = 1
    _, storage = train(varied(toy), inputs())
    ((name, picture, _),) = storage._vis_data
    assert "GT bounding boxes" in name and picture.shape == (3, 2 * 64, 96)


# ---- Inference -----------------------------------------------------------------------------------


def slow_decode(image, size):
    """[(box, K + 1 probabilities), ...] of the 30 best anchors of each level, in input pixels."""
    decoded = []
    for level in image:
        level = sorted(level, key=lambda x: -max(softmax(x[1])[:-1]))[:30]
        for (x0, y0, x1, y1), logits, deltas in level:
            dx, dy, dw, dh = (d / weight for d, weight in zip(deltas, WEIGHTS, strict=True))
            cx, cy = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
            w, h = (x1 - x0) * math.exp(dw), (y1 - y0) * math.exp(dh)
            box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
            limits = [size[1], size[0]] * 2
            box = [min(max(x, 0), limit) for x, limit in zip(box, limits, strict=True)]
            if box[2] > box[0] and box[3] > box[1]:
                decoded.append((box, softmax(logits)))
    return decoded


def slow_detect(decoded):
    """[(score, class, box), ...] after NMS of each class, best first."""
    found = []
    for c in range(K):
        kept = []
        for box, scores in sorted(decoded, key=lambda x: -x[1][c]):
            if scores[c] > 0.3 and all(iou(box, other) <= 0.4 for _, _, other in kept):
                kept.append((scores[c], c, box))
        found += kept
    return sorted(found, reverse=True)


def original_pixels(boxes, x):
    """Convert boxes to pixels of the original image."""
    height, width = x["image"].shape[1:]
    scale = [x.get("width", width) / width, x.get("height", height) / height] * 2
    return torch.tensor(boxes) * torch.tensor(scale)


@torch.no_grad()
@pytest.mark.parametrize("most", [12, 1000])
def test_detections_of_images_of_different_size(toy, most):
    toy.TEST.DETECTIONS_PER_IMAGE = most
    model, batch = varied(toy).eval(), inputs()
    for x, image, output in zip(batch, predictions(model, batch), model(batch), strict=True):
        found = output["instances"]
        scores, classes, boxes = zip(
            *slow_detect(slow_decode(image, x["image"].shape[1:]))[:most], strict=True
        )
        assert (len(scores) == most) == (most == 12)
        assert found.pred_classes.tolist() == list(classes)
        assert set(classes) == set(range(K))
        torch.testing.assert_close(found.scores, torch.tensor(scores))
        torch.testing.assert_close(
            found.pred_boxes.tensor, original_pixels(boxes, x), atol=1e-3, rtol=1e-4
        )
        height, width = x["image"].shape[1:]
        assert found.image_size == (x.get("height", height), x.get("width", width))


def test_raw_predictions(toy):
    model, batch = varied(toy).eval(), inputs()
    raw = model.predict_raw(batch)
    for x, image, (boxes, scores) in zip(batch, predictions(model, batch), raw, strict=True):
        slow_boxes, slow_scores = zip(*slow_decode(image, x["image"].shape[1:]), strict=True)
        assert boxes.shape == (len(slow_boxes), 1, 4) and scores.shape == (len(boxes), K + 1)
        assert not boxes.requires_grad and 30 < len(boxes) <= 60
        expected = original_pixels(slow_boxes, x)
        torch.testing.assert_close(boxes[:, 0], expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(scores, torch.tensor(slow_scores))


def test_bad_input_says_what_to_do(toy):
    model = build_model(toy)
    with pytest.raises(ValueError, match="ClassAwareRPN got no image; expected a list of dicts"):
        model([])
    model.eval()
    with pytest.raises(ValueError, match="ClassAwareRPN got no image"):
        model([])
    with pytest.raises(ValueError, match="ClassAwareRPN got no image"):
        model.predict_raw([])
    with pytest.raises(ValueError, match="no second pass .* TEST.BOX_AVERAGE.ITERATIONS 1"):
        model.predict_raw(inputs(), [torch.zeros(0, 4)] * 2)
    toy.MODEL.RPN.IN_FEATURES = ["res4"]
    with pytest.raises(ValueError, match=r"IN_FEATURES is \['res4'\], but .* p0, p1: choose"):
        build_model(toy)


def test_head_starts_as_an_rpn(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    cfg.MODEL.RPN.CONV_DIMS = [64]
    head = ClassAwareRPNHead(cfg, [ShapeSpec(channels=32, stride=16)])
    for layer in (head.conv, head.objectness_logits, head.anchor_deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()
