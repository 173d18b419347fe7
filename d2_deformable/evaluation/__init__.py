"""The evaluators of a data set: COCO's metrics and VOC's of boxes, mean IoU of class masks; and the
writer of proposal files, which takes an evaluator's place."""

from .build import build_evaluators, dataset_evaluators
from .proposals import ProposalWriter
from .sem_seg import SemSegEvaluator, check_resolution
from .voc import VOCEvaluator

__all__ = [
    "ProposalWriter",
    "SemSegEvaluator",
    "VOCEvaluator",
    "build_evaluators",
    "check_resolution",
    "dataset_evaluators",
]
