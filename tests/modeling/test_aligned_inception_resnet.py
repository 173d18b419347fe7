"""Aligned-Inception-ResNet: its size, its alignment, and its place in every network."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2_deformable.layers import DeformConv2d
from d2_deformable.modeling import (
    InceptionResBlock,
    build_aligned_inception_resnet_backbone,
    dilate_stage,
)

IMAGE = ShapeSpec(channels=3)


def set_air(cfg, depth=26, out_features=("res4", "res5"), width=16):
    """Set the network's depth, and the widths `width` and `width` / 2 of its branches in res2."""
    cfg.MODEL.BACKBONE.NAME = "build_aligned_inception_resnet_backbone"
    c = cfg.MODEL.RESNETS
    c.DEPTH, c.OUT_FEATURES, c.STRIDE_IN_1X1 = depth, list(out_features), False
    c.STEM_OUT_CHANNELS, c.RES2_OUT_CHANNELS = width, 4 * width
    return c


def build(cfg, device="cpu"):
    with torch.device(device):
        return build_aligned_inception_resnet_backbone(cfg, IMAGE)


def num_parameters(net):
    return sum(p.numel() for p in net.parameters())


def deformable(net):
    return [name for name, m in net.named_modules() if isinstance(m, DeformConv2d)]


# ---- Size ----------------------------------------------------------------------------------------


def test_parameters(cfg):
    set_air(cfg, depth=101, out_features=["res5"], width=64)
    net = build(cfg, "meta")
    classifier = 1000 * (2048 + 1)
    assert num_parameters(net) + classifier == 64_381_800
    convs = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))
    assert convs + classifier == 64_252_072  # the 64.3 M of table 7
    stages = [num_parameters(getattr(net, f"res{i}")) for i in (2, 3, 4, 5)]
    assert stages == [314_688, 1_761_792, 38_854_912, 21_391_872]
    assert [len(stage) for stage in net.stages] == [3, 4, 23, 3]
    assert [stage[-1].out_channels for stage in net.stages] == [256, 512, 1024, 2048]


def test_last_three_deformable_layers_are_those_of_the_last_block(cfg):
    c = set_air(cfg, depth=101, out_features=["res5"], width=64)
    plain = num_parameters(build(cfg, "meta"))
    c.RES5_DILATION, c.DEFORM_NUM_LAYERS = 2, 3
    net = build(cfg, "meta")
    assert deformable(net) == ["res5.2.a1", "res5.2.b1", "res5.2.b2"]
    assert num_parameters(net) - plain == 165_942
    c.DEFORM_NUM_LAYERS = 9
    of_res5 = [f"res5.{i}.{conv}" for i in range(3) for conv in ("a1", "b1", "b2")]
    assert deformable(build(cfg, "meta")) == of_res5
    c.DEFORM_NUM_LAYERS, c.DEFORM_LAYERS = 0, ["res4.22.b2", "res5.2.a1"]
    assert deformable(build(cfg, "meta")) == ["res4.22.b2", "res5.2.a1"]


# ---- Alignment -----------------------------------------------------------------------------------


def centre_of_receptive_field(branch):
    """(y, x) of the centre of the pixels that the output of `branch` at (6, 8) reads."""
    x = torch.ones(1, 8, 41, 41, requires_grad=True)
    branch(x)[0, :, 6, 8].sum().backward()
    read = x.grad[0].abs().sum(0)
    return tuple(read.sum(1 - axis).nonzero().float().mean().item() for axis in (0, 1))


@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (2, 2)])
def test_branches_are_centred_on_the_same_pixel(stride, dilation, stride_in_1x1):
    block = InceptionResBlock(8, 32, stride=stride, stride_in_1x1=stride_in_1x1, norm="")
    if dilation > 1:
        dilate_stage(nn.Sequential(block), dilation)
    for p in block.parameters():
        nn.init.ones_(p)
    branches = {
        "shortcut": block.shortcut,
        "a": lambda x: block.a1(block.a_reduce(x)),
        "b": lambda x: block.b2(block.b1(block.b_reduce(x))),
        "whole": block,
    }
    for name, branch in branches.items():
        expected = (6.0 * block.stride, 8.0 * block.stride)
        assert centre_of_receptive_field(branch) == expected, name


@pytest.mark.parametrize("dilation, stride", [(1, 32), (2, 16)])
def test_moving_the_image_moves_the_features(cfg, dilation, stride):
    """Move by whole strides, away from the border; in float64, as many layers add up rounding."""
    c = set_air(cfg)
    c.RES5_DILATION, c.NORM = dilation, ""
    net = build(cfg).double()
    assert net.output_shape()["res5"].stride == stride
    image = torch.zeros(1, 3, 20 * stride, 4 * stride, dtype=torch.float64)
    image[:, :, 9 * stride : 10 * stride] = torch.randn(1, 3, stride, 4 * stride).double()
    moved = image.roll(stride, dims=2)
    with torch.no_grad():
        before, after = net(image)["res5"], net(moved)["res5"]
    inner = slice(7, 12)
    assert before[:, :, inner].abs().max() > 0
    torch.testing.assert_close(after[:, :, 8:13], before[:, :, inner])


@pytest.mark.parametrize("height, width", [(64, 96), (65, 95), (33, 17), (1, 1)])
def test_sizes_of_any_image(cfg, height, width):
    set_air(cfg, out_features=["res2", "res3", "res4", "res5"]).RES5_DILATION = 2
    net = build(cfg).eval()
    features = net(torch.randn(1, 3, height, width))
    for name, shape in net.output_shape().items():
        size = (-(-height // shape.stride), -(-width // shape.stride))
        assert features[name].shape == (1, shape.channels, *size), name


# ---- Dilated, frozen, deformable -----------------------------------------------------------------


def test_res5_dilates_every_larger_kernel(cfg):
    set_air(cfg).RES5_DILATION = 2
    net = build(cfg)
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d):
            larger = name.startswith("res5") and conv.kernel_size == (3, 3)
            assert conv.dilation == ((2, 2) if larger else (1, 1)), name
            assert not name.startswith("res5") or conv.stride == (1, 1), name


@pytest.mark.parametrize("stride_in_1x1, strided", [(False, "a1 b1"), (True, "a_reduce b_reduce")])
def test_layers_with_the_stride(cfg, stride_in_1x1, strided):
    set_air(cfg).STRIDE_IN_1X1 = stride_in_1x1
    block = build(cfg).res3[0]
    names = [n for n, m in block.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert sorted(names) == sorted([*strided.split(), "shortcut"])


def test_frozen_layers(cfg):
    set_air(cfg).NORM = "FrozenBN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    net = build(cfg)
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in net.modules()) == 1 + 8 * 5 + 4
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4", "res5"}


def test_a_deformable_network_starts_as_the_plain_one(cfg):
    c = set_air(cfg)
    c.RES5_DILATION = 2
    plain = build(cfg).double().eval()
    c.DEFORM_NUM_LAYERS = 7
    net = build(cfg).double().eval()
    assert deformable(net)[0] == "res4.1.b2" and len(deformable(net)) == 7
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and len(missing) == 14 and all(".conv_offset." in k for k in missing)
    x = torch.randn(1, 3, 64, 80, dtype=torch.float64)
    for name, feature in net(x).items():
        torch.testing.assert_close(feature, plain(x)[name])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DEPTH", 18, r"DEPTH is 18; choose one of \[26, 50, 101\]"),
        ("RES2_OUT_CHANNELS", 20, "branches of 5 and 2.5; .* a multiple of 8"),
        ("DEFORM_NUM_LAYERS", 25, "DEFORM_NUM_LAYERS is 25; this ResNet has 24 3x3"),
        ("RES5_DILATION", 0, "RES5_DILATION is 0"),
        ("DEFORM_LAYERS", ["res5.1.conv2"], "'res5.1.conv2'; the nearest names are res5.1"),
    ],
)
def test_bad_settings_say_what_to_do(cfg, key, value, message):
    set_air(cfg)[key] = value
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_a_config_without_our_keys_says_what_to_do(cfg):
    del set_air(cfg)["DEFORM_NUM_LAYERS"]
    with pytest.raises(ValueError, match="call d2_deformable.add_deformable_config"):
        build(cfg)


# ---- In every network ----------------------------------------------------------------------------

DETECTOR = CfgNode(
    {
        "RPN": {"IN_FEATURES": ["res4"], "POST_NMS_TOPK_TRAIN": 20, "POST_NMS_TOPK_TEST": 20},
        "ANCHOR_GENERATOR": {"SIZES": [[16, 32]]},
        "RESNETS": {"OUT_FEATURES": ["res4", "res5_reduced"], "REDUCED_CHANNELS": 16},
        "ROI_HEADS": {"IN_FEATURES": ["res5_reduced"], "NUM_CLASSES": 3, "SCORE_THRESH_TEST": 0.0},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 3, "NUM_FC": 1, "FC_DIM": 16},
    }
)
RPN_ON_RES5 = {"IN_FEATURES": ["res5_reduced"], "CONV_DIMS": [16]}
NETWORKS = {
    "R-FCN": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "ROI_HEADS": {"NAME": "RFCNHeads"},
        "ROI_BOX_HEAD": {"POOLER_TYPE": "DeformPSROIPool", "CLS_AGNOSTIC_BBOX_REG": True},
    },
    "Faster R-CNN": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "ROI_HEADS": {"NAME": "DeformROIHeads"},
        "ROI_BOX_HEAD": {"POOLER_TYPE": "DeformROIPool", "NAME": "FastRCNNConvFCHead"},
    },
    "class-aware RPN": {
        "META_ARCHITECTURE": "ClassAwareRPN",
        "RPN": RPN_ON_RES5,
        "RESNETS": {"OUT_FEATURES": ["res5_reduced"]},
    },
    "DeepLab": {
        "META_ARCHITECTURE": "SemanticSegmentor",
        "RESNETS": {"OUT_FEATURES": ["res5"], "REDUCED_CHANNELS": 0},
        "SEM_SEG_HEAD": {
            "NAME": "DeepLabHead",
            "IN_FEATURES": ["res5"],
            "CONVS_DIM": 16,
            "COMMON_STRIDE": 16,
            "NORM": "",
            "NUM_CLASSES": 3,
        },
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_and_tests_in_every_network(cfg, name):
    set_air(cfg)
    cfg.MODEL.RESNETS.RES5_DILATION, cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 2, 3
    for changes in (DETECTOR, CfgNode(NETWORKS[name])):
        cfg.MODEL.merge_from_other_cfg(changes)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    model = build_model(cfg)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8, 50, 60], [40, 20, 90, 60]]))
    instances.gt_classes = torch.tensor([0, 2])
    inputs = {
        "image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8),
        "instances": instances,
        "sem_seg": torch.randint(0, 3, (64, 96)),
        "height": 64,
        "width": 96,
    }
    with EventStorage():
        losses = model([inputs, inputs])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.backbone.parameters())
    with torch.no_grad():
        (output,) = model.eval()([inputs])
    assert {"instances", "sem_seg"} & output.keys()
