"""R-CNN feature mimicking: two losses of training, and the same inference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_deformable.checkpoint import load_model
from d2_deformable.engine.preflight import check_settings
from d2_deformable.modeling import MimicRCNN

DPOOL = [
    *("MODEL.ROI_HEADS.NAME", "DeformROIHeads"),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "DeformROIPool"),
]
MIMIC = [
    *("MODEL.META_ARCHITECTURE", "MimicRCNN"),
    *("MODEL.MIMIC.CROP_SIZE", 64, "MODEL.MIMIC.NUM_ROIS", 4),
]
LEVELS = ["p2", "p3", "p4", "p5"]
FPN = [
    *("MODEL.BACKBONE.NAME", "build_deform_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.RES5_DILATION", 1),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.RPN.IN_FEATURES", LEVELS, "MODEL.ROI_HEADS.IN_FEATURES", LEVELS),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128]]),
]
KINDS = {"plain": [], "dpool": DPOOL, "FPN": FPN, "FPN dpool": FPN + DPOOL}
NEW = {"loss_mimic", "loss_rcnn_cls"}


def make(cfg, *overrides):
    cfg.merge_from_list([*overrides])
    torch.manual_seed(0)
    return build_model(cfg)


def batch(objects=1):
    """Two images of 64 x 96 with a bright object on noise, or with none."""
    found = []
    for k in range(2):
        instances = Instances((64, 96))
        box = torch.tensor([[8.0 + 20 * k, 8.0, 56.0 + 20 * k, 52.0]])
        instances.gt_boxes = Boxes(box[:objects])
        instances.gt_classes = torch.tensor([k])[:objects]
        pixels = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(k)) * 99
        pixels[:, 8:52, 8 + 20 * k : 56 + 20 * k] += 100
        found.append({"image": pixels, "instances": instances})
    return found


def losses_of(model, inputs=None):
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(inputs or batch())


def watch_box_head(model, seen):
    """Collect the outputs of the box head: for training, for the crops, for their RoIs."""

    def keep(_, args, output):
        if output.requires_grad:
            output.retain_grad()
        seen.append(output)

    return model.roi_heads.box_head.register_forward_hook(keep)


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_and_its_losses_stay(small_rcnn_cfg, kind):
    plain = make(small_rcnn_cfg, *KINDS[kind])
    model = make(small_rcnn_cfg, *MIMIC)
    assert isinstance(model, MimicRCNN)
    state = plain.state_dict()
    assert model.state_dict().keys() - state.keys() == {
        "mimic_classifier.weight",
        "mimic_classifier.bias",
    }
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    expected, losses = losses_of(plain), losses_of(model)
    assert losses.keys() - expected.keys() == NEW
    assert all(torch.equal(losses[key], value) for key, value in expected.items())
    assert all(0 < losses[key] < 1 for key in NEW)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_without_the_branch(small_rcnn_cfg, kind, tmp_path):
    model = make(small_rcnn_cfg, *KINDS[kind], *MIMIC, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    DetectionCheckpointer(model, tmp_path).save("model")
    small_rcnn_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    plain, seen = load_model(small_rcnn_cfg, tmp_path / "model.pth"), []
    assert not any("mimic" in name for name in plain.state_dict())
    watch_box_head(model, seen)
    with torch.no_grad():
        (found,), (expected,) = (m.eval()(batch()[:1]) for m in (model, plain))
    assert len(seen) == 1, "the box head runs once"
    assert len(found["instances"]) > 0
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    assert torch.equal(
        found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
    )


@pytest.mark.parametrize("kind", ["dpool", "FPN dpool"])
def test_the_losses_fall(small_rcnn_cfg, kind):
    model = make(small_rcnn_cfg, *KINDS[kind], *MIMIC, "MODEL.MIMIC.LOSS_WEIGHT", 1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.005, momentum=0.9)
    history = []
    for _ in range(12):
        losses = losses_of(model)
        history.append({name: losses[name].item() for name in NEW})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name in NEW:
        assert history[-1][name] < 0.7 * history[0][name], history


def test_the_losses_are_those_of_the_paper(small_rcnn_cfg):
    """Eq. 4, a sum over the RoIs of an image; every RoI is positive, and at most NUM_ROIS are."""
    overlap = ["MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.1]]  # many RoIs are positive
    model, seen, heads = make(small_rcnn_cfg, *DPOOL, *MIMIC, *overlap), [], []
    watch_box_head(model, seen)
    model.roi_heads.register_forward_hook(lambda _, args, output: heads.append(output[0]))
    model.mimic_classifier.register_forward_hook(lambda _, args, scores: seen.append(scores))
    losses = losses_of(model)
    _, of_crops, of_images, scores = seen
    positive = [(p.gt_classes < 3).sum().item() for p in heads[0]]
    assert max(positive) > 4 and of_crops.shape == of_images.shape
    assert len(of_crops) == sum(min(4, n) for n in positive)
    cosines = (of_crops * of_images).sum(dim=1) / (of_crops.norm(dim=1) * of_images.norm(dim=1))
    torch.testing.assert_close(losses["loss_mimic"], 0.1 * (1 - cosines).sum() / 2)
    # Objects of the first image have class 0, those of the second class 1.
    classes = torch.tensor([0] * min(4, positive[0]) + [1] * min(4, positive[1]))
    torch.testing.assert_close(losses["loss_rcnn_cls"], 0.1 * F.cross_entropy(scores, classes))


@pytest.mark.parametrize("name", sorted(NEW))
def test_where_gradients_go(small_rcnn_cfg, name):
    """The network is shared and nothing is detached; the classifier reads the crops only."""
    model, seen = make(small_rcnn_cfg, *DPOOL, *MIMIC), []
    watch_box_head(model, seen)
    losses_of(model)[name].backward()
    of_training, of_crops, of_images = (output.grad for output in seen)
    assert of_training is None, "no loss of the detector"
    assert of_crops.abs().sum() > 0
    assert (of_images is not None) == (name == "loss_mimic")
    for part in ("backbone.res4.0.conv1.weight", "roi_heads.box_head.fc1.weight"):
        assert model.get_parameter(part).grad.abs().sum() > 0
    has_classifier_gradient = model.mimic_classifier.weight.grad is not None
    assert has_classifier_gradient == (name == "loss_rcnn_cls")


def test_a_crop_shows_the_roi_alone(small_rcnn_cfg):
    model = make(small_rcnn_cfg, *MIMIC)
    image = torch.rand(2, 3, 64, 96)
    boxes = [Boxes(torch.tensor([[8.0, 4.0, 40.0, 36.0]])), Boxes(torch.zeros(0, 4))]
    enlarged = F.interpolate(image[:1, :, 4:36, 8:40], size=64, mode="bilinear")
    crop = model._crop(image, boxes)
    # RoIAlign reads the neighbours of the border, half a pixel beyond it.
    torch.testing.assert_close(crop[..., 1:-1, 1:-1], enlarged[..., 1:-1, 1:-1])
    whole = [Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[0.0, 0.0, 128.0, 128.0]]))]
    image = F.interpolate(image, size=128)
    smaller = F.avg_pool2d(image[1:], 2)
    torch.testing.assert_close(model._crop(image, whole), smaller)


@pytest.mark.parametrize("objects", [0, 1])
def test_images_without_objects(small_rcnn_cfg, objects):
    model = make(small_rcnn_cfg, *DPOOL, *MIMIC)
    losses = losses_of(model, [*batch(0), *batch(objects)])
    assert all((losses[name] > 0) == bool(objects) for name in NEW)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.mimic_classifier.parameters())


def test_a_copy_mimics_itself(small_rcnn_cfg):
    model = make(small_rcnn_cfg, *DPOOL, *MIMIC)
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.mimic_classifier.weight)
    assert losses_of(twin)["loss_rcnn_cls"] != losses_of(model)["loss_rcnn_cls"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.MIMIC.CROP_SIZE", 100, *FPN], "CROP_SIZE is 100; expected a multiple of 32 pix"),
        (["MODEL.MIMIC.NUM_ROIS", 0], "NUM_ROIS is 0 and LOSS_WEIGHT 0.1; expected at least 1"),
        (["MODEL.MIMIC.LOSS_WEIGHT", -1.0], "LOSS_WEIGHT -1.0; expected"),
        (
            [
                *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
                *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
            ],
            "ROI_HEADS.NAME CascadeROIHeads; expected RoI heads with one box head",
        ),
        (
            [
                *("MODEL.ROI_HEADS.NAME", "RFCNHeads"),
                *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "PSROIPool"),
            ],
            "ROI_HEADS.NAME RFCNHeads; expected RoI heads with one box head",
        ),
    ],
)
def test_bad_settings_say_what_to_do(small_rcnn_cfg, overrides, message):
    with pytest.raises(ValueError, match=message):
        make(small_rcnn_cfg, *MIMIC, *overrides)


def test_settings_that_nothing_reads(small_rcnn_cfg):
    check_settings(small_rcnn_cfg)
    small_rcnn_cfg.MODEL.MIMIC.NUM_ROIS = 8
    with pytest.raises(ValueError, match="GeneralizedRCNN does not read MODEL.MIMIC; choose Mimi"):
        check_settings(small_rcnn_cfg)
    small_rcnn_cfg.MODEL.META_ARCHITECTURE = "MimicRCNN"
    check_settings(small_rcnn_cfg)
