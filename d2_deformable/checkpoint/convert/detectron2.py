"""Convert files of Detectron2's model zoo, and of Detectron, into plain or deformable models."""

import re

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import CfgNode

from ...layers import DeformConv2d
from ...modeling import build_model
from .conversion import Conversion, ConversionError

# Epsilon of Detectron2's FrozenBatchNorm2d, which takes (running_var + eps) ** -0.5.
FROZEN_BN_EPS = 1e-5
NOT_NEEDED = {
    r"(num_batches_tracked|_momentum)$": "training state",
    r"anchor_generator\.cell_anchors": "the config gives the anchors",
    r"^(fc1000|pred|linear)[._]": "ImageNet classifier",
    r"^(stem\.)?conv1[._]b(ias)?$": "Detectron has no bias there",
}
# Behaviour of Detectron2's own deformable layers, independent of the config.
DEFORM = {"DEFORM_BORDER": "zero", "DEFORM_OFFSET_DILATION": 0, "DEFORM_OFFSET_CLAMP": 0.0}


def convert(conversion: Conversion, cfg: CfgNode) -> None:
    """Convert a whole detector or its backbone, with the names of Detectron2 or of Caffe2.

    Offset layers that the file does not have are set to zero, so that the network computes the same
    as the plain one. Detectron2's modulated layers use sigmoid(mask), this package's use
    2 * sigmoid(mask): their weights are halved, which is exact.

    Raises:
        ConversionError: the file and the model of the config are different networks.
    """
    originals = {name: name for name in conversion.source}
    values = conversion.source
    if not any("." in name for name in values):
        values, originals = _from_caffe2(conversion)
    whole = any(_find(name, values) for name in conversion.model if "backbone." not in name)
    modulated = _modulated_layers(cfg)
    for name, value in conversion.model.items():
        plain, offset = re.subn(r"\.conv_offset\.", "_offset.", name)
        found = _find(plain, values) or _find(name, values)
        layer = name.removesuffix("weight")
        if found:
            halved = layer[:-1] in modulated and _find(f"{layer[:-1]}_offset.weight", values)
            conversion.put(
                name,
                originals[found],
                using=lambda _, x=values[found], halved=halved: x / 2 if halved else x,
                note="halved: 2 * sigmoid(mask) here" if halved else "",
            )
        elif offset:
            conversion.put(name, using=_zeros(value), note="zero: as without offsets")
        elif ".offset_fc." in name:  # only its last layer is zero
            conversion.put(name, using=lambda x=value: x, note="initial: offsets start at zero")
        elif name.endswith(".running_mean") and _is_affine(name, values):
            conversion.put(name, using=_zeros(value), note="affine in the file")
        elif name.endswith(".running_var") and _is_affine(name, values):
            if f"{name.removesuffix('running_var')}num_batches_tracked" in conversion.model:
                raise ConversionError(
                    "the file's normalisation layers are affine, without statistics: set "
                    f"MODEL.RESNETS.NORM to FrozenBN instead of {cfg.MODEL.RESNETS.NORM}"
                )
            one = torch.full_like(value, 1 - FROZEN_BN_EPS)
            conversion.put(name, using=lambda one=one: one, note="affine in the file")
        elif name.endswith(".num_batches_tracked"):
            conversion.initial([name], "count of training steps")
        elif not whole and not _is_trunk(name):
            conversion.initial([name], "the file holds a backbone only")
    if any(name.endswith("conv2_offset.weight") for name in values):
        for key, setting in DEFORM.items():
            conversion.setting(f"MODEL.RESNETS.{key}", setting)
    for pattern, why in NOT_NEEDED.items():
        old = [name for name in conversion.source if re.search(pattern, name)]
        conversion.unused(old, why)
        conversion.unused([originals[name] for name in values if re.search(pattern, name)], why)
    for key, name in (("MODEL.PIXEL_MEAN", "pixel_mean"), ("MODEL.PIXEL_STD", "pixel_std")):
        if name in values and name not in conversion.model:
            conversion.unused([originals[name]], f"{key}, see the settings")
            conversion.setting(key, values[name].flatten().tolist())


def _from_caffe2(conversion):
    """Rename to Detectron2's names: return the tensors, and the file's name of each, by these."""
    blobs = {k: v for k, v in conversion.source.items() if not k.endswith("_momentum")}
    try:
        return convert_c2_detectron_names(blobs)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ConversionError(
            "its names are neither Detectron2's nor Caffe2's, for example "
            f"{', '.join(list(conversion.source)[:3])}"
        ) from error


def _modulated_layers(cfg: CfgNode) -> set[str]:
    """Names of the modulated convolutions in the model of `cfg`, whichever key chose them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    layers = build_model(cfg).named_modules()
    return {name for name, m in layers if isinstance(m, DeformConv2d) and m.modulated}


def _find(name: str, values) -> str | None:
    """Find the longest suffix of `name`, starting after a dot, that is a name of the file."""
    while name and name not in values:
        name = name.partition(".")[2]
    return name or None


def _is_affine(name: str, values) -> bool:
    return _find(f"{name.rpartition('.')[0]}.weight", values) is not None


def _is_trunk(name: str) -> bool:
    """Return True for tensors of the ResNet itself, which every file has."""
    return re.match(r"backbone\.(bottom_up\.)?(stem|res\d)\.", name) is not None


def _zeros(value):
    return lambda: torch.zeros_like(value)
