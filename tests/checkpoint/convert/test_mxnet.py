"""Converted networks of msracver/Deformable-ConvNets compute what the original layers compute.

`mxnet_networks.py` defines those layers. Sizes are small except in the test marked slow. Image
sizes are not multiples of 16, so that feature maps differ where the stems pool differently, and
proposals stop before the border of the feature map.
"""

import pytest
import torch
from checkpoint import mxnet_networks as source
from checkpoint.mxnet_comparison import (
    DETECTORS,
    TO_LAST_PIXEL,
    TOLERANCE,
    build,
    config,
    converted,
    difference_of_scores,
    differences,
    distance,
    expected,
    network,
    params,
    pixels,
    rgb,
    small,
)
from checkpoint.mxnet_files import file_bytes
from checkpoint.mxnet_networks import Network
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from d2_deformable.checkpoint.convert import ConversionError, convert_checkpoint
from yamls import CONFIGS, load

# ---- Parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "deform"), DETECTORS)
def test_detectors(kind, deform):
    theirs = expected(kind, deform)
    # Make sure that the comparison is meaningful: several cells of anchors, varied scores.
    assert theirs["probs"].std(dim=0).min() > 0.005 and len(theirs["rois"]) == 40
    found = differences(build(*small(kind, deform)), theirs, network(kind, deform))
    assert max(found.values()) < TOLERANCE, found


@torch.no_grad()
def test_each_level_of_fpn_has_its_offset_layer():
    """The images of the other tests are so small that all RoIs belong to the finest level."""
    net, model = network("fpn", True), build(*small("fpn", True))
    generator = torch.Generator().manual_seed(0)
    maps = {
        stride: torch.randn(1, 16, 480 // stride, 640 // stride, generator=generator)
        for stride in (4, 8, 16, 32)
    }
    rois = [[10, 20, 60, 50], [30, 30, 200, 180], [100, 50, 380, 300], [5, 8, 600, 470]]
    rois = torch.tensor(rois, dtype=torch.float64)
    layers = source.Layers(params("fpn", True))
    theirs, _ = source.fpn_heads(layers, net, {k: x.double() for k, x in maps.items()}, rois)
    heads, boxes = model.roi_heads, [Boxes(rois + TO_LAST_PIXEL)]
    _, scale = heads.box_pooler.predict_offsets([*maps.values()], boxes)
    assert scale.tolist() == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    ours, _ = heads.box_predictor(heads.box_head(heads.box_pooler([*maps.values()], boxes)))
    assert distance(ours.roll(1, dims=1), theirs) < TOLERANCE


def test_an_rgb_config():
    cfg = config("rfcn", False)
    cfg.INPUT.FORMAT = "RGB"
    conversion = converted(params("rfcn", False), cfg)
    assert conversion.settings["MODEL.PIXEL_MEAN"] == [123.15, 115.90, 103.06]
    found = differences(build(cfg, conversion), expected("rfcn", False), network("rfcn", False))
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("deform", [False, True])
def test_deeplab(deform):
    theirs = expected("deeplab", deform)
    assert theirs.std() > 0.1
    assert difference_of_scores(build(*small("deeplab", deform)), theirs) < TOLERANCE


def test_a_map_that_ends_before_the_image():
    """178 pixels are 11 cells plus 2 pixels."""
    model = build(*small("deeplab", False))
    assert model.backbone(pixels().float())["res5"].shape[2:] == (11, 10)
    inputs = [{"image": rgb(), "height": 178, "width": 151}]
    assert model(inputs)[0]["sem_seg"].shape[1:] == (178, 151)


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
    assert distance(features["res4"], theirs[4]) < TOLERANCE
    assert distance(features["res5"], theirs[5]) < TOLERANCE


def test_the_imagenet_network_starts_a_deformable_one():
    """The offsets, reduction and heads of the deformable network keep their initial values."""
    cfg = config("rfcn", True, {"MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.REDUCED_CHANNELS": 16})
    conversion = converted(params("imagenet", False), cfg)
    left = build_model(cfg).state_dict().keys() - conversion.weights.keys()
    assert any("conv_offset" in name for name in left)
    assert not any(name.startswith("backbone.res") and "offset" not in name for name in left)


# ---- Leaving out any step of the conversion is noticed -------------------------------------------

SCORES = "roi_heads.box_predictor.cls_score"
BOXES = "roi_heads.box_predictor.bbox_pred"
RPN = "proposal_generator.rpn_head"
LEVELS = "roi_heads.box_pooler.roi_pool"
OFFSET_FC = f"{LEVELS}.offset_fc"


def rows(*sizes, roll=None, flip=None):
    """Make a function that rolls or flips one dimension of a layer's outputs, viewed as `sizes`."""

    def change(x):
        x = x.unflatten(0, sizes)
        return (x.flip(flip) if roll is None else x.roll(1, roll)).flatten(0, len(sizes) - 1)

    return change


def by_ratio(*sizes):
    return lambda x: x.unflatten(0, (3, 3, *sizes)).transpose(0, 1).flatten(0, 1 + len(sizes))


def denormalised(x):
    stds = torch.tensor([0.1, 0.1, 0.2, 0.2]).view(4, *[1] * x.dim())
    return (x.unflatten(0, (4, 49)) * stds).flatten(0, 1)


LAYERS = {
    "RGB": ("rfcn", "backbone.stem.conv1", lambda x: x.flip(1)),
    "background first": ("rfcn", f"{SCORES}.score_maps", rows(4, 49, roll=0)),
    "background first, offsets": ("rfcn", f"{SCORES}.offset_maps", rows(4, 2, 49, roll=0)),
    "background first, fc": ("faster_rcnn", SCORES, rows(4, roll=0)),
    "bins by column": ("rfcn", f"{SCORES}.score_maps", rows(4, 7, 7, flip=2)),
    "x first, scores": ("rfcn", f"{SCORES}.offset_maps", rows(4, 2, 49, flip=1)),
    "x first, boxes": ("rfcn", f"{BOXES}.offset_maps", rows(2, 49, flip=0)),
    "x first, RoIs": ("faster_rcnn", OFFSET_FC, rows(2, 49, flip=0)),
    "x first, RoIs of a level": ("fpn", f"{LEVELS}.0.offset_fc", rows(2, 49, flip=0)),
    "anchors by ratio, scores": ("rfcn", f"{RPN}.objectness_logits", by_ratio()),
    "anchors by ratio, boxes": ("rfcn", f"{RPN}.anchor_deltas", by_ratio(4)),
    "background minus object": ("rfcn", f"{RPN}.objectness_logits", lambda x: -x),
    "_test": ("rfcn", f"{BOXES}.score_maps", denormalised),
}


@pytest.mark.parametrize("trap", LAYERS)
def test_a_layer_left_as_it_was_is_seen(trap):
    kind, layer, change = LAYERS[trap]
    model = build(*small(kind, True))
    state = model.state_dict()
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in state:
            state[name] = change(state[name])
    model.load_state_dict(state)
    found = differences(model, expected(kind, True), network(kind, True))
    assert max(found.values()) > 10 * TOLERANCE, found


SETTINGS = [
    ("rfcn", True, "MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
    ("rfcn", True, "MODEL.RESNETS.STRIDE_IN_1X1", False),
    ("rfcn", True, "MODEL.RESNETS.STEM_POOL_CEIL", False),
    ("rfcn", True, "MODEL.RESNETS.RES5_DILATION", 4),
    ("rfcn", True, "MODEL.RESNETS.DEFORM_BORDER", "zero"),
    ("rfcn", True, "MODEL.RESNETS.DEFORM_OFFSET_DILATION", 1),
    ("rfcn", True, "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
    ("rfcn", True, "MODEL.ANCHOR_GENERATOR.OFFSET", 0.0),
    ("rfcn", True, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    ("rfcn", True, "MODEL.RPN.NMS_THRESH", 0.6),
    ("rfcn", True, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5),
    ("rfcn", True, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [1.0, 1.0, 1.0, 1.0]),
    ("rfcn", True, "MODEL.ROI_BOX_HEAD.ROUND_ROIS", False),
    ("rfcn", True, "MODEL.ROI_BOX_HEAD.DEFORM_GAMMA", 0.2),
    ("rfcn", True, "MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART", 2),
    ("faster_rcnn", False, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
    ("fpn", False, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
    ("fpn", True, "MODEL.RESNETS.DEFORM_BORDER", "zero"),
    ("fpn", True, "MODEL.FPN.FUSE_TYPE", "avg"),
    ("fpn", True, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    ("deeplab", True, "MODEL.RESNETS.DEFORM_BORDER", "zero"),
    ("deeplab", True, "MODEL.RESNETS.DEFORM_OFFSET_DILATION", 2),
    ("deeplab", False, "MODEL.RESNETS.STEM_POOL_CEIL", False),
]


@pytest.mark.parametrize(("kind", "deform", "key", "value"), SETTINGS)
def test_another_setting_is_seen(kind, deform, key, value):
    cfg, conversion = small(kind, deform)
    assert conversion.settings[key] != value
    model = build(cfg, conversion, {key: value})
    theirs = expected(kind, deform)
    if kind == "deeplab":
        assert difference_of_scores(model, theirs) > 10 * TOLERANCE
    else:
        found = differences(model, theirs, network(kind, deform))
        assert max(found.values()) > 10 * TOLERANCE, found


# ---- Box outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("rfcn", "rfcn_bbox"), ("faster_rcnn", "bbox_pred")])
def test_box_outputs_in_either_form(kind, name):
    """The normalised layers or the test copies by themselves give the same weights as both."""
    cfg, both = small(kind, False)
    names = [f"arg:{name}_{part}" for part in ("weight", "bias")]
    for left_out in (names, [f"{n}_test" for n in names]):
        tensors = {k: v for k, v in params(kind, False).items() if k not in left_out}
        weights = converted(tensors, cfg).weights
        for key, value in both.weights.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-6, atol=1e-7)


def test_box_outputs_that_disagree_are_refused():
    name = "arg:rfcn_bbox_bias_test"
    tensors = params("rfcn", False) | {name: params("rfcn", False)[name] + 0.01}
    with pytest.raises(ConversionError, match=f"'{name}' is not 'arg:rfcn_bbox_bias' times"):
        converted(tensors, config("rfcn", False))


def test_box_maps_of_the_background_are_read_by_nothing():
    changed = dict(params("rfcn", False))
    for part in ("weight", "bias"):
        for name in (f"arg:rfcn_bbox_{part}", f"arg:rfcn_bbox_{part}_test"):
            changed[name] = changed[name].clone()
            changed[name][: 4 * 49] = 0
    cfg, both = small("rfcn", False)
    weights = converted(changed, cfg).weights
    assert all(torch.equal(value, both.weights[name]) for name, value in weights.items())


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "deform", "change", "message"),
    [
        ("rfcn", False, {"arg:rpn_conv_3x3_bias": None}, "no 'arg:rpn_conv_3x3_bias'"),
        ("rfcn", False, {"aux:bn3a_branch1_moving_var": None}, "no 'aux:bn3a_branch1_moving_var'"),
        (
            "rfcn",
            True,
            {"arg:res5b_branch2b_offset_weight": None},
            "not in the file: .*conv_offset",
        ),
        ("rfcn", False, {"arg:more": torch.zeros(1)}, "1 tensors of the file have no .*: arg:more"),
        ("faster_rcnn", False, {"arg:offset_weight": torch.zeros(1)}, "offset_fc.weight.* not in"),
        ("rfcn", True, {"arg:res5a_branch2b_offset_bias": torch.zeros(54)}, "offset_groups=3 does"),
        ("rfcn", False, {"arg:rfcn_bbox_bias_test": torch.zeros(3)}, "is not 'arg:rfcn_bbox_bias'"),
        ("deeplab", False, {"arg:fc6_bias": torch.zeros(7)}, "is \\(24,\\)"),
        ("deeplab", True, {"arg:upsampling_weight": torch.ones(4, 1, 32, 32)}, "not the bilinear"),
        ("deeplab", True, {"arg:upsampling_weight": torch.ones(4, 1, 4, 4)}, "not the bilinear"),
        (
            "rfcn",
            False,
            {"arg:rfcn_cls_bias": torch.zeros(48)},
            "cannot be divided into groups of 49",
        ),
        ("rfcn", False, {"arg:rpn_cls_score_bias": torch.zeros(24)}, "12 anchors"),
        ("rfcn", False, {"arg:conv1_weight": None}, "no 'arg:conv1_weight' among the"),
        ("rfcn", False, {"arg:fc6_weight": torch.zeros(1)}, "arg:fc6_weight"),
    ],
)
def test_another_network_is_refused(kind, deform, change, message):
    tensors = params(kind, deform) | change
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(ConversionError, match=message):
        converted(tensors, config(kind, deform))


@pytest.mark.parametrize(
    ("kind", "deform", "other", "message"),
    [
        ("rfcn", True, ("rfcn", False), "arg:res5a_branch2b_offset_weight|not in the model"),
        ("rfcn", False, ("rfcn", True), "not in the file"),
        ("faster_rcnn", False, ("rfcn", False), "not in the model of the config|would be"),
        ("deeplab", False, ("rfcn", False), "not in the model of the config"),
        ("rfcn", False, ("deeplab", False), "no 'arg:res4g_branch2a_weight'"),
    ],
)
def test_the_config_of_another_network_is_refused(kind, deform, other, message):
    with pytest.raises(ConversionError, match=message):
        converted(params(kind, deform), config(*other))


# ---- From file to file ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "deform"), [("rfcn", True), ("faster_rcnn", False)])
def test_a_file_becomes_weights_and_a_yaml(kind, deform, tmp_path):
    """The user's config needs no preparation: the YAML next to the weights has every setting."""
    arrays = {name: value.numpy() for name, value in params(kind, deform).items()}
    (tmp_path / "net-0007.params").write_bytes(file_bytes(arrays, version=1))
    target = tmp_path / "net.pth"
    cfg = config(kind, deform)
    convert_checkpoint("mxnet", tmp_path / "net-0007.params", target, cfg)
    used = load(tmp_path / "net.yaml")
    used.MODEL.RPN.POST_NMS_TOPK_TEST = 40
    model = build_model(used).eval()
    model.load_state_dict(torch.load(target, weights_only=True)["model"])
    found = differences(model, expected(kind, deform), network(kind, deform))
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
def test_the_released_size():
    """The released deformable ResNet-101 R-FCN for COCO, except that its weights are random."""
    net = Network("rfcn", True, classes=81, scales=(4, 8, 16, 32), rois=40)
    tensors = source.random_params(net)
    cfg = load(CONFIGS / "COCO-Detection/rfcn_R_101_dconv3_dpool.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    conversion = converted(tensors, cfg)
    theirs = source.detect(tensors, net, pixels())
    found = differences(build(cfg, conversion, {"TEST.DETECTIONS_PER_IMAGE": 300}), theirs, net)
    assert max(found.values()) < TOLERANCE, found
