"""Networks of msracver/Deformable-ConvNets, converted, compute what their own layers did.

`mxnet_networks.py` states those layers. Sizes are small, but for the test marked slow; image sizes
are no multiples of 16, so that maps differ where the stems pool differently and proposals stop
before the border of the map.
"""

from functools import cache

import mxnet_networks as source
import pytest
import torch
from detectron2.modeling import build_model
from mxnet_networks import Network

from d2_deformable.checkpoint.convert import Conversion
from d2_deformable.checkpoint.convert.mxnet import convert
from yamls import CONFIGS, load

TOLERANCE = 1e-4
PIXELS = 1e-3
YAML = {
    ("rfcn", False): "VOC-Detection/rfcn_R_50.yaml",
    ("rfcn", True): "VOC-Detection/rfcn_R_50_dconv3_dpool.yaml",
    ("faster_rcnn", False): "VOC-Detection/faster_rcnn_R_50.yaml",
    ("faster_rcnn", True): "VOC-Detection/faster_rcnn_R_50_dconv3_dpool.yaml",
    ("deeplab", False): "VOC-SemanticSegmentation/deeplab_R_101.yaml",
    ("deeplab", True): "VOC-SemanticSegmentation/deeplab_R_101_dconv3.yaml",
    ("imagenet", False): "VOC-Detection/rfcn_R_101.yaml",
}
DETECTORS = [key for key in YAML if key[0] in ("rfcn", "faster_rcnn")]
TO_LAST_PIXEL = torch.tensor([0, 0, 1, 1], dtype=torch.float64)
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RPN.CONV_DIMS": [16],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32, 64]],
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 24,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 24,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
}


@cache
def network(kind, deform):
    return Network(
        kind,
        deform,
        units=(3, 4, 23 if kind in ("deeplab", "imagenet") else 6, 3),
        width=8,
        reduced=16,
        rpn_channels=16,
        hidden=24,
        classes=4,
        scales=(1, 2, 4),
        rois=40,
    )


def config(kind, deform, overrides=None):
    cfg = load(CONFIGS / YAML[kind, deform])
    for key, value in (OVERRIDES | (overrides or {})).items():
        cfg.merge_from_list([key, value])
    if cfg.MODEL.RESNETS.REDUCED_CHANNELS and not overrides:
        cfg.MODEL.RESNETS.REDUCED_CHANNELS = 16
    return cfg


@cache
def params(kind, deform):
    return source.random_params(network(kind, deform))


@cache
def rgb():
    return torch.rand(3, 178, 151, generator=torch.Generator().manual_seed(1)) * 255


def pixels(image=None):
    """As the source network takes them."""
    image = rgb() if image is None else image
    return (image - torch.tensor(source.MEAN)[:, None, None])[None].double()


@cache
def expected(kind, deform):
    if kind == "deeplab":
        return source.segment(params(kind, deform), network(kind, deform), pixels())
    return source.detect(params(kind, deform), network(kind, deform), pixels())


def converted(tensors, cfg):
    conversion = Conversion(tensors, build_model(cfg).state_dict())
    convert(conversion, cfg)
    conversion.check()
    return conversion


def build(cfg, conversion, leave_out=(), **settings):
    """The model of the converted weights, with fewer proposals, without some of its settings."""
    cfg = cfg.clone()
    for key, value in conversion.settings.items():
        if key not in leave_out:
            cfg.merge_from_list([key, value])
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 40
    for key, value in settings.items():
        cfg.merge_from_list([key, value])
    model = build_model(cfg).eval()
    model.load_state_dict(conversion.weights)
    return model


@cache
def small(kind, deform):
    cfg = config(kind, deform)
    return cfg, converted(params(kind, deform), cfg)


def distance(ours, theirs):
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs).abs().max().item()


def set_distance(ours, theirs):
    """Of rows in any order, as nearly equal scores may change places."""
    if len(ours) != len(theirs):
        return float("inf")
    distances = torch.cdist(ours.double(), theirs, p=float("inf"))
    return max(distances.amin(dim=0).max().item(), distances.amin(dim=1).max().item())


@torch.no_grad()
def differences(model, theirs, net, image=None):
    """{what: largest difference} of a detector from its source, boxes in hundreds of pixels."""
    image = rgb() if image is None else image
    inputs = [{"image": image.flip(0) if model.input_format == "BGR" else image}]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    logits, _ = model.proposal_generator.rpn_head([features["res4"]])
    (proposals,), _ = model.proposal_generator(images, features, None)
    ((boxes, probs),) = model.predict_raw(inputs)
    # Here by size, then by ratio; there by ratio, then by size.
    objects = theirs["rpn_prob"].unflatten(0, (len(net.ratios), len(net.scales)))
    box_scale = TOLERANCE / PIXELS
    result = model(inputs)[0]["instances"]
    boxes_and_more = [
        (result.pred_boxes.tensor - TO_LAST_PIXEL) * box_scale,
        result.scores[:, None],
        result.pred_classes[:, None] + 1,
    ]
    return {
        "res4": distance(features["res4"], theirs["res4"]),
        "objectness": distance(logits[0][0].sigmoid(), objects.transpose(0, 1).flatten(0, 1)),
        "scores of proposals": distance(
            proposals.objectness_logits.sigmoid(), theirs["roi_scores"]
        ),
        "proposals": distance(proposals.proposal_boxes.tensor - TO_LAST_PIXEL, theirs["rois"])
        * box_scale,
        # Background is the first class there.
        "probabilities": distance(probs.roll(1, dims=1), theirs["probs"]),
        "boxes": distance(boxes - TO_LAST_PIXEL, theirs["boxes"][:, 1:]) * box_scale,
        "detections": set_distance(
            torch.cat(boxes_and_more, dim=1),
            source.detections(theirs, net) * theirs["rois"].new_tensor([box_scale] * 4 + [1, 1]),
        ),
    }


# ---- Parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "deform"), DETECTORS)
def test_detectors(kind, deform):
    theirs = expected(kind, deform)
    # What is compared is worth it: several cells of anchors, and scores that say something.
    assert theirs["probs"].std(dim=0).min() > 0.005 and len(theirs["rois"]) == 40
    found = differences(build(*small(kind, deform)), theirs, network(kind, deform))
    assert max(found.values()) < TOLERANCE, found


def test_an_rgb_config():
    cfg = config("rfcn", False)
    cfg.INPUT.FORMAT = "RGB"
    conversion = converted(params("rfcn", False), cfg)
    assert conversion.settings["MODEL.PIXEL_MEAN"] == [123.15, 115.90, 103.06]
    found = differences(build(cfg, conversion), expected("rfcn", False), network("rfcn", False))
    assert max(found.values()) < TOLERANCE, found


@torch.no_grad()
def difference_of_scores(model, theirs):
    """The largest one from DeepLab's scores.

    Its deconvolution fades out towards the border of the map, by a factor that all classes share,
    which this package's head leaves out.
    """
    inputs = [{"image": rgb().flip(0)}]
    cells = model.backbone(model.preprocess_image(inputs).tensor)["res5"][:, :1]
    height, width = theirs.shape[2:]
    faded = torch.nn.functional.conv_transpose2d(
        torch.ones_like(cells).double(),
        params("deeplab", False)["arg:upsampling_weight"][:1].double(),
        stride=source.STRIDE,
    )[:, :, 8 : 8 + height, 8 : 8 + width]
    return distance(model(inputs)[0]["sem_seg"], (theirs / faded)[0])


@pytest.mark.parametrize("deform", [False, True])
def test_deeplab(deform):
    theirs = expected("deeplab", deform)
    assert theirs.std() > 0.1
    assert difference_of_scores(build(*small("deeplab", deform)), theirs) < TOLERANCE


def test_a_map_that_ends_before_the_image():
    """178 pixels are 11 cells and 2 pixels more."""
    model = build(*small("deeplab", False))
    image = model.preprocess_image([{"image": rgb()}]).tensor
    assert model.backbone(image)["res5"].shape[2] == 11


@torch.no_grad()
def test_the_imagenet_network_as_a_backbone():
    cfg = config("imagenet", False)
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5", "res5_reduced"]
    conversion = converted(params("imagenet", False), cfg)
    assert all(name.startswith("backbone.") for name in conversion.weights)
    assert "fc1000" in conversion.table()
    for key, value in conversion.settings.items():
        cfg.merge_from_list([key, value])
    model = build_model(cfg).eval()
    model.load_state_dict(conversion.weights, strict=False)
    features = model.backbone(model.preprocess_image([{"image": rgb().flip(0)}]).tensor)
    theirs = source.Layers(params("imagenet", False)).resnet(pixels(), network("imagenet", False))
    assert distance(features["res4"], theirs[0]) < TOLERANCE
    assert distance(features["res5"], theirs[1]) < TOLERANCE


def test_the_imagenet_network_starts_a_deformable_one():
    """Its offsets, its reduction and its heads keep their initial values."""
    cfg = config("rfcn", True, {"MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.REDUCED_CHANNELS": 16})
    conversion = converted(params("imagenet", False), cfg)
    left = build_model(cfg).state_dict().keys() - conversion.weights.keys()
    assert any("conv_offset" in name for name in left)
    assert not any(name.startswith("backbone.res") and "offset" not in name for name in left)


# ---- Each trap, undone, is seen ------------------------------------------------------------------

CLASSES = 4
SCORES = "roi_heads.box_predictor.cls_score"
BOXES = "roi_heads.box_predictor.bbox_pred"
RPN = "proposal_generator.rpn_head"


def rows(*sizes, dim, roll=0):
    """A change of the outputs of a layer, seen as `sizes`: rolled, or turned around, in `dim`."""

    def change(x):
        x = x.view(*sizes, *x.shape[1:])
        return (x.roll(roll, dim) if roll else x.flip(dim)).flatten(0, len(sizes) - 1)

    return change


WEIGHTS = {
    "RGB": ("rfcn", "backbone.stem.conv1", lambda x: x.flip(1)),
    "background first": ("rfcn", f"{SCORES}.score_maps", rows(4, 49, dim=0, roll=1)),
    "offsets of the background first": (
        "rfcn",
        f"{SCORES}.offset_maps",
        rows(4, 2, 49, dim=0, roll=1),
    ),
    "x first, scores": ("rfcn", f"{SCORES}.offset_maps", rows(4, 2, 49, dim=1)),
    "x first, boxes": ("rfcn", f"{BOXES}.offset_maps", rows(2, 49, dim=0)),
    "x first, RoIs": ("faster_rcnn", "roi_heads.box_pooler.roi_pool.offset_fc", rows(2, 49, dim=0)),
    "background first, fc": ("faster_rcnn", SCORES, rows(4, dim=0, roll=1)),
    "anchors by ratio, scores": (
        "rfcn",
        f"{RPN}.objectness_logits",
        lambda x: x.unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1),
    ),
    "anchors by ratio, boxes": (
        "rfcn",
        f"{RPN}.anchor_deltas",
        lambda x: x.unflatten(0, (3, 3, 4)).transpose(0, 1).flatten(0, 2),
    ),
    "background minus object": ("rfcn", f"{RPN}.objectness_logits", lambda x: -x),
}
SETTINGS = {
    "MODEL.PIXEL_MEAN": "rfcn",
    "MODEL.RESNETS.STRIDE_IN_1X1": "rfcn",
    "MODEL.RESNETS.STEM_POOL_CEIL": "rfcn",
    "MODEL.RESNETS.RES5_DILATION": "rfcn",
    "MODEL.RESNETS.DEFORM_BORDER": "rfcn",
    "MODEL.ANCHOR_GENERATOR.NAME": "rfcn",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "rfcn",
    "MODEL.PROPOSAL_GENERATOR.NAME": "rfcn",
    "MODEL.RPN.NMS_THRESH": "rfcn",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "rfcn",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "rfcn",
    "MODEL.ROI_BOX_HEAD.ROUND_ROIS": "rfcn",
    "MODEL.ROI_BOX_HEAD.DEFORM_GAMMA": "rfcn",
    "MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART": "rfcn",
}
OTHER = {
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.STEM_POOL_CEIL": False,
    "MODEL.RESNETS.RES5_DILATION": 4,
    "MODEL.RESNETS.DEFORM_BORDER": "zero",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.NMS_THRESH": 0.6,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.ROI_BOX_HEAD.ROUND_ROIS": False,
    "MODEL.ROI_BOX_HEAD.DEFORM_GAMMA": 0.2,
    "MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART": 2,
}
