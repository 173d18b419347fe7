"""Hundreds of inputs that no converter expects: each raises ConversionError, nothing else."""

import itertools
import random
from functools import cache

import pytest
import torch
import torchvision
from checkpoint import mxnet_networks
from converted import FPN
from detectron2.modeling import build_model

from d2_deformable.checkpoint.convert import CONVERTERS, Conversion, ConversionError
from d2_deformable.engine import read_config
from yamls import CONFIGS

KINDS = sorted(set(CONVERTERS) - {"mmdetection"})  # the same as mmdet
SHALLOW = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
DCONV = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"]
SMALL = """
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.WIDTH_PER_GROUP 8
MODEL.RPN.CONV_DIMS [16] MODEL.ANCHOR_GENERATOR.SIZES [[16,32,64]] MODEL.ROI_HEADS.NUM_CLASSES 3
MODEL.RESNETS.REDUCED_CHANNELS 16
"""


def config(kind):
    if kind == "mxnet":
        file, keys = CONFIGS / "VOC-Detection/rfcn_R_50_dconv3_dpool.yaml", SMALL.split()
    else:
        file, keys = FPN, SHALLOW + (DCONV if kind == "detectron2" else [])
    return read_config(file, [*keys, "MODEL.DEVICE", "cpu"])


@cache
def model(kind):
    return build_model(config(kind)).state_dict()


@cache
def good(kind):
    """Tensors that the converter takes. Not for mmdetection, which has tests of its own."""
    if kind == "mxnet":
        return mxnet_networks.random_params(
            mxnet_networks.Network(
                "rfcn",
                True,
                (3, 4, 6, 3),
                8,
                16,
                16,
                hidden=24,
                classes=4,
                scales=(1, 2, 4),
                rois=9,
            )
        )
    if kind == "detectron2":
        return {
            name.replace("conv2.conv_offset", "conv2_offset"): v for name, v in model(kind).items()
        }
    if kind in ("timm", "torchvision"):
        return torchvision.models.resnet18().state_dict()
    return {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}


def convert(kind, tensors, metadata=None):
    cfg = config(kind)
    conversion = Conversion(tensors, model(kind), metadata=metadata)
    conversion.run(CONVERTERS[kind], cfg)
    return conversion


def damaged(tensors, rng):
    """Drop some tensors, or change their names, shapes or values."""
    tensors = dict(tensors)
    for name in rng.sample(sorted(tensors), min(len(tensors), rng.randint(1, 3))):
        value = tensors.pop(name)
        way = rng.randrange(4)
        if way == 1:
            tensors[name[::-1]] = value
        elif way == 2:
            tensors[rng.choice(["", ".", "_", "arg:", "module.", "x" * 999]) + name] = value
        elif way == 3:
            tensors[name] = reshaped(value, rng)
    return tensors


def reshaped(value, rng):
    shape = [rng.randint(0, 5) for _ in range(rng.randint(0, 5))]
    shapes = [(), (0,), (*value.shape, 2), (value.numel(),), shape]
    return rng.choice([value * float("nan"), *(value.new_zeros(shape) for shape in shapes)])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind):
    if kind != "mmdet":
        convert(kind, good(kind))
    rng, refused = random.Random(0), 0
    for _ in range(40):
        try:
            convert(kind, damaged(good(kind), rng))
        except ConversionError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 3000, error
    assert refused > 30


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (kind, source)
        for kind, source in itertools.permutations(KINDS, 2)
        if {kind, source} != {"timm", "torchvision"}  # the same names
    ],
)
def test_tensors_of_another_project(kind, source):
    with pytest.raises(ConversionError):
        convert(kind, good(source))


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 4, 5, 6)])
def test_names_of_caffe2_with_other_shapes(shape):
    names = "cls_score_w bbox_pred_b mask_fcn_logits_w conv1_w res2_0_branch2a_bn_s fpn_inner_x_w"
    with pytest.raises(ConversionError):
        convert("detectron2", {name: torch.zeros(shape) for name in names.split()})


def test_quantised():
    tensors = good("torchvision")
    weight = (tensors["layer1.0.conv1.weight"] * 100).to(torch.int8)
    with pytest.raises(ConversionError, match="would be made of torch.int8: is it quantised"):
        convert("torchvision", tensors | {"layer1.0.conv1.weight": weight})


@pytest.mark.parametrize("text", ["(" * 9999, "-" * 99_999 + "1", "a=\0", "model = 3", 3, "\ud800"])
def test_metadata_of_any_kind(text):
    with pytest.raises(ConversionError):
        convert("mmdet", good("mmdet"), {"cfg": text, "config": text, "CLASSES": 3})
