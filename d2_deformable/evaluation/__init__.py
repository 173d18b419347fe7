"""The evaluators of a data set: COCO's metrics and VOC's of boxes, mean IoU of class masks."""

from .build import build_evaluators
from .sem_seg import SemSegEvaluator, check_resolution
from .voc import VOCEvaluator

__all__ = ["SemSegEvaluator", "VOCEvaluator", "build_evaluators", "check_resolution"]
