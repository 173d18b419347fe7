"""Convert checkpoints of msracver/Deformable-ConvNets, the networks released with the paper.

These are R-FCN, Faster R-CNN, FPN and DeepLab on ResNet v1 101 (or 50, 152), plain and deformable,
and the ImageNet network that they started from. Layers follow its
{rfcn,faster_rcnn,fpn,deeplab}/symbols.
Differences from this package:

- Images are RGB.
- Background is the first class of detectors there, and the last one here.
- RoI offsets are (dx, dy) there, and (dy, dx) here.
- The RPN has two scores per anchor there, background and object, and its anchors are ordered by
  aspect ratio, then by size; here it has one logit, and anchors are ordered by size first.
- Box outputs begin with four for the background there, which are never read.
- Box outputs predict normalised targets there; the copies called *_test do not.

Four differences remain that neither weights nor settings can remove. Images are resized by OpenCV
there. Final boxes within the last pixel of the image are one pixel wide there. Boxes are scaled to
the original image before the last NMS there, and after it here. FPN clips boxes to the image padded
to multiples of 32 there, and to the image itself here.
"""

import re

import torch
from torch import Tensor

from ...modeling import build_model
from .conversion import Conversion, ConversionError

# For each network, a tensor that tells it from those below.
HEADS = {
    "FPN": "arg:fpn_p5_weight",  # before Faster R-CNN, whose head it has
    "R-FCN": "arg:rfcn_cls_weight",
    "Faster R-CNN": "arg:fc_new_1_weight",
    "DeepLab": "arg:fc6_weight",
}
RATIOS = [0.5, 1.0, 2.0]
# Standard deviations of the box targets (dx, dy, dw, dh), BBOX_STDS of experiments/*/cfgs; means
# are 0. Detectron2 uses their reciprocals.
BOX_STDS = (0.1, 0.1, 0.2, 0.2)
# Keys that change shapes: the model is built again if the config has another value.
SHAPES = ("MODEL.RESNETS.DEFORM_NUM_GROUPS", "MODEL.RESNETS.DEFORM_MODULATED")
NORM = {
    "weight": "arg:{}_gamma",
    "bias": "arg:{}_beta",
    "running_mean": "aux:{}_moving_mean",
    "running_var": "aux:{}_moving_var",
}
BRANCHES = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}


def convert(conversion: Conversion, cfg) -> None:
    """Fill in `conversion` from the tensors of a .params file, as `read_mxnet_params` returns them.

    `conversion.settings` gets all keys that the network needs to compute the same as in MXNet. The
    sizes of the anchors and the number of detections are not in the file and remain those of `cfg`.

    Raises:
        ConversionError: the file is from another project, or from another network than the
            config's.
    """
    source = conversion.source
    if "arg:conv1_weight" not in source:
        raise ConversionError(
            f"no {'arg:conv1_weight'!r} among the {len(source)} tensors of the file (the first is "
            f"{next(iter(source), None)!r}): expected a checkpoint of msracver/Deformable-ConvNets"
        )
    network = next((name for name, head in HEADS.items() if head in source), "ImageNet")
    for key, value in _settings(source, network, cfg).items():
        conversion.setting(key, value)
    conversion.model = _model_tensors(conversion, cfg)

    backbone = _backbone(conversion, cfg.INPUT.FORMAT)
    if network == "ImageNet":
        trunk = (f"{backbone}stem.", f"{backbone}res")
        rest = (n for n in conversion.model if not n.startswith(trunk) or ".conv_offset." in n)
        conversion.initial(rest, "not part of the ImageNet network")
    elif network == "DeepLab":
        _deeplab(conversion)
    else:
        if network == "FPN":
            _pyramid(conversion, backbone.removesuffix("bottom_up."))
        else:
            _put_layer(conversion, f"{backbone}reduction.", "conv_new_1")
        _rpn(conversion, cfg, "rpn_conv" if network == "FPN" else "rpn_conv_3x3")
        bins = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION**2
        (_rfcn if network == "R-FCN" else _faster_rcnn)(conversion, bins)
    conversion.unused(("arg:fc1000_weight", "arg:fc1000_bias"), "ImageNet classifier")


# ---- Settings ------------------------------------------------------------------------------------


def _settings(source, network: str, cfg) -> dict:
    mean = [103.06, 115.90, 123.15]  # BGR, network.PIXEL_MEANS of experiments/*/cfgs
    settings = {
        "MODEL.PIXEL_MEAN": mean if cfg.INPUT.FORMAT == "BGR" else mean[::-1],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.RESNETS.STEM_POOL_CEIL": True,
    }
    if network == "ImageNet":
        return settings
    settings["MODEL.RESNETS.RES5_DILATION"] = 1 if network == "FPN" else 2
    offsets = [name for name in source if name.endswith("_branch2b_offset_bias")]
    if offsets:
        settings |= {
            "MODEL.RESNETS.DEFORM_BORDER": "legacy",
            "MODEL.RESNETS.DEFORM_NUM_GROUPS": source[offsets[0]].numel() // 18,
            "MODEL.RESNETS.DEFORM_OFFSET_DILATION": 1 if network in ("DeepLab", "FPN") else 2,
            "MODEL.RESNETS.DEFORM_OFFSET_CLAMP": 0.0,
            "MODEL.RESNETS.DEFORM_MODULATED": False,
        }
    if network == "DeepLab":
        return settings
    settings |= {
        "MODEL.ANCHOR_GENERATOR.NAME": "RoundedAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [RATIOS],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.PROPOSAL_GENERATOR.NAME": "LegacyRPN",
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
        "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 12000 if network == "FPN" else 6000,
        "MODEL.RPN.NMS_THRESH": 0.7,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 2000 if network == "FPN" else 300,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [1 / std for std in BOX_STDS],
        "MODEL.ROI_BOX_HEAD.ROUND_ROIS": True,
    }
    if network == "FPN":
        settings["MODEL.FPN.TOP_BLOCK"] = "LastLevelP6"
        settings["MODEL.FPN.TOP_BLOCK_IN_FEATURE"] = "res5"
        settings["MODEL.FPN.FUSE_TYPE"] = "sum"
    deformable = ("offset_weight", "offset_p2_weight", "rfcn_cls_offset_t_weight")
    if any(f"arg:{name}" in source for name in deformable):
        settings["MODEL.ROI_BOX_HEAD.DEFORM_GAMMA"] = 0.1
        settings["MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART"] = 4
    elif network != "R-FCN":
        settings["MODEL.ROI_HEADS.NAME"] = "DeformROIHeads"
        settings["MODEL.ROI_BOX_HEAD.POOLER_TYPE"] = "LegacyROIPool"
    return settings


def _model_tensors(conversion: Conversion, cfg):
    """Tensors of the model that is built from `cfg` with the settings."""
    with_settings = cfg.clone()
    with_settings.defrost()
    for key in SHAPES:
        if key in conversion.settings:
            with_settings.merge_from_list([key, conversion.settings[key]])
    if with_settings == cfg:
        return conversion.model
    with_settings.MODEL.DEVICE = "cpu"
    try:
        return build_model(with_settings).state_dict()
    except ValueError as error:
        raise ConversionError(f"the file's offsets do not fit the config: {error}") from error


# ---- Layers --------------------------------------------------------------------------------------


def _backbone(conversion: Conversion, image_format: str) -> str:
    """Fill the ResNet, and return the prefix of its names."""
    stems = [name for name in conversion.model if name.endswith("stem.conv1.weight")]
    if not stems:
        raise ConversionError(
            "the model of the config has no ResNet, but the file has; use a config with "
            "MODEL.BACKBONE.NAME build_deform_resnet_backbone"
        )
    prefix = stems[0].removesuffix("stem.conv1.weight")
    bgr = image_format == "BGR"
    conversion.put(
        stems[0],
        "arg:conv1_weight",
        using=(lambda weight: weight.flip(1)) if bgr else None,
        note="RGB to BGR" if bgr else "",
    )
    _norm(conversion, f"{prefix}stem.conv1.norm.", "bn_conv1")
    pattern = re.compile(rf"{re.escape(prefix)}res(\d)\.(\d+)\.(shortcut|conv[123])\.weight")
    for match in filter(None, map(pattern.fullmatch, conversion.model)):
        stage, block, conv = match.groups()
        unit = f"{stage}{_unit(conversion.source, stage, int(block))}_branch{BRANCHES[conv]}"
        layer = match[0].removesuffix("weight")
        conversion.put(match[0], f"arg:res{unit}_weight")
        _norm(conversion, f"{layer}norm.", f"bn{unit}")
        if f"arg:res{unit}_offset_weight" in conversion.source:
            _put_layer(conversion, f"{layer}conv_offset.", f"res{unit}_offset")
    return prefix


def _unit(source, stage: str, block: int) -> str:
    """Name of a block in the file: a, b, c, d, ..., or in long stages a, b1, b2, b3, ..."""
    letter = "abcdefghijklmnopqrstuvwxyz"[min(block, 25)]
    numbered = f"b{block}"
    return numbered if f"arg:res{stage}{numbered}_branch2a_weight" in source else letter


def _norm(conversion: Conversion, prefix: str, layer: str) -> None:
    for ours, theirs in NORM.items():
        conversion.put(prefix + ours, theirs.format(layer))
    conversion.initial([f"{prefix}num_batches_tracked"], "count of training steps")


def _put_layer(conversion: Conversion, prefix: str, layer: str, using=None, note="") -> None:
    """Fill weight and bias; `using` takes tensors whose rows are the layer's outputs."""
    for part in ("weight", "bias"):
        conversion.put(prefix + part, f"arg:{layer}_{part}", using=using, note=note)


def _rows(x: Tensor, *sizes: int) -> Tensor:
    """Reshape the outputs of a layer to (-1, *sizes, ...)."""
    group = torch.Size(sizes).numel()
    if len(x) % group:
        raise ConversionError(
            f"a layer of {len(x)} outputs cannot be divided into groups of {group}; use a config "
            "with the source's MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"
        )
    return x.unflatten(0, (-1, *sizes))


def _pyramid(conversion: Conversion, prefix: str) -> None:
    for level in (2, 3, 4, 5):
        _put_layer(conversion, f"{prefix}fpn_lateral{level}.", f"fpn_p{level}_1x1")
        _put_layer(conversion, f"{prefix}fpn_output{level}.", f"fpn_p{level}")
    _put_layer(conversion, f"{prefix}top_block.p6.", "fpn_p6")


def _rpn(conversion: Conversion, cfg, conv: str) -> None:
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]  # of each level
    num_anchors = conversion.source["arg:rpn_cls_score_bias"].numel() // 2
    if num_anchors != len(RATIOS) * len(sizes) or list(sizes) != sorted(sizes):
        raise ConversionError(
            f"the RPN of the file has {num_anchors} anchors, {len(RATIOS)} aspect ratios of "
            f"{num_anchors / len(RATIOS):g} sizes, but MODEL.ANCHOR_GENERATOR.SIZES is "
            f"{cfg.MODEL.ANCHOR_GENERATOR.SIZES}; give that many per level in ascending order, its "
            "stride times the source's ANCHOR_SCALES"
        )
    order = torch.arange(num_anchors).view(len(RATIOS), len(sizes)).t().flatten()
    head = "proposal_generator.rpn_head."
    _put_layer(conversion, f"{head}conv.", conv)
    _put_layer(
        conversion,
        f"{head}objectness_logits.",
        "rpn_cls_score",
        using=lambda x: (x[num_anchors:] - x[:num_anchors])[order],
        note="object minus background; anchors by size",
    )
    _put_layer(
        conversion,
        f"{head}anchor_deltas.",
        "rpn_bbox_pred",
        using=lambda x: _rows(x, 4)[order].flatten(0, 1),
        note="anchors by size",
    )


def _rfcn(conversion: Conversion, bins: int) -> None:
    predictor = "roi_heads.box_predictor."
    _put_layer(
        conversion,
        f"{predictor}cls_score.score_maps.",
        "rfcn_cls",
        using=lambda x: _rows(x, bins).roll(-1, 0).flatten(0, 1),
        note="background last",
    )
    _put_box_layer(conversion, f"{predictor}bbox_pred.score_maps.", "rfcn_bbox", bins)
    if "arg:rfcn_cls_offset_t_weight" in conversion.source:
        _put_layer(
            conversion,
            f"{predictor}cls_score.offset_maps.",
            "rfcn_cls_offset_t",
            using=lambda x: _rows(x, 2, bins).roll(-1, 0).flip(1).flatten(0, 2),
            note="background last; (dx, dy) to (dy, dx)",
        )
        _put_layer(
            conversion,
            f"{predictor}bbox_pred.offset_maps.",
            "rfcn_bbox_offset_t",
            using=lambda x: _rows(x, bins).flip(0).flatten(0, 1),
            note="(dx, dy) to (dy, dx)",
        )


def _faster_rcnn(conversion: Conversion, bins: int) -> None:
    for i in (1, 2):
        _put_layer(conversion, f"roi_heads.box_head.fc{i}.", f"fc_new_{i}")
    _put_layer(
        conversion,
        "roi_heads.box_predictor.cls_score.",
        "cls_score",
        using=lambda x: x.roll(-1, 0),
        note="background last",
    )
    _put_box_layer(conversion, "roi_heads.box_predictor.bbox_pred.", "bbox_pred", 1)
    layers = {"offset": ""} | {f"offset_p{level}": f"{level - 2}." for level in (2, 3, 4, 5)}
    for name, place in layers.items():
        if f"arg:{name}_weight" not in conversion.source:
            continue
        _put_layer(
            conversion,
            f"roi_heads.box_pooler.roi_pool.{place}offset_fc.",
            name,
            using=lambda x: _rows(x, bins).flip(0).flatten(0, 1),
            note="(dx, dy) to (dy, dx)",
        )


def _put_box_layer(conversion: Conversion, prefix: str, layer: str, bins: int) -> None:
    """Fill a layer of box deltas, whose rows are (class, coordinate, bin) with background first."""
    stds = torch.tensor(BOX_STDS)[:, None]

    def unnormalised(x, factor):
        x = _rows(x.double(), 4, bins)
        return (x * factor.view(4, *[1] * (x.dim() - 2))).flatten(0, 2)

    for part in ("weight", "bias"):
        name, test = f"arg:{layer}_{part}", f"arg:{layer}_{part}_test"
        if name in conversion.source:
            conversion.put(
                prefix + part, name, using=lambda x: x[4 * bins :], note="without background"
            )
            if test not in conversion.source:
                continue
            twin = unnormalised(conversion.source[name], stds)
            given = conversion.source[test].double()
            if given.shape != twin.shape or not torch.allclose(given, twin, rtol=1e-3, atol=1e-6):
                raise ConversionError(
                    f"{test!r} is not {name!r} times {BOX_STDS}, as the released code writes it "
                    "beside it; the file mixes two trainings, or was trained with other BBOX_STDS"
                )
            conversion.unused([test], f"{name} times {BOX_STDS}, which the model applies")
        else:
            conversion.put(
                prefix + part,
                test,
                using=lambda x: unnormalised(x, 1 / stds)[4 * bins :],
                note=f"without background; divided by {BOX_STDS}",
            )


def _deeplab(conversion: Conversion) -> None:
    _put_layer(conversion, "sem_seg_head.hidden.", "fc6")
    _put_layer(conversion, "sem_seg_head.predictor.", "score")
    name = "arg:upsampling_weight"
    kernel = conversion.source.get(name)
    if kernel is None:
        return
    side = 1 - (torch.arange(32) - 15.5).abs() / 16
    if kernel.shape[1:] != (1, 32, 32) or not torch.allclose(
        kernel.double(), torch.outer(side, side).double().expand_as(kernel), atol=1e-3
    ):
        raise ConversionError(
            f"{name!r} {tuple(kernel.shape)} is not the bilinear interpolation by 16 of the "
            "released code; DeepLabHead supports no other upsampling"
        )
    conversion.unused([name], "bilinear interpolation by 16, which the head computes")
