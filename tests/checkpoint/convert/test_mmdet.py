"""mmdetection's Faster and Mask R-CNN: equal outputs after conversion, and refused input."""

import pytest
import torch
from checkpoint.mmdet_networks import RCNN, randomise
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from d2_deformable import add_deformable_config
from d2_deformable.checkpoint.convert import ConversionError, convert_checkpoint, mmdet
from yamls import CONFIGS, load

# Overrides that shrink a YAML's network to the size of RCNN.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.CONV_DIMS": [16],
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
MODULATED = {"groups": 1, "modulated": True}
# Arguments of RCNN, and this package's YAML for the same network.
NETWORKS = {
    "plain": ({}, "faster_rcnn_R_50_FPN_1x"),
    "mask": ({"mask": True}, "mask_rcnn_R_50_FPN_1x"),
    "dconv": (
        {"dcn": {"groups": 1, "modulated": False}},
        "faster_rcnn_R_50_FPN_1x_dconv_c3-c5",
    ),
    "mdconv": ({"dcn": MODULATED, "mask": True}, "mask_rcnn_R_50_FPN_1x_mdconv_c3-c5"),
    "group4": (
        {"dcn": {"groups": 4, "modulated": True}},
        "faster_rcnn_R_50_FPN_1x_mdconv_c3-c5_group4",
    ),
    "dpool": ({"pool": "DeformRoIPoolPack"}, "faster_rcnn_R_50_FPN_1x_dpool_mmdet"),
    "mdpool": ({"pool": "ModulatedDeformRoIPoolPack"}, "faster_rcnn_R_50_FPN_1x_mdpool_mmdet"),
}
BOXES = torch.tensor(
    [[3.0, 5, 60, 40], [20, 10, 125.5, 90], [0, 0, 128, 96], [70, 30, 90, 38], [-3, 50, 400, 300]]
)
CAFFE = {"cfg": "model = dict(type='FasterRCNN', backbone=dict(depth=50, style='caffe'))\n"}


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 12, 16, generator=generator)
    return 255 * torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")[0]


def config(name, **changes):
    cfg = load(CONFIGS / f"COCO-Detection/{name}.yaml")
    for key, value in (SMALL | changes).items():
        cfg.merge_from_list([key, value])
    return cfg


def network(image, **kwargs):
    torch.manual_seed(0)
    model = RCNN(**kwargs)
    randomise(model, image)
    return model


class Converter:
    """Writes state dicts to files, as mmdetection does, and builds the converted models."""

    def __init__(self, folder):
        self.source, self.target = folder / "epoch_12.pth", folder / "converted.pth"

    def convert(self, state_dict, cfg, meta=None):
        self.cfg = cfg
        torch.save({"state_dict": state_dict, "meta": meta or {}}, self.source)
        return convert_checkpoint("mmdet", self.source, self.target, cfg)

    def model(self, **changes):
        """Build the model of the converter's YAML, or of the given config if it wrote none."""
        cfg = self.cfg
        if (file := self.target.with_suffix(".yaml")).exists():
            cfg = get_cfg()
            add_deformable_config(cfg)
            cfg.merge_from_file(str(file))
        for key, value in changes.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        model = build_model(cfg).eval()
        model.load_state_dict(torch.load(self.target)["model"])
        return model, cfg


@pytest.fixture
def converter(tmp_path):
    return Converter(tmp_path)


@torch.no_grad()
def heads(model, cfg, image):
    """The outputs that RCNN.heads returns, from a converted model."""
    image = image.flip(0) if cfg.INPUT.FORMAT == "RGB" else image
    features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
    maps = list(features.values())
    rpn = model.proposal_generator.rpn_head(maps)
    roi_heads = model.roi_heads
    pooled = roi_heads.box_pooler(maps[:4], [Boxes(BOXES)])
    outputs = [*maps, *rpn[0], *rpn[1], *roi_heads.box_predictor(roi_heads.box_head(pooled))]
    if cfg.MODEL.MASK_ON:
        outputs.append(roi_heads.mask_head.layers(roi_heads.mask_pooler(maps[:4], [Boxes(BOXES)])))
    return outputs


def differ(actual, expected) -> bool:
    assert [a.shape for a in actual] == [e.shape for e in expected]
    return not all(
        torch.allclose(a, e, rtol=1e-4, atol=1e-4) for a, e in zip(actual, expected, strict=True)
    )


# ---- Parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs(name, image, converter):
    kwargs, yaml = NETWORKS[name]
    theirs = network(image, **kwargs)
    converter.convert(theirs.state_dict(), config(yaml))
    ours, cfg = converter.model()
    expected = theirs.heads(image, BOXES)
    assert all(0.01 < e.std() < 30 for e in expected)
    torch.testing.assert_close(heads(ours, cfg, image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "mdconv", "mdpool"])
def test_same_detections(name, image, converter):
    kwargs, yaml = NETWORKS[name]
    theirs = network(image, **kwargs)
    converter.convert(theirs.state_dict(), config(yaml))
    ours, cfg = converter.model()
    inputs = {"image": image.flip(0), "height": image.shape[1], "width": image.shape[2]}
    with torch.no_grad():
        found = ours([inputs])[0]["instances"]
    boxes, scores, classes = theirs.detect(image)
    assert len(found) == len(boxes) > 5
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=1e-4, atol=1e-2)
    assert torch.equal(found.pred_classes, classes)


def test_caffe_style_is_read_from_the_config_in_the_file(image, converter):
    theirs = network(image, style="caffe")
    conversion = converter.convert(theirs.state_dict(), config("faster_rcnn_R_50_FPN_1x"), CAFFE)
    assert conversion.settings["INPUT.FORMAT"] == "BGR"
    ours, cfg = converter.model()
    assert not differ(heads(ours, cfg, image), theirs.heads(image, BOXES))
    ours, cfg = converter.model(MODEL__RESNETS__STRIDE_IN_1X1=False)
    assert differ(heads(ours, cfg, image), theirs.heads(image, BOXES))


def test_resnet_18(image, converter):
    theirs = network(image, depth=18)
    changes = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.NORM": "BN"}
    converter.convert(theirs.state_dict(), config("faster_rcnn_R_50_FPN_1x", **changes))
    ours, cfg = converter.model()
    assert not differ(heads(ours, cfg, image), theirs.heads(image, BOXES))


def test_first_names_of_offset_layers(image, converter):
    """In mmcv's first versions conv2_offset was a sibling of conv2."""
    kwargs, yaml = NETWORKS["mdconv"]
    theirs = network(image, **kwargs)
    state_dict = {
        name.replace("conv2.conv_offset", "conv2_offset"): value
        for name, value in theirs.state_dict().items()
    }
    converter.convert(state_dict, config(yaml))
    ours, cfg = converter.model()
    assert not differ(heads(ours, cfg, image), theirs.heads(image, BOXES))


# ---- Each difference matters ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, rule", [("mdconv", "_halved"), ("dpool", "_y_first"), ("mdpool", "_y_first")]
)
def test_leaving_out_a_rule_is_detected(name, rule, image, converter, monkeypatch):
    kwargs, yaml = NETWORKS[name]
    theirs = network(image, **kwargs)
    monkeypatch.setattr(mmdet, rule, lambda tensor: tensor)
    converter.convert(theirs.state_dict(), config(yaml))
    ours, cfg = converter.model()
    assert differ(heads(ours, cfg, image), theirs.heads(image, BOXES))


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("plain", "INPUT__FORMAT", "BGR"),
        ("plain", "MODEL__PIXEL_STD", [1.0, 1.0, 1.0]),
        ("plain", "MODEL__RESNETS__STRIDE_IN_1X1", True),
        ("plain", "MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO", 2),
        ("plain", "MODEL__ROI_BOX_HEAD__POOLER_TYPE", "ROIAlign"),
        ("dconv", "MODEL__RESNETS__DEFORM_BORDER", "legacy"),
        ("dpool", "MODEL__ROI_BOX_HEAD__DEFORM_GAMMA", 0.2),
    ],
)
def test_another_setting_is_detected(name, key, value, image, converter):
    kwargs, yaml = NETWORKS[name]
    theirs = network(image, **kwargs)
    converter.convert(theirs.state_dict(), config(yaml))
    ours, cfg = converter.model(**{key: value})
    assert differ(heads(ours, cfg, image), theirs.heads(image, BOXES))


def test_levels_have_their_own_offset_layers(image, converter):
    kwargs, yaml = NETWORKS["dpool"]
    theirs = network(image, **kwargs)
    converter.convert(theirs.state_dict(), config(yaml))
    ours, cfg = converter.model()
    pools = ours.roi_heads.box_pooler.roi_pool
    pools[0].load_state_dict(pools[1].state_dict())
    assert differ(heads(ours, cfg, image), theirs.heads(image, BOXES))


# ---- Settings and what else the file holds -------------------------------------------------------

CONFIG_3 = """
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
    backbone=dict(style='pytorch', init_cfg=dict(checkpoint='torchvision://resnet50')),
    rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8])),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.5, 0.5, 0.25, 0.25]))),
    test_cfg=dict(rpn=dict(nms_pre=7, max_per_img=8, nms=dict(type='nms', iou_threshold=0.6)),
                  rcnn=dict(score_thr=0.1, nms=dict(iou_threshold=0.4), max_per_img=9)))
work_dir = unknown_name
"""
CONFIG_2 = """
model = dict(backbone=dict(style='caffe'), train_cfg=None)
test_cfg = dict(rcnn=dict(score_thr=0.2, max_per_img=11))
img_norm_cfg = dict(mean=[9.0, 8.0, 7.0], std=[1.0, 1.0, 1.0], to_rgb=False)
"""


@pytest.mark.parametrize(
    "meta, expected",
    [
        (
            {"cfg": CONFIG_3},
            {
                "INPUT.FORMAT": "RGB",
                "MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0],
                "MODEL.PIXEL_STD": [4.0, 5.0, 6.0],
                "MODEL.RESNETS.STRIDE_IN_1X1": False,
                "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32]],
                "MODEL.RPN.PRE_NMS_TOPK_TEST": 7,
                "MODEL.RPN.POST_NMS_TOPK_TEST": 8,
                "MODEL.RPN.NMS_THRESH": 0.6,
                "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [2.0, 2.0, 4.0, 4.0],
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
                "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
                "TEST.DETECTIONS_PER_IMAGE": 9,
            },
        ),
        (
            {"config": CONFIG_2, "mmdet_version": "2.11.0"},
            {
                "INPUT.FORMAT": "BGR",
                "MODEL.PIXEL_MEAN": [9.0, 8.0, 7.0],
                "MODEL.RESNETS.STRIDE_IN_1X1": True,
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.2,
                "TEST.DETECTIONS_PER_IMAGE": 11,
            },
        ),
        ({"cfg": "model = ("}, {"INPUT.FORMAT": "RGB"}),
        ({"cfg": 3}, {"INPUT.FORMAT": "RGB"}),
    ],
    ids=["3.x", "2.x", "no Python", "no text"],
)
def test_settings_of_the_config_in_the_file(meta, expected, image, converter):
    state_dict = network(image).state_dict()
    conversion = converter.convert(state_dict, config("faster_rcnn_R_50_FPN_1x"), meta)
    assert {key: conversion.settings[key] for key in expected} == expected
    assert any("no mmdetection config" in text for text in conversion.assumptions) == (
        len(expected) == 1
    )


def test_unused_tensors_are_reported(image, converter):
    state_dict = network(image).state_dict()
    state_dict["data_preprocessor.mean"] = torch.tensor([10.0, 20, 30]).view(3, 1, 1)
    state_dict["data_preprocessor.std"] = torch.ones(3, 1, 1)
    state_dict["ema_backbone_conv1_weight"] = torch.zeros(3)
    conversion = converter.convert(state_dict, config("faster_rcnn_R_50_FPN_1x"))
    assert conversion.settings["MODEL.PIXEL_MEAN"] == [10.0, 20.0, 30.0]
    table = conversion.table()
    assert "ema_backbone_conv1_weight" in table and "num_batches_tracked" in table


# ---- Refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, yaml, message",
    [
        ("dpool", "faster_rcnn_R_50_FPN_1x", "POOLER_TYPE is ROIAlignV2, but .* DeformROIAlign"),
        (
            "dpool",
            "faster_rcnn_R_50_FPN_1x_dconv_c3-c5_dpool",
            "is DeformROIPool, but .*mmcv's sampling .*set it, and MODEL.ROI_HEADS.NAME Deform",
        ),
        (
            "mdpool",
            "faster_rcnn_R_50_FPN_1x_dpool_mmdet",
            "pools as ModulatedDeformROIAlign.*R_50_FPN_1x_mdpool_mmdet.yaml",
        ),
        ("plain", "faster_rcnn_R_50_FPN_1x_dpool_mmdet", "pools as ROIAlignV2: set it"),
        (
            "plain",
            "faster_rcnn_R_50_FPN_1x_dconv_c3-c5",
            r"no deformable conv.*DEFORM_ON_PER_STAGE \[False, False, False, False\]",
        ),
        (
            "group4",
            "faster_rcnn_R_50_FPN_1x_mdconv_c3-c5",
            "DEFORM_MODULATED True, DEFORM_NUM_GROUPS 4",
        ),
        (
            "dconv",
            "faster_rcnn_R_50_FPN_1x_mdconv_c3-c5",
            r"\[False, True, True, True\], DEFORM_MODULATED False, DEFORM_NUM_GROUPS 1",
        ),
        ("plain", "faster_rcnn_R_101_FPN_1x", "255 tensors of the model are not in the file"),
        ("plain", "mask_rcnn_R_50_FPN_1x", "tensors of the model are not in the file: roi_heads.m"),
        ("mask", "faster_rcnn_R_50_FPN_1x", "tensors of the file have no place .*mask_head"),
        ("plain", "faster_rcnn_R_50", "has an FPN and the config's has none"),
    ],
)
def test_another_network_than_the_configs(name, yaml, message, image, converter):
    with pytest.raises(ConversionError, match=message):
        converter.convert(network(image, **NETWORKS[name][0]).state_dict(), config(yaml))
    assert not converter.target.exists()


def renamed(old, new):
    return lambda state: {name.replace(old, new): value for name, value in state.items()}


@pytest.mark.parametrize(
    "change, meta, message",
    [
        (renamed("roi_head.bbox_head", "bbox_head"), {}, "before 2.0, where the background"),
        (dict, {"mmdet_version": "1.2.0+abc"}, "upgrade_model_version.py"),
        (renamed("bbox_head.", "bbox_head.0."), {}, "Cascade R-CNN, which .* logits"),
        (renamed("neck.", "other."), {}, "no 'neck.lateral_convs.0.conv.weight'"),
        (renamed("rpn_conv", "rpn_conv.0"), {}, "1 tensors|2 tensors of the file have no place"),
        (
            dict,
            {"cfg": "model = dict(rpn_head=dict(anchor_generator=dict(scales=[4, 8])))"},
            "anchors of several scales",
        ),
        (
            dict,
            {"cfg": "model = dict(rpn_head=dict(anchor_generator=dict(ratios=[1.0])))"},
            "gives 3 scores per position; expected one for each of the 1 anchors",
        ),
    ],
)
def test_what_is_no_such_network(change, meta, message, image, converter):
    state_dict = change(network(image).state_dict())
    with pytest.raises(ConversionError, match=message):
        converter.convert(state_dict, config("faster_rcnn_R_50_FPN_1x"), meta)
    assert not converter.target.exists()
