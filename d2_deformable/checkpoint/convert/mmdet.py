"""Convert Faster and Mask R-CNN with FPN of mmdetection 2.x and 3.x, plain and deformable.

Besides the names, they differ from Detectron2's networks as follows:

- The mask of a modulated convolution is sigmoid(mask) there and 2 * sigmoid(mask) here, so the
  weight of the convolution is halved, which is exact.
- Deformable RoI pooling has its own sampling and one set of offset layers per level: it becomes
  POOLER_TYPE "DeformROIAlign" (dpool) or "ModulatedDeformROIAlign" (mdpool). Its offsets are x
  first.
- With style "pytorch", images are RGB and a block has its stride in the 3x3 convolution. With style
  "caffe", images are BGR and the stride is in the first 1x1 convolution. The weights do not tell
  which; the config in the file's metadata does.

Source: mmdetection 3.3.0 (configs/_base_/models, models/), mmcv 2.2.0 (ops/).
"""

import re

import torch
from torch import Tensor

from .conversion import Conversion, ConversionError
from .mmdet_config import lookup, read_config


def _counted_from(first: int, name: str):
    """Make a replacement for re.sub: `name` and the matched number, increased by `first`."""
    return lambda match: f"{name}{int(match[1]) + first}"


# Renaming rules, applied in this order.
NAMES = [
    (r"^backbone\.(conv1|bn1)\.", r"backbone.bottom_up.stem.\1."),
    (r"^backbone\.layer(\d)", _counted_from(1, "backbone.bottom_up.res")),  # theirs count from 1
    (r"\.conv2_offset\.", ".conv2.conv_offset."),  # the name in mmcv's first versions
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^neck\.lateral_convs\.(\d)\.conv", _counted_from(2, "backbone.fpn_lateral")),
    (r"^neck\.fpn_convs\.(\d)\.conv", _counted_from(2, "backbone.fpn_output")),
    (r"^rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^roi_head\.bbox_roi_extractor\.roi_layers\.", "roi_heads.box_pooler.roi_pool."),
    (r"^roi_head\.bbox_head\.shared_fcs\.(\d)", _counted_from(1, "roi_heads.box_head.fc")),
    (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"^roi_head\.mask_head\.convs\.(\d)\.conv", _counted_from(1, "roi_heads.mask_head.mask_fcn")),
    (r"^roi_head\.mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"^roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_head.predictor."),
]
# Tensors of every such network.
NEEDED = (
    "backbone.conv1.weight",
    "neck.lateral_convs.0.conv.weight",
    "rpn_head.rpn_cls.weight",
    "roi_head.bbox_head.fc_cls.weight",
)
LAST_OFFSET_LAYER = re.compile(r"roi_heads\.box_pooler\.roi_pool\.\d\.offset_fc\.4\.")
EXAMPLE = "COCO-Detection/faster_rcnn_R_50_FPN_1x"


def convert(conversion: Conversion, cfg) -> None:
    """Convert mmdetection's Faster or Mask R-CNN with FPN for the model of `cfg`.

    Raises:
        ConversionError: the file is from an unsupported network, from mmdetection 1.x, or from
            another network than that of `cfg`; the message says which keys to change.
    """
    settings = read_config(conversion.metadata)
    _check_network(conversion, settings)
    names = {name: _renamed(name) for name in conversion.source}
    pooler = _check_pooling(conversion, cfg)
    _check_convolutions(conversion, names)
    for name, target in names.items():
        if target not in conversion.model:
            continue  # an error, unless it is marked as unused below
        if cfg.MODEL.RESNETS.DEFORM_MODULATED and _is_deformable(target, conversion.model):
            conversion.put(target, name, using=_halved, note="halved: the mask is 2 * sigmoid")
        elif LAST_OFFSET_LAYER.match(target):
            conversion.put(target, name, using=_y_first, note="rows of dy before those of dx")
        else:
            conversion.put(target, name)
    counts = (name for name in names if name.endswith("num_batches_tracked"))
    conversion.unused(counts, "only counts training steps")
    averages = (name for name in names if name.startswith("ema_"))
    conversion.unused(averages, "the other half of a moving average of weights")
    _put_input(conversion, settings)
    _put_detection(conversion, settings, pooler)


def _renamed(name: str) -> str:
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _is_deformable(name: str, model) -> bool:
    """Return True if `name` is the weight of a deformable convolution."""
    return name.removesuffix("weight") + "conv_offset.weight" in model


def _halved(weight: Tensor) -> Tensor:
    return weight / 2


def _y_first(parameter: Tensor) -> Tensor:
    """Reorder rows of dx, then of dy, to rows of dy, then of dx."""
    return torch.cat(parameter.chunk(2)[::-1])


# ---- Checks of the network -----------------------------------------------------------------------


def _check_network(conversion: Conversion, settings) -> None:
    source = conversion.source
    version = str(conversion.metadata.get("mmdet_version", ""))
    if "bbox_head.fc_cls.weight" in source or version.startswith(("0.", "1.")):
        raise ConversionError(
            "the file is from mmdetection before 2.0, where the background is the first class and "
            "boxes include their last pixel; upgrade it to 2.0 with mmdetection's own "
            "tools/model_converters/upgrade_model_version.py"
        )
    if "roi_head.bbox_head.0.fc_cls.weight" in source:
        raise ConversionError(
            "the file is a Cascade R-CNN, which in mmdetection averages the logits of its stages, "
            "while Detectron2 averages their probabilities: it would detect something else here"
        )
    for name in NEEDED:
        if name not in source:
            raise ConversionError(
                f"the file has no {name!r}: it is not a Faster or Mask R-CNN with FPN of "
                "mmdetection 2.x or 3.x"
            )
    if "backbone.fpn_lateral2.weight" not in conversion.model:
        raise ConversionError(
            f"the file's network has an FPN and the config's has none; use one like {EXAMPLE}.yaml"
        )
    anchors = len(lookup(settings, "rpn_head.anchor_generator.ratios", RATIOS))
    if len(lookup(settings, "rpn_head.anchor_generator.scales", SCALES)) != 1:
        raise ConversionError(
            "the file's RPN has anchors of several scales per level, ordered differently from "
            "Detectron2's; only one scale per level is supported"
        )
    outputs = source["rpn_head.rpn_cls.weight"].shape[0]
    if outputs != anchors:
        raise ConversionError(
            f"the file's RPN gives {outputs} scores per position; expected one for each of the "
            f"{anchors} anchors (sigmoid, one scale per level)"
        )


def _check_convolutions(conversion: Conversion, names) -> None:
    """Check that the same convolutions are deformable, with the same offset layers."""

    def offset_layers(tensors):
        return {
            name: tuple(tensor.shape)
            for name, tensor in tensors.items()
            if name.endswith("conv2.conv_offset.weight")
        }

    theirs = offset_layers({names[name]: tensor for name, tensor in conversion.source.items()})
    if theirs == offset_layers(conversion.model):
        return
    stages = [any(f".res{i}." in name for name in theirs) for i in range(2, 6)]
    keys = [f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {stages}"]
    modulated = False
    if theirs:
        channels, inputs = next(iter(theirs.values()))[:2]
        # A group has 18 channels, or 27 with masks; the groups divide the input channels.
        modulated = channels % 18 != 0 or inputs % (channels // 18) != 0
        groups = channels // (27 if modulated else 18)
        keys += [f"DEFORM_MODULATED {modulated}", f"DEFORM_NUM_GROUPS {groups}"]
    part = "_mdconv_c3-c5" if modulated else "_dconv_c3-c5" if theirs else ""
    raise ConversionError(
        f"the file has {len(theirs) or 'no'} deformable convolutions, but the config has others: "
        f"set {', '.join(keys)} and the file's depth, or use a config like {EXAMPLE}{part}.yaml"
    )


def _check_pooling(conversion: Conversion, cfg) -> str:
    """Return the POOLER_TYPE of the file's box head, after checking that the config has it."""
    prefix = "roi_head.bbox_roi_extractor.roi_layers.0."
    pooler, part = "ROIAlignV2", ""
    if f"{prefix}offset_fc.0.weight" in conversion.source:
        pooler, part = "DeformROIAlign", "_dpool_mmdet"
    if f"{prefix}mask_fc.0.weight" in conversion.source:
        pooler, part = "ModulatedDeformROIAlign", "_mdpool_mmdet"
    given = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE
    if given == pooler or not part and not given.endswith(("DeformROIAlign", "DeformROIPool")):
        return pooler
    heads = "DeformROIHeads" if part else "StandardROIHeads"
    raise ConversionError(
        f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is {given}, but the file's network pools as {pooler}"
        + (", mmcv's sampling with offset layers for each level" if part else "")
        + f": set it, and MODEL.ROI_HEADS.NAME {heads}, or use a config like "
        f"{EXAMPLE}{part}.yaml"
    )


# ---- Settings ------------------------------------------------------------------------------------

RATIOS = [0.5, 1.0, 2.0]
SCALES = [8]
STRIDES = [4, 8, 16, 32, 64]
PIXELS = {
    "pytorch": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "caffe": ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]),
}


def _put_input(conversion: Conversion, settings) -> None:
    style = lookup(settings, "backbone.style", "pytorch")
    if not settings:
        conversion.assumptions.append(
            "the file holds no mmdetection config: assumed a network of style pytorch (RGB, stride "
            "in the 3x3 convolutions) with its usual anchors and thresholds; for one of style "
            "caffe set INPUT.FORMAT BGR, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and "
            "MODEL.RESNETS.STRIDE_IN_1X1 True in the YAML"
        )
    mean, std = PIXELS.get(style, PIXELS["pytorch"])
    mean, std = lookup(settings, "pixels.mean", mean), lookup(settings, "pixels.std", std)
    rgb = lookup(settings, "pixels.rgb", style == "pytorch")
    if "data_preprocessor.mean" in conversion.source:
        mean, std = (
            conversion.source[f"data_preprocessor.{name}"].flatten().tolist()
            for name in ("mean", "std")
        )
        names = ("data_preprocessor.mean", "data_preprocessor.std")
        conversion.unused(names, "written as MODEL.PIXEL_MEAN and PIXEL_STD")
    conversion.setting("INPUT.FORMAT", "RGB" if rgb else "BGR")
    conversion.setting("MODEL.PIXEL_MEAN", [float(value) for value in mean])
    conversion.setting("MODEL.PIXEL_STD", [float(value) for value in std])
    conversion.setting("MODEL.RESNETS.STRIDE_IN_1X1", style == "caffe")


def _put_detection(conversion: Conversion, settings, pooler: str) -> None:
    def weights(head, stds):
        stds = lookup(settings, f"{head}.bbox_coder.target_stds", stds)
        return [1 / std for std in stds]

    def test(key, value):
        return lookup(settings, f"test_cfg.{key}", value)

    scale = lookup(settings, "rpn_head.anchor_generator.scales", SCALES)[0]
    strides = lookup(settings, "rpn_head.anchor_generator.strides", STRIDES)
    ratios = lookup(settings, "rpn_head.anchor_generator.ratios", RATIOS)
    values = {
        "RESNETS.DEFORM_BORDER": "zero",
        "RESNETS.DEFORM_OFFSET_DILATION": 0,
        "RESNETS.DEFORM_OFFSET_CLAMP": 0.0,
        "ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
        "ANCHOR_GENERATOR.OFFSET": 0.0,
        "ANCHOR_GENERATOR.SIZES": [[stride * scale] for stride in strides],
        "ANCHOR_GENERATOR.ASPECT_RATIOS": [ratios],
        "RPN.BBOX_REG_WEIGHTS": weights("rpn_head", [1.0, 1.0, 1.0, 1.0]),
        "RPN.PRE_NMS_TOPK_TEST": test("rpn.nms_pre", 1000),
        "RPN.POST_NMS_TOPK_TEST": test("rpn.max_per_img", 1000),
        "RPN.NMS_THRESH": test("rpn.nms.iou_threshold", 0.7),
        "PROPOSAL_GENERATOR.MIN_SIZE": test("rpn.min_bbox_size", 0),
        "ROI_HEADS.SCORE_THRESH_TEST": test("rcnn.score_thr", 0.05),
        "ROI_HEADS.NMS_THRESH_TEST": test("rcnn.nms.iou_threshold", 0.5),
        "ROI_BOX_HEAD.POOLER_TYPE": pooler,
        "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
        "ROI_BOX_HEAD.BBOX_REG_WEIGHTS": weights("roi_head.bbox_head", [0.1, 0.1, 0.2, 0.2]),
    }
    if pooler != "ROIAlignV2":
        values["ROI_BOX_HEAD.DEFORM_GAMMA"] = 0.1
    if "roi_head.mask_head.conv_logits.weight" in conversion.source:
        values["ROI_MASK_HEAD.POOLER_TYPE"] = "ROIAlignV2"
        values["ROI_MASK_HEAD.POOLER_SAMPLING_RATIO"] = 0
        values["ROI_MASK_HEAD.POOLER_RESOLUTION"] = 14
    for key, value in values.items():
        conversion.setting(f"MODEL.{key}", value)
    conversion.setting("TEST.DETECTIONS_PER_IMAGE", test("rcnn.max_per_img", 100))
