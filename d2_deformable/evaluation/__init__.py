"""Evaluators: COCO's and VOC's metrics of boxes, mean IoU of class masks, and a proposal writer."""

from .. import needs_detectron2
from .build import build_evaluators, dataset_evaluators
from .coco import CountingCOCOEvaluator
from .counts import COUNTS
from .proposals import ProposalWriter
from .sem_seg import SemSegEvaluator, check_resolution
from .voc import VOCEvaluator

__all__ = [
    "COUNTS",
    "CountingCOCOEvaluator",
    "ProposalWriter",
    "SemSegEvaluator",
    "VOCEvaluator",
    "build_evaluators",
    "check_resolution",
    "dataset_evaluators",
]
