"""Detectron2's DefaultTrainer with this package's data, evaluation and optimizer."""

import weakref
from functools import partial
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.modeling import GeneralizedRCNNWithTTA

from ..checkpoint import SafeCheckpointer
from ..compat import require_private
from ..data import DatasetMapper, screen_proposals, without_difficult
from ..evaluation import build_evaluators
from ..modeling import DetectorWithTTA
from ..modeling.tta import can_predict_raw
from .cpu_amp import CPUAMPTrainer
from .offset_health import OffsetHealth
from .optimizer import build_optimizer
from .preflight import check_weights, preflight


class Trainer(DefaultTrainer):
    """`DefaultTrainer` with preflight checks, learning-rate factors, offset health and VOC AP.

    Args:
        resume: what `resume_or_load` will be called with. True: MODEL.WEIGHTS need not exist. None:
            not known yet, so `resume_or_load` checks MODEL.WEIGHTS.

    Raises:
        ValueError, FileNotFoundError: see `preflight`.
    """

    def __init__(self, cfg, *, resume: bool | None = None):
        preflight(cfg, resume=resume is not False)
        super().__init__(cfg)
        if cfg.SOLVER.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type == "cpu":
            require_private(self, "_trainer")  # AMPTrainer, which requires CUDA
            self._trainer = CPUAMPTrainer(self.model, self.data_loader, self.optimizer)

    def resume_or_load(self, resume=True):
        """As Detectron2's.

        Raises:
            FileNotFoundError: MODEL.WEIGHTS is needed and missing.
        """
        if not resume:
            check_weights(self.cfg)
        return super().resume_or_load(resume)

    def build_hooks(self):
        """Add offset health and, if enabled, a final multi-scale test to Detectron2's hooks."""
        # Replaces DefaultTrainer's own, which would run code in a .pkl of MODEL.WEIGHTS.
        self.checkpointer = SafeCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        built = super().build_hooks()
        if tests_with_TTA(self.cfg):
            # Next to the other evaluation: results after the writers would not be written.
            index = 1 + max(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            test = partial(self.test_with_TTA, self.cfg, self.model)
            built.insert(index, hooks.EvalHook(0, test))
        if comm.is_main_process():
            built.insert(0, OffsetHealth(self.cfg, self.model))
        return built

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        screen_proposals(cfg, "TRAIN")
        dataset = without_difficult(cfg) if cfg.INPUT.DROP_DIFFICULT else None
        mapper = DatasetMapper(cfg, True)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        screen_proposals(cfg, "TEST", dataset_name)
        return build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
        return build_evaluators(cfg, dataset_name, folder)

    @classmethod
    def test_with_TTA(cls, cfg, model):
        """Evaluate with TEST.AUG and TEST.BOX_AVERAGE; names of results get the suffix "_TTA".

        Uses `DetectorWithTTA`, or Detectron2's GeneralizedRCNNWithTTA if the model predicts masks
        or `predict_raw` does not support it.

        Raises:
            ValueError: TEST.BOX_AVERAGE is enabled for a model that it does not support.
        """
        folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
        evaluators = [cls.build_evaluator(cfg, name, str(folder)) for name in cfg.DATASETS.TEST]
        detector = getattr(model, "module", model)
        ours = can_predict_raw(detector) and not cfg.MODEL.MASK_ON
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
    """Return True if `Trainer.test_with_TTA` must follow ordinary evaluation."""
    return cfg.TEST.AUG.ENABLED or cfg.TEST.BOX_AVERAGE.ENABLED
