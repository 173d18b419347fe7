"""Detectron2's DefaultTrainer with this package's data, evaluation and optimizer."""

from functools import partial
from pathlib import Path

import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNNWithTTA

from ..data import DatasetMapper, without_difficult
from ..evaluation import build_evaluators
from ..evaluation.voc import METRICS
from ..modeling import DetectorWithTTA, RFCNHeads
from ..ops import has_cuda
from .optimizer import build_optimizer


class Trainer(DefaultTrainer):
    """`DefaultTrainer` that checks cfg first, multiplies learning rates and evaluates VOC AP."""

    def __init__(self, cfg):
        check_settings(cfg)
        super().__init__(cfg)

    def build_hooks(self):
        """Detectron2's, and where they are asked for several scales after the last evaluation."""
        built = super().build_hooks()
        if tests_with_TTA(self.cfg):
            # Beside the other evaluation: what comes after the writers is not written.
            at = 1 + max(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            test = partial(self.test_with_TTA, self.cfg, self.model)
            built.insert(at, hooks.EvalHook(0, test))
        return built

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        dataset = without_difficult(cfg) if cfg.INPUT.DROP_DIFFICULT else None
        mapper = DatasetMapper(cfg, True)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
        return build_evaluators(cfg, dataset_name, folder)

    @classmethod
    def test_with_TTA(cls, cfg, model):
        """Evaluate with TEST.AUG and TEST.BOX_AVERAGE; names gain "_TTA".

        By `DetectorWithTTA`; by Detectron2's GeneralizedRCNNWithTTA with masks, or where the model
        has no `predict_raw`.

        Raises:
            ValueError: TEST.BOX_AVERAGE is enabled for what it cannot serve.
        """
        folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
        evaluators = [cls.build_evaluator(cfg, name, str(folder)) for name in cfg.DATASETS.TEST]
        detector = getattr(model, "module", model)
        ours = hasattr(detector, "predict_raw") and not cfg.MODEL.MASK_ON
        if ours or cfg.TEST.BOX_AVERAGE.ENABLED:
            model = DetectorWithTTA(cfg, model)
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TEST = 0  # every scale is resized from the original image, once
        else:
            model = GeneralizedRCNNWithTTA(cfg, model)
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}


def tests_with_TTA(cfg) -> bool:
    """Whether `Trainer.test_with_TTA` is to follow ordinary evaluation."""
    return cfg.TEST.AUG.ENABLED or cfg.TEST.BOX_AVERAGE.ENABLED


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
            the chosen backbone or heads do not read; or a setting of evaluation that would be
            refused only after training; or one half of the two keys of fixed proposals.
    """
    _check_evaluation(cfg)
    _check_proposal_keys(cfg)
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


def _check_evaluation(cfg) -> None:
    if cfg.TEST.VOC_METRIC not in METRICS:
        raise ValueError(
            f"TEST.VOC_METRIC is {cfg.TEST.VOC_METRIC!r}; choose one of "
            f"{', '.join(map(repr, METRICS))}"
        )
    average = cfg.TEST.BOX_AVERAGE
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
    if cfg.MODEL.META_ARCHITECTURE == "ClassAwareRPN" and average.ITERATIONS > 1:
        raise ValueError(
            "ClassAwareRPN predicts from anchors alone and has no second pass over given boxes: "
            "set TEST.BOX_AVERAGE.ITERATIONS 1, which averages the boxes of one pass"
        )


def _check_proposal_keys(cfg) -> None:
    load, name = cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if load != (name == "PrecomputedProposals"):
        raise ValueError(
            f"MODEL.LOAD_PROPOSALS is {load} and MODEL.PROPOSAL_GENERATOR.NAME is {name}: fixed "
            "proposals need True and PrecomputedProposals, a network's own RPN False and RPN"
        )


def _registered(registry, name: str):
    """The entry of that name; None leaves an unknown one to Detectron2's own error."""
    return registry.get(name) if name in registry else None
