"""Convert ResNets of torchvision's layout, which timm shares, into backbones."""

import re

import torch
from detectron2.config import CfgNode

from .conversion import Conversion, ConversionError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
# (backbone | res5 of C4's head). (stem | resN.block). layer. parameter
NAME = re.compile(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)((?:stem|res\d\.\d+)\..+)")


def convert_resnet(
    conversion: Conversion, cfg: CfgNode, mean=IMAGENET_MEAN, std=IMAGENET_STD
) -> None:
    """Fill the ResNet of a model; other parts keep their initial values, and offsets are zero.

    The settings are those of the source: strides in the 3x3 convolutions, and RGB images with its
    mean and standard deviation, here in 0..255.

    Args:
        mean, std: mean and standard deviation of the source's images, RGB in 0..1.

    Raises:
        ConversionError: the file or the model of the config is not such a ResNet.
    """
    trunk = {name: match[1] for name in conversion.model if (match := NAME.fullmatch(name))}
    if not any(name.endswith("stem.conv1.weight") for name in trunk):
        raise ConversionError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} builds no ResNet with Detectron2's "
            "stem; use build_deform_resnet_backbone or build_deform_resnet_fpn_backbone"
        )
    if not any(name.endswith("running_mean") for name in trunk):
        raise ConversionError(
            f"MODEL.RESNETS.NORM {cfg.MODEL.RESNETS.NORM!r} has no running statistics, but the "
            "file's batch normalisation has: use FrozenBN, BN or SyncBN"
        )
    for name, inner in trunk.items():
        if "conv_offset." in inner:
            zeros = torch.zeros_like(conversion.model[name])
            conversion.put(name, using=lambda zeros=zeros: zeros, note="zero: as without offsets")
        elif not (
            inner.endswith("num_batches_tracked") and _source(inner) not in conversion.source
        ):
            conversion.put(name, _source(inner))
    conversion.initial(conversion.model, "not part of an ImageNet network")
    conversion.unused(
        [name for name in conversion.source if name.startswith("fc.")], "ImageNet classifier"
    )
    conversion.unused(
        [name for name in conversion.source if name.endswith("num_batches_tracked")],
        "count of training steps",
    )
    if not any(inner.startswith("res5.") for inner in trunk.values()):
        conversion.unused(
            [name for name in conversion.source if name.startswith("layer4.")],
            "the config's network ends before it",
        )
    conversion.setting("INPUT.FORMAT", "RGB")
    conversion.setting("MODEL.PIXEL_MEAN", [round(255 * value, 6) for value in mean])
    conversion.setting("MODEL.PIXEL_STD", [round(255 * value, 6) for value in std])
    conversion.setting("MODEL.RESNETS.STRIDE_IN_1X1", False)


def _source(inner: str) -> str:
    """Name in the file, e.g. bn1.bias for stem.conv1.norm.bias, and layer3.0.downsample.0.weight
    for res4.0.shortcut.weight."""
    name = inner.removeprefix("stem.")
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
