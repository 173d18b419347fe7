"""Convert ImageNet ResNets of timm into backbones.

timm's resnet18 to 152, resnext* and wide_resnet* have torchvision's layers and names. Its many
variants with another stem or other blocks do not, and are rejected.
"""

import json
import re
from pathlib import Path

from detectron2.config import CfgNode

from .conversion import Conversion, ConversionError
from .imagenet_resnet import IMAGENET_MEAN, IMAGENET_STD, convert_resnet

PLAIN = re.compile(r"([a-z]+_)?(resnet|resnext|wide_resnet)\d+(_\d+x\d+d|_2)?")
# {pattern of tensor names that identifies a variant: its description}
VARIANTS = {
    r"^conv1\.\d": "a stem of several convolutions (timm's c, d, s and t variants)",
    r"\.(se|eca|attn)\.": "attention in its blocks (seresnet, ecaresnet, resnetrs, ...)",
    r"^(stem|stages|blocks)\.": "another architecture",
}
# Variants that pool where the plain network has a stride. Their tensors are the same.
POOLING = re.compile(r"resnet(blur|aa)|resnext(blur|aa)|_(blur|aa)")


def convert(conversion: Conversion, cfg: CfgNode) -> None:
    """Convert plain ResNets, ResNeXts and wide ResNets of timm, see `convert_resnet`.

    Mean and std of the images come from the config.json beside the file, as on the Hugging Face
    hub. Without one they are those of ImageNet, which timm's plain ResNets are trained with.

    Raises:
        ConversionError: the network is a variant with other layers, according to its tensors or
            config.json. resnetblur and resnetaa have the same tensors as the plain network; without
            a config.json they are recognised only by the name of the file.
    """
    settings = _read_config(conversion.file)
    architecture = settings.get("architecture")
    if architecture and not PLAIN.fullmatch(str(architecture).partition(".")[0]):
        raise ConversionError(_refusal(f"is a {architecture}, according to its config.json"))
    if not architecture:
        conversion.assumptions.append(
            "there is no config.json beside the file: assumed a plain ResNet trained on images "
            "with ImageNet's mean and std; resnetblur and resnetaa have the same tensors and would "
            "compute something else here"
        )
    if conversion.file and POOLING.search(conversion.file.name):
        raise ConversionError(_refusal("has anti-aliased strides, according to its name"))
    for name, value in conversion.source.items():
        for pattern, what in VARIANTS.items():
            if re.search(pattern, name):
                raise ConversionError(_refusal(f"has {what}: {name}"))
        if re.search(r"downsample\.[1-9]\.weight$", name) and value.ndim == 4:
            raise ConversionError(_refusal(f"averages in its shortcuts (d variants): {name}"))
    if "bn1.weight" in conversion.source and "bn1.running_mean" not in conversion.source:
        raise ConversionError(_refusal("has group normalisation, or another without statistics"))
    images = settings.get("pretrained_cfg", settings)
    convert_resnet(
        conversion,
        cfg,
        mean=_three_numbers(images.get("mean", IMAGENET_MEAN)),
        std=_three_numbers(images.get("std", IMAGENET_STD)),
    )


def _refusal(what: str) -> str:
    return f"it {what}; only plain resnet, resnext and wide_resnet of timm fit Detectron2's ResNet"


def _read_config(file: Path | None) -> dict:
    config = file.with_name("config.json") if file else None
    if config is None or not config.is_file():
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{config}, beside it, is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("pretrained_cfg", {}), dict):
        raise ConversionError(f"{config}, beside it, is not timm's: no architecture")
    return content


def _three_numbers(values) -> list[float]:
    if not (isinstance(values, (list, tuple)) and len(values) == 3):
        raise ConversionError(f"config.json has {values} for mean or std; expected three numbers")
    return [float(value) for value in values]
