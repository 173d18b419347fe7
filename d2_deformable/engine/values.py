"""The values that the keys of a config may have, where Detectron2 fails late or not at all."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from numbers import Real

import torch


@dataclass(frozen=True)
class Rule:
    """allows: whether a value is allowed; of a list, each value in it. expected: in words."""

    allows: Callable[[object], bool]
    expected: str


def _is_number(value, kind=Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and -math.inf < value < math.inf


def _whole(low: int) -> Rule:
    return Rule(lambda value: _is_number(value, int) and value >= low, f"{low} or more")


def _number(low: float) -> Rule:
    expected = f"a finite number, {low} or more"
    return Rule(lambda value: _is_number(value) and value >= low, expected)


def _one_of(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"one of {', '.join(map(repr, names))}")


def _is_device(value) -> bool:
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


POSITIVE = Rule(lambda value: _is_number(value) and value > 0, "a finite number above 0")
FINITE = Rule(_is_number, "a finite number")
SHARE = Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a share, 0 to 1")
LOSSES = _one_of("smooth_l1", "giou", "diou", "ciou")

# The last three are Detectron2 main's.
SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)

# Keys that the installed Detectron2 lacks are passed over.
RULES = {
    _whole(0): """
        DATALOADER.NUM_WORKERS MODEL.RESNETS.DEFORM_NUM_LAYERS MODEL.RESNETS.DEFORM_OFFSET_DILATION
        MODEL.RESNETS.REDUCED_CHANNELS MODEL.RETINANET.NUM_CONVS
        MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART MODEL.ROI_BOX_HEAD.NUM_CONV
        MODEL.ROI_BOX_HEAD.NUM_FC MODEL.ROI_MASK_HEAD.NUM_CONV
        INPUT.MIN_SIZE_TRAIN INPUT.MIN_SIZE_TEST
        OFFSET_HEALTH.ZERO_AFTER SOLVER.CHECKPOINT_MAX_TO_KEEP SOLVER.REFERENCE_WORLD_SIZE
        SOLVER.NUM_DECAYS SOLVER.WARMUP_ITERS TEST.EARLY_STOP_PATIENCE
    """,
    _whole(1): """
        DATALOADER.PREFETCH_FACTOR DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
        INPUT.MAX_SIZE_TEST INPUT.MAX_SIZE_TRAIN MODEL.FPN.OUT_CHANNELS
        MODEL.MIMIC.CROP_SIZE MODEL.MIMIC.NUM_ROIS MODEL.RESNETS.DEFORM_NUM_GROUPS
        MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.RES2_OUT_CHANNELS MODEL.RESNETS.RES5_DILATION
        MODEL.RESNETS.STEM_OUT_CHANNELS MODEL.RESNETS.WIDTH_PER_GROUP
        MODEL.RETINANET.NUM_CLASSES MODEL.RETINANET.TOPK_CANDIDATES_TEST
        MODEL.ROI_BOX_HEAD.CONV_DIM MODEL.ROI_BOX_HEAD.FC_DIM
        MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES
        MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        MODEL.ROI_HEADS.NUM_CLASSES MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS
        MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION
        MODEL.ROI_MASK_HEAD.CONV_DIM MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        MODEL.RPN.BATCH_SIZE_PER_IMAGE MODEL.RPN.POST_NMS_TOPK_TEST
        MODEL.RPN.POST_NMS_TOPK_TRAIN MODEL.RPN.PRE_NMS_TOPK_TEST
        MODEL.RPN.PRE_NMS_TOPK_TRAIN MODEL.SEM_SEG_HEAD.COMMON_STRIDE
        MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.SEM_SEG_HEAD.NUM_CLASSES SOLVER.CHECKPOINT_PERIOD
        SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER TEST.AUG.MAX_SIZE TEST.PRECISE_BN.NUM_ITER
    """,
    _number(0): """
        DATALOADER.REPEAT_THRESHOLD MODEL.MIMIC.LOSS_WEIGHT
        MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT
        MODEL.PROPOSAL_GENERATOR.MIN_SIZE
        MODEL.RESNETS.DEFORM_OFFSET_CLAMP MODEL.RESNETS.REDUCED_INIT_STD
        MODEL.RETINANET.FOCAL_LOSS_GAMMA MODEL.RETINANET.NMS_THRESH_TEST
        MODEL.RETINANET.SMOOTH_L1_LOSS_BETA MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT
        MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
        MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA MODEL.ROI_HEADS.NMS_THRESH_TEST
        MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT MODEL.RPN.BBOX_REG_LOSS_WEIGHT
        MODEL.RPN.LOSS_WEIGHT MODEL.RPN.NMS_THRESH MODEL.RPN.SMOOTH_L1_BETA
        MODEL.SEM_SEG_HEAD.LOSS_WEIGHT OFFSET_HEALTH.MAX_CONV OFFSET_HEALTH.MAX_OUTSIDE
        OFFSET_HEALTH.MAX_ROI OFFSET_HEALTH.MIN_CONV OFFSET_HEALTH.MIN_ROI SOLVER.BASE_LR
        SOLVER.BASE_LR_END SOLVER.GAMMA SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR SOLVER.WEIGHT_DECAY
    """,
    POSITIVE: """
        INPUT.CROP.SIZE MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS MODEL.ANCHOR_GENERATOR.SIZES
        MODEL.PIXEL_STD MODEL.RETINANET.BBOX_REG_WEIGHTS MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS MODEL.RPN.BBOX_REG_WEIGHTS
        SOLVER.CLIP_GRADIENTS.CLIP_VALUE TEST.KEYPOINT_OKS_SIGMAS
    """,
    FINITE: """
        MODEL.ANCHOR_GENERATOR.ANGLES MODEL.ANCHOR_GENERATOR.OFFSET MODEL.PIXEL_MEAN
        MODEL.RETINANET.FOCAL_LOSS_ALPHA MODEL.RETINANET.SCORE_THRESH_TEST
        MODEL.ROI_BOX_HEAD.DEFORM_GAMMA MODEL.ROI_HEADS.SCORE_THRESH_TEST
        MODEL.RPN.BOUNDARY_THRESH
    """,
    SHARE: """
        MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
        MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH MODEL.RETINANET.IOU_THRESHOLDS
        MODEL.RETINANET.PRIOR_PROB MODEL.ROI_BOX_CASCADE_HEAD.IOUS MODEL.ROI_HEADS.IOU_THRESHOLDS
        MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.RPN.IOU_THRESHOLDS MODEL.RPN.POSITIVE_FRACTION
    """,
    LOSSES: """
        MODEL.RETINANET.BBOX_REG_LOSS_TYPE MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE
        MODEL.RPN.BBOX_REG_LOSS_TYPE
    """,
    Rule(lambda n: _is_number(n, int) and n and n >= -1, "1 or more, or -1 for all"): """
        TEST.DETECTIONS_PER_IMAGE
    """,
    Rule(lambda n: isinstance(n, Real) and n > 0, "a number above 0, or inf"): """
        SOLVER.CLIP_GRADIENTS.NORM_TYPE
    """,
    Rule(lambda n: _is_number(n, int) and n < 2**63, "a whole number below 2^63"): """
        SEED TEST.EVAL_PERIOD VIS_PERIOD
    """,
    # To torchvision, -1 means the same as 0.
    Rule(lambda n: _is_number(n, int) and n >= -1, "1 or more, or 0 for as many as fill a bin"): """
        MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO
        MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO
    """,
    Rule(
        lambda x: x is None or _is_number(x) and x >= 0, "a finite number, 0 or more, or None"
    ): """
        SOLVER.BIAS_LR_FACTOR SOLVER.WEIGHT_DECAY_BIAS SOLVER.WEIGHT_DECAY_NORM
    """,
    Rule(lambda n: n in (-1, 0, 1), "-1, 0 or 1"): """
        MODEL.RETINANET.IOU_LABELS MODEL.ROI_HEADS.IOU_LABELS MODEL.RPN.IOU_LABELS
    """,
    Rule(_is_device, "'cpu', 'cuda' or 'cuda:1'"): "MODEL.DEVICE",
    _one_of("value", "norm"): "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
    _one_of("BGR", "RGB", "RGBA", "L", "YUV-BT.601", "HSV", "LAB", "YCbCr", "CMYK"): "INPUT.FORMAT",
    _one_of(*SAMPLERS): "DATALOADER.SAMPLER_TRAIN",
    _one_of("polygon", "bitmask"): "INPUT.MASK_FORMAT",
    _one_of("none", "horizontal", "vertical"): "INPUT.RANDOM_FLIP",
    _one_of("choice", "range"): "INPUT.MIN_SIZE_TRAIN_SAMPLING",
    _one_of("relative_range", "relative", "absolute", "absolute_range"): "INPUT.CROP.TYPE",
    _one_of("sum", "avg"): "MODEL.FPN.FUSE_TYPE",
    _one_of("res5", "p5"): "MODEL.FPN.TOP_BLOCK_IN_FEATURE",
    _one_of("", "LastLevelMaxPool", "LastLevelP6P7", "LastLevelP6"): "MODEL.FPN.TOP_BLOCK",
    _one_of("zero", "legacy"): "MODEL.RESNETS.DEFORM_BORDER",
    _one_of("random", "ohem"): "MODEL.ROI_HEADS.SAMPLING",
}


def check_values(cfg) -> None:
    """Check the values of keys that have a range or a set of names.

    Raises:
        ValueError: names the key, its value and what is expected.
    """
    for rule, keys in RULES.items():
        for key in keys.split():
            *section, name = key.split(".")
            node = reduce(lambda node, part: node.get(part, {}), section, cfg)
            if name in node and not all(map(rule.allows, _leaves(node[name]))):
                each = " for each" if isinstance(node[name], list | tuple) else ""
                raise ValueError(f"{key} is {node[name]!r}; expected {rule.expected}{each}")


def _leaves(value) -> Iterator:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value
