"""The evaluators of a detection data set: COCO's metrics and VOC's."""

from .build import build_evaluators
from .voc import VOCEvaluator

__all__ = ["VOCEvaluator", "build_evaluators"]
