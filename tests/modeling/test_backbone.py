import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from d2_deformable.layers import DeformConv2d
from d2_deformable.modeling.backbone import (
    build_deform_resnet_backbone,
    deform_convs,
    dilate_stage,
    kernel_convs,
)

IMAGE = ShapeSpec(channels=3)


def small(cfg, depth=50):
    """A narrow network with the structure of the real one."""
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8 if depth < 50 else 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    return cfg


def deformable(net):
    return [name for name, m in net.named_modules() if isinstance(m, DeformConv2d)]


@pytest.mark.parametrize("dilation", [1, 2])
def test_plain_network_is_detectron2s(cfg, dilation):
    small(cfg).MODEL.RESNETS.RES5_DILATION = dilation
    theirs = build_resnet_backbone(cfg, IMAGE).eval()
    ours = build_deform_resnet_backbone(cfg, IMAGE).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 96)
    expected, actual = theirs(x), ours(x)
    assert ours.output_shape() == theirs.output_shape()
    assert list(actual) == ["res4", "res5"]
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name])


@pytest.mark.parametrize(("height", "cells"), [(64, 16), (65, 16), (66, 16), (67, 17), (7, 2)])
def test_stem_that_pools_as_released(cfg, height, cells):
    """A cell is the maximum of three rows and columns, starting at an even one; those at the end
    may have fewer."""
    small(cfg).MODEL.RESNETS.STEM_POOL_CEIL = True
    stem = build_deform_resnet_backbone(cfg, IMAGE).stem
    x = torch.randn(1, 3, height, 64)
    before = stem.conv1(x).relu()
    after = stem(x)
    assert after.shape == (1, 8, cells, 16)
    for y, z in [(0, 0), (1, 3), (cells - 1, 15)]:
        window = before[0, :, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3]
        assert torch.equal(after[0, :, y, z], window.amax(dim=(1, 2)))


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("dilation", [2, 4, 8])
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_network_starts_as_the_plain_one(cfg, depth, dilation, modulated):
    small(cfg, depth).MODEL.RESNETS.RES5_DILATION = dilation
    plain = build_deform_resnet_backbone(cfg, IMAGE).double().eval()
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 6
    cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = 4
    cfg.MODEL.RESNETS.DEFORM_OFFSET_DILATION = 1
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    net = build_deform_resnet_backbone(cfg, IMAGE).double().eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and len(missing) == 12 and all(".conv_offset." in k for k in missing)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for name, feature in net(x).items():
        torch.testing.assert_close(feature, plain(x)[name])
    assert net.output_shape()["res5"].stride == 16


@pytest.mark.parametrize(
    "depth, num_layers, expected",
    [
        (18, 3, ["res5.0.conv2", "res5.1.conv1", "res5.1.conv2"]),
        (50, 1, ["res5.2.conv2"]),
        (50, 3, ["res5.0.conv2", "res5.1.conv2", "res5.2.conv2"]),
        (101, 6, [f"res4.{i}.conv2" for i in (20, 21, 22)] + [f"res5.{i}.conv2" for i in range(3)]),
    ],
)
def test_last_layers_in_network_order(cfg, depth, num_layers, expected):
    small(cfg, depth).MODEL.RESNETS.DEFORM_NUM_LAYERS = num_layers
    assert deformable(build_deform_resnet_backbone(cfg, IMAGE)) == expected


def test_clamp_of_offsets(cfg):
    small(cfg).MODEL.RESNETS.DEFORM_NUM_LAYERS = 2
    cfg.MODEL.RESNETS.DEFORM_OFFSET_CLAMP = 4.0
    net = build_deform_resnet_backbone(cfg, IMAGE)
    assert [net.get_submodule(name).max_offset for name in deformable(net)] == [4.0, 4.0]


def test_last_layers_are_counted_in_what_runs(cfg):
    small(cfg).MODEL.RESNETS.DEFORM_NUM_LAYERS = 1
    cfg.MODEL.RESNETS.OUT_FEATURES = ["stem", "res4"]
    assert deformable(build_deform_resnet_backbone(cfg, IMAGE)) == ["res4.5.conv2"]


def test_stages_flagged_as_in_detectron2(cfg):
    small(cfg).MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, False, True]
    names = deformable(build_deform_resnet_backbone(cfg, IMAGE))
    assert names == [f"res3.{i}.conv2" for i in range(4)] + [f"res5.{i}.conv2" for i in range(3)]


def test_layers_by_name_join_those_by_number_and_by_stage(cfg):
    small(cfg).MODEL.RESNETS.DEFORM_LAYERS = ["res4.3.conv2", "res2.0.conv2", "res5.2.conv2"]
    by_name = ["res2.0.conv2", "res4.3.conv2", "res5.2.conv2"]
    assert deformable(build_deform_resnet_backbone(cfg, IMAGE)) == by_name
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 2
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [True, False, False, False]
    expected = [f"res2.{i}.conv2" for i in range(3)]
    expected += ["res4.3.conv2", "res5.1.conv2", "res5.2.conv2"]
    assert deformable(build_deform_resnet_backbone(cfg, IMAGE)) == expected


@pytest.mark.parametrize("name", ["res5.2.conv3", "backbone.res5.2.conv2", "res5.3.conv2"])
def test_an_unknown_name_suggests_similar_ones(cfg, name):
    small(cfg).MODEL.RESNETS.DEFORM_LAYERS = ["res5.1.conv2", name]
    with pytest.raises(ValueError) as error:
        build_deform_resnet_backbone(cfg, IMAGE)
    assert f"is called '{name}'; the nearest names are" in str(error.value)
    assert "res5.2.conv2" in str(error.value) and len(str(error.value)) < 250


def test_reduced_features(cfg):
    small(cfg, 18).MODEL.RESNETS.OUT_FEATURES = ["res4", "res5_reduced"]
    cfg.MODEL.RESNETS.REDUCED_CHANNELS = 5
    net = build_deform_resnet_backbone(cfg, IMAGE)
    features = net(torch.randn(1, 3, 64, 64))
    assert list(features) == ["res4", "res5_reduced"]
    assert features["res5_reduced"].shape == (1, 5, 2, 2)
    assert features["res5_reduced"].min() >= 0
    assert net.output_shape()["res5_reduced"] == ShapeSpec(channels=5, stride=32)


def test_fpn(cfg):
    small(cfg).MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    net = build_backbone(cfg)
    assert len(deformable(net)) == 13
    assert list(net(torch.randn(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5", "p6"]


@pytest.mark.parametrize("modulated", [False, True])
def test_detectron2s_deformable_checkpoints_load(cfg, modulated, tmp_path, caplog):
    small(cfg).MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    theirs = build_resnet_backbone(cfg, IMAGE).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.05)
    DetectionCheckpointer(theirs, tmp_path).save("zoo")
    ours = build_deform_resnet_backbone(cfg, IMAGE).eval()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(ours).load(str(tmp_path / "zoo.pth"))
    assert "not found" not in caplog.text and "not used" not in caplog.text

    block, their_block = ours.res5[1], theirs.res5[1]
    x = torch.randn(1, 64 * 2, 6, 7)
    hidden = torch.relu(block.conv1(x))
    prediction = their_block.conv2_offset(hidden)
    if modulated:  # like their forward, whose operator does not run on the CPU
        from torchvision.ops import deform_conv2d

        offset, mask = prediction[:, :18], prediction[:, 18:].sigmoid()
        expected = their_block.conv2.norm(
            deform_conv2d(hidden, offset, their_block.conv2.weight, padding=1, mask=mask)
        )
    else:
        expected = their_block.conv2(hidden, prediction)
    torch.testing.assert_close(block.conv2(hidden), expected, rtol=1e-4, atol=1e-5)


def test_plain_checkpoint_reports_only_offsets_missing(cfg, tmp_path, caplog):
    plain = build_resnet_backbone(small(cfg), IMAGE)
    DetectionCheckpointer(plain, tmp_path).save("plain")
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 3
    net = build_deform_resnet_backbone(cfg, IMAGE)
    result = net.load_state_dict(
        torch.load(tmp_path / "plain.pth", weights_only=True)["model"], strict=False
    )
    assert not result.unexpected_keys
    assert sorted(result.missing_keys) == sorted(
        f"res5.{i}.conv2.conv_offset.{p}" for i in range(3) for p in ("weight", "bias")
    )


def test_conversion_of_any_network():
    net = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    assert list(kernel_convs(net)) == ["0", "2"]
    dilate_stage(net[2:], 3)
    assert net[2].dilation == (3, 3) and net[2].padding == (3, 3)
    deform_convs(net, ["2"], offset_groups=2)
    assert isinstance(net[2], DeformConv2d) and list(kernel_convs(net)) == ["0", "2"]
    assert net(torch.randn(1, 3, 8, 8)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DEPTH", 20, "DEPTH is 20; choose one of"),
        ("DEFORM_NUM_LAYERS", 17, "DEFORM_NUM_LAYERS is 17; this ResNet has 16 3x3"),
        ("REDUCED_CHANNELS", 8, "give 'res5_reduced' and a number of channels, or neither"),
        ("DEFORM_BORDER", "reflect", "border is 'reflect'; expected .*RESNETS.DEFORM_BORDER"),
        (
            "DEFORM_OFFSET_CLAMP",
            -1.0,
            "max_offset is -1.0; .*RESNETS.DEFORM_OFFSET_CLAMP",
        ),
        ("OUT_FEATURES", ["res6"], "OUT_FEATURES is ..res6..; choose at least one of stem, res2"),
        ("RES5_DILATION", 0, "RES5_DILATION is 0"),
        ("DEFORM_ON_PER_STAGE", [True], "four flags for res2 to res5"),
    ],
)
def test_bad_settings_say_what_to_do(cfg, key, value, message):
    small(cfg).MODEL.RESNETS[key] = value
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = max(1, cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS)
    with pytest.raises(ValueError, match=message):
        build_deform_resnet_backbone(cfg, IMAGE)


def test_names_of_unknown_layers():
    with pytest.raises(
        ValueError, match="no convolution .* is called '1'; the nearest names are 0"
    ):
        deform_convs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), ["1"])


def test_a_config_without_our_keys_says_what_to_do():
    with pytest.raises(ValueError, match="call d2_deformable.add_deformable_config"):
        build_deform_resnet_backbone(get_cfg(), IMAGE)
