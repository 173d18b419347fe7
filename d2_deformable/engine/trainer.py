"""Detectron2's DefaultTrainer with this package's data, evaluation and optimizer."""

from functools import reduce
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNNWithTTA,
)

from ..config import add_deformable_config
from ..data import DatasetMapper
from ..evaluation import build_evaluators
from ..modeling import ClassAwareRPN, RFCNHeads
from ..ops import has_cuda
from .optimizer import build_optimizer


class Trainer(DefaultTrainer):
    """`DefaultTrainer` that checks cfg first, multiplies learning rates and evaluates VOC AP."""

    def __init__(self, cfg):
        check_settings(cfg)
        super().__init__(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
        return build_evaluators(cfg, dataset_name, folder)

    @classmethod
    def test_with_TTA(cls, cfg, model):
        """Evaluate with Detectron2's test-time augmentation (TEST.AUG); names gain "_TTA"."""
        folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
        evaluators = [cls.build_evaluator(cfg, name, str(folder)) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}


def why_not_cuda() -> str:
    """What keeps this process from running on a GPU, in words; empty if nothing does."""
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if not has_cuda():
        return "the operators were built without a CUDA toolkit (see README, GPUs)"
    return ""


def check_settings(cfg) -> None:
    """Refuse settings that would train something else than they seem to say.

    Raises:
        ValueError: MODEL.WEIGHTS is empty while MODEL.BACKBONE.FREEZE_AT or FrozenBN freezes
            layers, and MODEL.BACKBONE.ALLOW_FROZEN_RANDOM is False; or a key of this package that
            the chosen backbone or heads do not read; or a second stage for a ClassAwareRPN.
    """
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
    builder = _registered(BACKBONE_REGISTRY, model.BACKBONE.NAME)
    # Of a function only its place is known: none of Detectron2's reads the key, one of a user may.
    theirs = builder is not None and builder.__module__.split(".")[0] == "detectron2"
    if model.RESNETS.DEFORM_NUM_LAYERS and theirs:
        raise ValueError(
            f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME} does not read "
            "MODEL.RESNETS.DEFORM_NUM_LAYERS; choose build_deform_resnet_backbone or "
            "build_deform_resnet_fpn_backbone"
        )
    architecture = _registered(META_ARCH_REGISTRY, model.META_ARCHITECTURE)
    if isinstance(architecture, type) and issubclass(architecture, ClassAwareRPN):
        _check_no_second_stage(cfg)
    heads = _registered(ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME)
    other = isinstance(heads, type) and not issubclass(heads, RFCNHeads)
    if model.ROI_HEADS.SAMPLING != "random" and other:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {model.ROI_HEADS.NAME} does not read MODEL.ROI_HEADS.SAMPLING "
            f"{model.ROI_HEADS.SAMPLING}; only RFCNHeads and its subclasses do"
        )


# What chooses a second stage, its pooling and its sampling, or another first one.
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
    default = get_cfg()
    add_deformable_config(default)
    for key in _SECOND_STAGE:
        value, unchanged = (reduce(getattr, key.split("."), node) for node in (cfg, default))
        if value != unchanged:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no second stage and "
                f"does not read {key} {value}: leave it {unchanged}, or choose another architecture"
            )


def _registered(registry, name: str):
    """The entry of that name; None leaves an unknown one to Detectron2's own error."""
    return registry.get(name) if name in registry else None
