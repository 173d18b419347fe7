"""Every key that Detectron2 would not check, or too late, is checked before a run."""

import re
from functools import reduce

import pytest
from detectron2.config import CfgNode, get_cfg

from d2_deformable import add_deformable_config
from d2_deformable.engine import check_settings, read_config
from d2_deformable.engine.values import RULES, check_values
from yamls import CONFIGS

KEYS = {key for keys in RULES.values() for key in keys.split()}
OF_MAIN = {
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES",
    "SOLVER.BASE_LR_END",
    "SOLVER.NUM_DECAYS",
}
# Numbers with a check of their own, or for which each value has a meaning.
OTHERS = {
    "VERSION",
    "GLOBAL.HACK",
    "MODEL.BACKBONE.FREEZE_AT",  # 0 and less freeze nothing
    "MODEL.RPN.CONV_DIMS",
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
    "MODEL.RESNETS.DEPTH",
    "SOLVER.STEPS",
    "TEST.AUG.MIN_SIZES",
    "TEST.BOX_AVERAGE.ITERATIONS",
    "TEST.BOX_AVERAGE.VOTE_IOU",
    "TEST.SOFT_NMS.SIGMA",
    "TEST.SOFT_NMS.MIN_SCORE",
    "MODEL_EMA.DECAY",
    "OFFSET_HEALTH.PERIOD",
}


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    return cfg


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def put(cfg, key, value):
    *section, name = key.split(".")
    reduce(getattr, section, cfg)[name] = value


def is_number(value):
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return type(value) in (int, float)


def test_every_number_has_a_rule(cfg):
    numbers = {key for key, value in leaves(cfg) if is_number(value)}
    assert numbers - KEYS == {key for key in OTHERS if key in dict(leaves(cfg))}
    assert KEYS - dict(leaves(cfg)).keys() <= OF_MAIN


@pytest.mark.parametrize("rule, key", [(r, k) for r, ks in RULES.items() for k in ks.split()])
def test_what_no_rule_allows_is_refused(cfg, rule, key):
    if key not in dict(leaves(cfg)):
        pytest.skip("a key of Detectron2 main")
    before = dict(leaves(cfg))[key]
    for bad in (float("nan"), "foo"):
        put(cfg, key, [bad] if isinstance(before, (list, tuple)) else bad)
        with pytest.raises(ValueError, match=f"^{re.escape(key)} is .*; expected "):
            check_values(cfg)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("INPUT.FORMAT", "XYZ", "'XYZ'; expected one of 'BGR', 'RGB'"),
        ("INPUT.MASK_FORMAT", "foo", "'foo'; expected one of 'polygon', 'bitmask'"),
        ("SOLVER.GAMMA", float("nan"), "nan; expected a finite number, 0 or more"),
        ("SOLVER.GAMMA", -0.1, "-0.1; expected a finite number, 0 or more"),
        ("SOLVER.WARMUP_FACTOR", float("inf"), "inf; expected a finite number"),
        ("SOLVER.BASE_LR", -1.0, "-1.0; expected a finite number"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full", "'full'; expected one of 'value', 'norm'"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "0; expected 1 or more, or -1 for all"),
        ("SOLVER.WARMUP_ITERS", -1, "-1; expected 0 or more"),
        ("INPUT.MIN_SIZE_TRAIN", (800, -1), r"\(800, -1\); expected 0 or more for each"),
        ("INPUT.MIN_SIZE_TRAIN", ("a",), r"\('a',\); expected 0 or more for each"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "expected a finite number above 0 for each"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [0]], "expected a finite number above 0 for each"),
        ("DATALOADER.SAMPLER_TRAIN", "foo", "'foo'; expected one of 'TrainingSampler'"),
        ("MODEL.DEVICE", "gpu", "'gpu'; expected 'cpu', 'cuda' or 'cuda:1'"),
        ("SEED", 2**63, "expected a whole number below 2"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", True, "True; expected 1 or more"),
    ],
)
def test_messages(cfg, key, value, expected):
    put(cfg, key, value)
    with pytest.raises(ValueError, match=f"^{re.escape(key)} is .*{expected}"):
        check_settings(cfg)


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.FORMAT", "RGBA"),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0.5),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", -1),
        ("SOLVER.BIAS_LR_FACTOR", None),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("SOLVER.WEIGHT_DECAY_NORM", None),
        ("TEST.DETECTIONS_PER_IMAGE", -1),
        ("TEST.EVAL_PERIOD", -1),
        ("VIS_PERIOD", -1),
    ],
)
def test_values_that_detectron2_gives_a_meaning(cfg, key, value):
    put(cfg, key, value)
    check_values(cfg)


def test_all_configs_pass():
    for file in sorted(CONFIGS.glob("**/*.yaml")):
        check_values(read_config(file))
