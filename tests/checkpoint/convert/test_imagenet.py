"""ResNets of torchvision and timm give the same features as backbones, starting at image files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from converted import FPN, features, load, randomize
from PIL import Image

from d2_deformable.checkpoint import FileFormatError, write_weights
from d2_deformable.checkpoint.convert import CONVERTERS, ConversionError, convert_checkpoint
from d2_deformable.checkpoint.convert.conversion import Conversion
from d2_deformable.engine import read_config

timm = pytest.importorskip("timm")
SHALLOW = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
RESNEXT = ["MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
WIDE = ["MODEL.RESNETS.WIDTH_PER_GROUP", "128"]
# {source network: config keys of the equivalent network of this package}.
NETWORKS = {
    "torchvision resnet18": SHALLOW,
    "torchvision resnet50": [],
    "torchvision resnext50_32x4d": RESNEXT,
    "timm resnet18": SHALLOW,
    "timm resnext50_32x4d": RESNEXT,
}
LARGE = {
    "timm resnet50": [],
    "torchvision resnet34": [*SHALLOW[:1], "34", *SHALLOW[2:]],
    "torchvision resnet101": ["MODEL.RESNETS.DEPTH", "101"],
    "torchvision resnet152": ["MODEL.RESNETS.DEPTH", "152"],
    "torchvision resnext101_64x4d": ["MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.NUM_GROUPS", "64"]
    + RESNEXT[2:],
    "torchvision wide_resnet50_2": WIDE,
    "timm resnet152": ["MODEL.RESNETS.DEPTH", "152"],
    "timm wide_resnet50_2": WIDE,
}


def source(network: str):
    """A project's name and one of its networks, with random weights and statistics."""
    project, name = network.split()
    build = timm.create_model if project == "timm" else torchvision.models.get_model
    return project, randomize(build(name))


@torch.no_grad()
def expected_features(network, image, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    """Stage outputs of a torchvision or timm network for a normalised RGB image in 0..1."""
    rgb = np.asarray(Image.open(image).convert("RGB"), np.float32) / 255
    x = torch.from_numpy((rgb - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
    x = network.maxpool(torch.relu(network.bn1(network.conv1(x))))
    stages = {}
    for i in range(1, 5):
        stages[f"res{i + 1}"] = x = getattr(network, f"layer{i}")(x)
    return stages


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max()
        torch.testing.assert_close(actual[name] / scale, value / scale, rtol=1e-4, atol=1e-5)
        assert value.std() > scale / 1000, "features are too uniform"


def convert(kind, network, folder, overrides=(), config=FPN, target="converted.safetensors"):
    """Convert a network's weights and return the YAML that uses them."""
    torch.save(network.state_dict(), folder / "source.pth")
    cfg = read_config(config, overrides)
    convert_checkpoint(kind, folder / "source.pth", folder / target, cfg, config_file=config)
    return (folder / target).with_suffix(".yaml")


@pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_features(name, image, tmp_path):
    project, network = source(name)
    yaml = convert(project, network, tmp_path, {**NETWORKS, **LARGE}[name])
    assert_close(features(*load(yaml), image), expected_features(network, image))


DEFORMABLE = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"]


@pytest.mark.parametrize("modulated", ["True", "False"])
def test_a_deformable_backbone_starts_as_the_plain_one(modulated, image, tmp_path):
    project, network = source("torchvision resnet18")
    overrides = [*SHALLOW, *DEFORMABLE, "MODEL.RESNETS.DEFORM_MODULATED", modulated]
    yaml = convert(project, network, tmp_path, overrides, target="converted.pth")
    assert_close(features(*load(yaml), image), expected_features(network, image))


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_into_a_network_without_pyramid(norm, image, tmp_path):
    """The paper's C5 network, without dilation because the source has none."""
    project, network = source("torchvision resnet18")
    config = FPN.parents[1] / "VOC-Detection/rfcn_R_101_dconv3_dpool.yaml"
    overrides = [*SHALLOW, "MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.RES5_DILATION", "1"]
    overrides += ["MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5', 'res5_reduced']"]
    yaml = convert(project, network, tmp_path, overrides, config)
    model, cfg = load(yaml)
    read = features(model, cfg, image)
    read.pop("res5_reduced")
    assert_close(read, expected_features(network, image))
    if norm == "BN":
        assert model.backbone.res5[1].conv1.norm.num_batches_tracked == 0


def test_into_res5_of_a_C4_head(tmp_path):
    _, network = source("torchvision resnet50")
    from detectron2 import model_zoo

    config = model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    overrides = ["MODEL.BACKBONE.NAME", "build_deform_resnet_backbone"]
    model, _ = load(convert("torchvision", network, tmp_path, overrides, config))
    assert torch.equal(model.roi_heads.res5[2].conv3.weight, network.layer4[2].conv3.weight)
    assert torch.equal(model.backbone.res4[5].conv3.weight, network.layer3[5].conv3.weight)


def test_other_tensors_are_reported(tmp_path):
    torch.save(source("torchvision resnet18")[1].state_dict(), tmp_path / "a.pth")
    cfg = read_config(FPN, [*SHALLOW, *DEFORMABLE])
    conversion = convert_checkpoint("torchvision", tmp_path / "a.pth", tmp_path / "b.pth", cfg)
    table = " ".join(conversion.table().split())
    assert "res3.0.shortcut.weight 128x64x1x1 layer2.0.downsample.0.weight" in table
    assert "not used fc.weight ImageNet classifier" in table
    assert "res5.1.conv2.conv_offset.weight 18x512x3x3 zero: as without offsets" in table
    assert "roi_heads.box_predictor.cls_score.weight initial values not part of an Image" in table
    assert conversion.settings == {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }
    # Without its file, the YAML holds the whole config.
    assert read_config(tmp_path / "b.yaml").MODEL.RESNETS.DEPTH == 18


def test_no_yaml_where_the_config_has_the_settings(tmp_path):
    torch.save(source("torchvision resnet18")[1].state_dict(), tmp_path / "a.pth")
    cfg = read_config(FPN, SHALLOW)
    first = convert_checkpoint("torchvision", tmp_path / "a.pth", tmp_path / "b.pth", cfg)
    assert first.written == [tmp_path / "b.pth", tmp_path / "b.yaml"]
    cfg = read_config(tmp_path / "b.yaml")
    second = convert_checkpoint("torchvision", tmp_path / "a.pth", tmp_path / "c.pth", cfg)
    assert second.written == [tmp_path / "c.pth"] and not (tmp_path / "c.yaml").exists()


def test_the_command_line_in_a_process_of_its_own(image, tmp_path):
    _, network = source("timm resnet18")
    torch.save({"state_dict": network.state_dict(), "arch": "resnet18"}, tmp_path / "a.pth")
    files = [tmp_path / "a.pth", tmp_path / "b.safetensors", "--config-file", FPN]
    arguments = ["convert", "--from", "timm", *files, *SHALLOW, *DEFORMABLE]
    command = [sys.executable, "-m", "d2_deformable", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "layer1.0.conv1.weight" in run.stdout and "setting: INPUT.FORMAT RGB" in run.stdout
    assert f"wrote {tmp_path / 'b.safetensors'}\nwrote {tmp_path / 'b.yaml'}\n" in run.stdout
    read = features(*load(tmp_path / "b.yaml"), image)
    assert_close(read, expected_features(network, image))


def test_mean_and_std_of_timm_are_used(image, tmp_path):
    _, network = source("timm resnet18")
    images = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.5]}
    config = {"architecture": "resnet18.a1_in1k", "pretrained_cfg": images}
    (tmp_path / "config.json").write_text(json.dumps(config))
    yaml = convert("timm", network, tmp_path, SHALLOW)
    assert_close(features(*load(yaml), image), expected_features(network, image, **images))


VARIANTS = {
    "resnet18d": "a stem of several convolutions",
    "resnet50_gn": "group normalisation",
    "seresnet18": "attention in its blocks",
    "resnetv2_18": "another architecture",
    "resnetrs50": "a stem of several convolutions|attention",
}


def check_timm(state, name="source.pth"):
    conversion = Conversion(state, {})
    conversion.file = Path(name)
    CONVERTERS["timm"](conversion, read_config(FPN))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_timm_are_refused(name):
    with pytest.raises(ConversionError, match=f"has ({VARIANTS[name]}).*only plain resnet"):
        check_timm(timm.create_model(name).state_dict())


def test_variants_with_the_same_tensors_are_refused_by_name(tmp_path):
    state = timm.create_model("resnetblur18").state_dict()
    with pytest.raises(ConversionError, match="anti-aliased strides, acc.* its name"):
        check_timm(state, "resnetblur18-84f4748f.pth")
    (tmp_path / "config.json").write_text('{"architecture": "resnetblur18"}')
    with pytest.raises(ConversionError, match="resnetblur18, according to its config.json"):
        check_timm(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConversionError, match="config.json, beside it, is not JSON"):
        check_timm(state, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("network", "overrides", "message"),
    [
        ("resnet50", ["MODEL.RESNETS.DEPTH", "101"], "the file has no 'layer3.6.conv1.weight'"),
        ("resnet34", SHALLOW, "tensors of the file have no place in .*: layer1.2.conv1.weight"),
        ("resnet18", [], "the file has no 'layer1.0.|would be"),
        ("resnext50_32x4d", [], "would be .* use a config with the source's depth"),
        ("resnet18", [*SHALLOW, "MODEL.RESNETS.NORM", "GN"], "NORM 'GN' has no running statistics"),
        (
            "resnet18",
            ["MODEL.BACKBONE.NAME", "build_aligned_inception_resnet_backbone"],
            "build_aligned_inception_resnet_backbone .*another network|the file has no",
        ),
    ],
)
def test_another_network_is_refused_and_nothing_written(network, overrides, message, tmp_path):
    state = torchvision.models.get_model(network).state_dict()
    write_weights({k: v for k, v in state.items() if v.numel() < 10**7}, tmp_path / "a.pth")
    config = FPN
    if "BACKBONE" in "".join(overrides):
        config = FPN.with_name("rfcn_AIR.yaml")
    with pytest.raises(ConversionError, match=rf"a.pth: .*({message})"):
        cfg = read_config(config, overrides)
        convert_checkpoint("torchvision", tmp_path / "a.pth", tmp_path / "b.pth", cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_file_of_something_else_is_refused(tmp_path):
    write_weights({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match="a.pth: the file has no 'conv1.weight'; it is"):
        cfg = read_config(FPN, SHALLOW)
        convert_checkpoint("torchvision", tmp_path / "a.pth", tmp_path / "b.pth", cfg)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    _, network = source("torchvision resnet18")
    network.layer1[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConversionError, match="source.pth: 1 converted tensors are not finite: "):
        convert("torchvision", network, tmp_path, SHALLOW)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


def test_wrong_calls(tmp_path):
    cfg = read_config(FPN)
    with pytest.raises(ConversionError, match="unknown kind 'keras': choose one of detectron2"):
        convert_checkpoint("keras", tmp_path / "a.pth", tmp_path / "b.pth", cfg)
    with pytest.raises(FileFormatError, match="b.onnx: weights are written to a file, .pth or"):
        convert_checkpoint("timm", tmp_path / "a.pth", tmp_path / "b.onnx", cfg)
    with pytest.raises(FileNotFoundError, match="a.pth"):
        convert_checkpoint("timm", tmp_path / "a.pth", tmp_path / "b.pth", cfg)
