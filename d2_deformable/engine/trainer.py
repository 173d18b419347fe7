"""Detectron2's DefaultTrainer with this package's data, evaluation and optimizer."""

from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNNWithTTA

from ..data import DatasetMapper
from ..evaluation import build_evaluators
from ..modeling import RFCNHeads
from ..ops import has_cuda
from .offset_health import OffsetHealth
from .optimizer import build_optimizer


class Trainer(DefaultTrainer):
    """`DefaultTrainer` that checks cfg first, multiplies learning rates, watches offsets and
    evaluates VOC AP."""

    def __init__(self, cfg):
        check_settings(cfg)
        super().__init__(cfg)

    def build_hooks(self):
        hooks = super().build_hooks()
        if comm.is_main_process():
            hooks.insert(0, OffsetHealth(self.cfg, self.model))
        return hooks

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
            the chosen backbone or heads do not read.
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
    heads = _registered(ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME)
    other = isinstance(heads, type) and not issubclass(heads, RFCNHeads)
    if model.ROI_HEADS.SAMPLING != "random" and other:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {model.ROI_HEADS.NAME} does not read MODEL.ROI_HEADS.SAMPLING "
            f"{model.ROI_HEADS.SAMPLING}; only RFCNHeads and its subclasses do"
        )


def _registered(registry, name: str):
    """The entry of that name; None leaves an unknown one to Detectron2's own error."""
    return registry.get(name) if name in registry else None
