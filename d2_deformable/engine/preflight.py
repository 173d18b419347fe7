"""All checks of a run that are made before anything is built."""

import logging
from difflib import get_close_matches
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY

from ..config import add_deformable_config
from ..data import check_datasets, check_proposals
from ..evaluation import check_resolution
from ..evaluation.voc import METRICS
from ..layers.conversion import parse_modules
from ..modeling import DeformPoolerMixin, OHEMMixin, RFCNHeads
from ..modeling.meta_arch.fcos import check_has_fcos
from ..modeling.meta_arch.predicates import (
    cfg_supports_predict_raw,
    check_soft_nms,
    is_class_aware_rpn,
    is_detector,
    is_fcos,
    mimics,
)
from ..modeling.roi_heads import faster_rcnn, rfcn
from .ema import check_decay
from .offset_health import check_period
from .optimizer import parse_multipliers
from .schedule import check_schedule, learning_rate
from .values import check_values

# The pooler types that this package adds, and the heads that support them.
POOLER_READERS = dict.fromkeys(faster_rcnn.POOLER_TYPES, DeformPoolerMixin)
POOLER_READERS |= dict.fromkeys(rfcn.POOLER_TYPES, RFCNHeads)

logger = logging.getLogger(__name__)


def preflight(cfg, *, eval_only: bool = False, resume: bool = False) -> None:
    """Reject a run that would fail later, or that would not do what its settings seem to say.

    Warns if the warm-up takes more than half of a training.

    Args:
        cfg: a config whose DATASETS.CUSTOM are registered.
        eval_only: nothing is trained, so DATASETS.TRAIN is not needed.
        resume: weights come from OUTPUT_DIR, so MODEL.WEIGHTS is not needed.

    Raises:
        ValueError, FileNotFoundError: see `check_weights`, `check_datasets`, `check_proposals` and
            `check_settings`; random weights would be evaluated; or TensorBoard, which shows the
            pictures of VIS_PERIOD, is not installed.
    """
    if not resume:
        check_weights(cfg)
    check_datasets(cfg, cfg.DATASETS.TEST if eval_only else None)
    check_proposals(cfg, ("TEST",) if eval_only else ("TRAIN", "TEST"))
    if eval_only and not resume and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "Evaluation would use random weights: give MODEL.WEIGHTS a checkpoint, or resume "
            "(--resume), which takes the last one of OUTPUT_DIR"
        )
    check_settings(cfg)
    if not eval_only:
        _check_pictures(cfg)
        _warn_of_long_warmup(cfg.SOLVER)


def check_settings(cfg) -> None:
    """Reject settings that would not train what they seem to say.

    Raises:
        ValueError: one of the following.

            * A value is out of its range, or none of a set of names, see `check_values`.
            * MODEL.WEIGHTS is empty while MODEL.BACKBONE.FREEZE_AT or FrozenBN freezes layers, and
              MODEL.BACKBONE.ALLOW_FROZEN_RANDOM is False.
            * The chosen backbone or heads do not read a key of this package that is set.
            * A ClassAwareRPN has settings of a second stage.
            * Settings of MODEL.MIMIC are given for a network that does not mimic.
            * Only one of the two keys of fixed proposals is set.
            * The network, its backbone or a head has a name that is not registered, or is FCOS,
              which Detectron2 0.5 lacks.
            * The schedule of SOLVER cannot be built, see `check_schedule`.
            * OFFSET_HEALTH.PERIOD, MODEL_EMA.DECAY or an entry of SOLVER.LR_MULTIPLIERS or of
              MODEL.DEFORM_MODULES is invalid. Whether an entry matches a parameter or a module
              shows only when the optimizer or the model is built.
            * A setting of evaluation is invalid, which would otherwise show only after training.
    """
    check_values(cfg)
    _check_names(cfg.MODEL)
    if is_fcos(cfg):
        check_has_fcos()
    check_period(cfg.OFFSET_HEALTH.PERIOD)
    check_decay(cfg.MODEL_EMA.DECAY)
    parse_multipliers(cfg.SOLVER.LR_MULTIPLIERS)
    parse_modules(cfg.MODEL.DEFORM_MODULES)
    check_schedule(cfg.SOLVER)
    check_evaluation(cfg)
    model = cfg.MODEL
    frozen = []
    if model.BACKBONE.FREEZE_AT > 0:
        frozen.append(f"MODEL.BACKBONE.FREEZE_AT {model.BACKBONE.FREEZE_AT}")
    if model.RESNETS.NORM == "FrozenBN":
        frozen.append("MODEL.RESNETS.NORM FrozenBN")
    if frozen and not model.WEIGHTS and not model.BACKBONE.ALLOW_FROZEN_RANDOM:
        raise ValueError(
            f"MODEL.WEIGHTS is empty, so what {' and '.join(frozen)} freezes would stay random. "
            "Give MODEL.WEIGHTS a pre-trained checkpoint; or train from scratch with "
            "MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN; or set "
            "MODEL.BACKBONE.ALLOW_FROZEN_RANDOM True if this is what you want"
        )
    builder = BACKBONE_REGISTRY.get(model.BACKBONE.NAME)
    # Only the module of a builder function is known, not which keys it reads. None of Detectron2's
    # reads these keys, while one of a user may.
    is_detectron2s = builder.__module__.split(".")[0] == "detectron2"
    if is_detectron2s and (model.RESNETS.DEFORM_NUM_LAYERS or model.RESNETS.DEFORM_LAYERS):
        raise ValueError(
            f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME} does not read MODEL.RESNETS."
            "DEFORM_NUM_LAYERS and DEFORM_LAYERS; choose build_deform_resnet_backbone, "
            "build_deform_resnet_fpn_backbone or build_aligned_inception_resnet_backbone"
        )
    if is_detectron2s and model.FPN.TOP_BLOCK:
        raise ValueError(
            f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME} does not read MODEL.FPN.TOP_BLOCK "
            f"{model.FPN.TOP_BLOCK}; choose build_deform_resnet_fpn_backbone"
        )
    if is_class_aware_rpn(cfg):
        _check_no_second_stage(cfg)
    if not mimics(cfg) and model.MIMIC != _defaults().MODEL.MIMIC:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} does not read MODEL.MIMIC; choose "
            "MimicRCNN for R-CNN feature mimicking"
        )
    _check_proposal_keys(cfg)
    heads = ROI_HEADS_REGISTRY.get(model.ROI_HEADS.NAME)
    other = isinstance(heads, type) and not issubclass(heads, OHEMMixin)
    if model.ROI_HEADS.SAMPLING != "random" and other:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {model.ROI_HEADS.NAME} does not read MODEL.ROI_HEADS.SAMPLING "
            f"{model.ROI_HEADS.SAMPLING}; choose RFCNHeads, DeformROIHeads or DeformCascadeROIHeads"
        )
    pooler = model.ROI_BOX_HEAD.POOLER_TYPE
    readers = ("DeformROIPool", "ModulatedDeformROIPool")
    if model.ROI_BOX_HEAD.DEFORM_OFFSETS_PER_LEVEL and pooler not in readers:
        raise ValueError(
            "MODEL.ROI_BOX_HEAD.DEFORM_OFFSETS_PER_LEVEL is True, but POOLER_TYPE is "
            f"{pooler}; only {' and '.join(readers)} read it"
        )
    reader = POOLER_READERS.get(pooler)
    if reader and isinstance(heads, type) and not issubclass(heads, reader):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {model.ROI_HEADS.NAME} does not support "
            f"MODEL.ROI_BOX_HEAD.POOLER_TYPE {pooler}; choose "
            + ("RFCNHeads" if reader is RFCNHeads else "DeformROIHeads or DeformCascadeROIHeads")
        )


def check_weights(cfg) -> None:
    """Check that the file of MODEL.WEIGHTS exists, before data are read and a model is built.

    Raises:
        FileNotFoundError: it does not.
    """
    weights = cfg.MODEL.WEIGHTS
    # The query after "?" is not part of the name (Detectron2 main).
    if weights and "://" not in weights and not Path(weights.partition("?")[0]).is_file():
        raise FileNotFoundError(
            f"{weights}: no such file, from MODEL.WEIGHTS. Give a checkpoint; for networks without "
            "published ImageNet weights, `d2-deformable train imagenet` writes backbone.pth"
        )


def _check_pictures(cfg) -> None:
    if cfg.VIS_PERIOD > 0 and find_spec("tensorboard") is None:
        raise ValueError(
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, and TensorBoard, which shows its pictures, is not "
            "installed: pip install tensorboard, or set VIS_PERIOD 0"
        )


def _warn_of_long_warmup(solver) -> None:
    warmup, iterations = solver.WARMUP_ITERS, solver.MAX_ITER
    if warmup <= iterations / 2:
        return
    last = min(warmup, iterations - 1)
    logger.warning(
        "SOLVER.WARMUP_ITERS is %d and SOLVER.MAX_ITER %d: the learning rate rises for %s and "
        "reaches %.3g in iteration %d (SOLVER.BASE_LR %g). Set SOLVER.WARMUP_ITERS %d, or train "
        "longer",
        warmup,
        iterations,
        "the whole run" if warmup >= iterations else "more than half of the run",
        learning_rate(solver, last),
        last,
        solver.BASE_LR,
        iterations // 10,
    )


def check_evaluation(cfg) -> None:
    """Check the keys of TEST.

    Raises:
        ValueError: a value is unknown, or the network does not support it.
    """
    if cfg.TEST.VOC_METRIC not in METRICS:
        raise ValueError(
            f"TEST.VOC_METRIC is {cfg.TEST.VOC_METRIC!r}; choose one of "
            f"{', '.join(map(repr, METRICS))}"
        )
    check_resolution(cfg.TEST.SEM_SEG_RESOLUTION)
    if cfg.TEST.EARLY_STOP_PATIENCE and not cfg.TEST.BEST_METRIC:
        raise ValueError(
            f"TEST.EARLY_STOP_PATIENCE is {cfg.TEST.EARLY_STOP_PATIENCE} and TEST.BEST_METRIC is "
            'empty; expected the result to watch, e.g. TEST.BEST_METRIC "bbox/AP"'
        )
    if cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD <= 0:
        raise ValueError(
            f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC} and TEST.EVAL_PERIOD "
            f"{cfg.TEST.EVAL_PERIOD}; expected evaluations during training. Give TEST.EVAL_PERIOD "
            "a number of iterations"
        )
    check_soft_nms(cfg)
    average = cfg.TEST.BOX_AVERAGE
    for key, node, supported in (
        ("TEST.AUG", cfg.TEST.AUG, cfg_supports_predict_raw(cfg) or is_detector(cfg)),
        ("TEST.BOX_AVERAGE", average, cfg_supports_predict_raw(cfg)),
    ):
        if node.ENABLED and not supported:
            raise ValueError(
                f"{key} does not support MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} "
                f"with MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME}; set {key}.ENABLED False, "
                "or choose ClassAwareRPN, or GeneralizedRCNN with RoI heads that offer "
                "predict_boxes"
            )
    sizes = cfg.TEST.AUG.MIN_SIZES
    if cfg.TEST.AUG.ENABLED and (not len(sizes) or min(sizes) < 1):
        raise ValueError(f"TEST.AUG.MIN_SIZES is {sizes}; give one or more short sides, in pixels")
    if not average.ENABLED:
        return
    if average.ITERATIONS < 1:
        raise ValueError(
            f"TEST.BOX_AVERAGE.ITERATIONS is {average.ITERATIONS}; give 1 pass or more"
        )
    if not 0 < average.VOTE_IOU <= 1:
        raise ValueError(
            f"TEST.BOX_AVERAGE.VOTE_IOU is {average.VOTE_IOU}; give an IoU above 0, up to 1"
        )
    if cfg.MODEL.MASK_ON:
        raise ValueError("TEST.BOX_AVERAGE averages boxes, not masks: set MODEL.MASK_ON False")
    if is_class_aware_rpn(cfg) and average.ITERATIONS > 1:
        raise ValueError(
            "ClassAwareRPN predicts only from anchors and cannot make a second pass over boxes: "
            "set TEST.BOX_AVERAGE.ITERATIONS 1, which averages the boxes of one pass"
        )


def _defaults() -> CfgNode:
    cfg = get_cfg()
    add_deformable_config(cfg)
    return cfg


# Keys that choose a second stage, its pooling and its sampling, or another first stage.
_SECOND_STAGE = (
    "MODEL.LOAD_PROPOSALS",
    "MODEL.MASK_ON",
    "MODEL.KEYPOINT_ON",
    "MODEL.RPN.HEAD_NAME",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_HEADS.SAMPLING",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
)


def _check_no_second_stage(cfg) -> None:
    for key in _SECOND_STAGE:
        value, unchanged = (reduce(getattr, key.split("."), node) for node in (cfg, _defaults()))
        if value != unchanged:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no second stage and "
                f"does not read {key} {value}: leave it {unchanged}, or choose another architecture"
            )


def _check_proposal_keys(cfg) -> None:
    load, name = cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if load != (name == "PrecomputedProposals"):
        raise ValueError(
            f"MODEL.LOAD_PROPOSALS is {load} and MODEL.PROPOSAL_GENERATOR.NAME is {name}: fixed "
            "proposals need True and PrecomputedProposals, a network's own RPN needs False and RPN"
        )


_WITHOUT_CLASS = {
    ("ROI_BOX_HEAD.NAME", ""),
    ("PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
}


def _check_names(model) -> None:
    """Check names of classes and builders, for which Detectron2's error is a bare KeyError."""
    names = {
        "META_ARCHITECTURE": (META_ARCH_REGISTRY, model.META_ARCHITECTURE),
        "BACKBONE.NAME": (BACKBONE_REGISTRY, model.BACKBONE.NAME),
        "ROI_HEADS.NAME": (ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME),
        "ROI_BOX_HEAD.NAME": (ROI_BOX_HEAD_REGISTRY, model.ROI_BOX_HEAD.NAME),
        "SEM_SEG_HEAD.NAME": (SEM_SEG_HEADS_REGISTRY, model.SEM_SEG_HEAD.NAME),
        "PROPOSAL_GENERATOR.NAME": (PROPOSAL_GENERATOR_REGISTRY, model.PROPOSAL_GENERATOR.NAME),
        "ANCHOR_GENERATOR.NAME": (ANCHOR_GENERATOR_REGISTRY, model.ANCHOR_GENERATOR.NAME),
        "RPN.HEAD_NAME": (RPN_HEAD_REGISTRY, model.RPN.HEAD_NAME),
    }
    for key, (registry, name) in names.items():
        # Heads without a network of their own, and proposals from a file, have no class.
        if name in registry or (key, name) in _WITHOUT_CLASS:
            continue
        near = get_close_matches(name, [known for known, _ in registry], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "import the module that registers it"
        raise ValueError(f"MODEL.{key} {name or 'is empty, which'} is not registered: {hint}")
