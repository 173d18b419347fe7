"""The evaluators of a detection data set: COCO's metrics and VOC's; proposal files."""

from .build import build_evaluators
from .proposals import ProposalWriter
from .voc import VOCEvaluator

__all__ = ["ProposalWriter", "VOCEvaluator", "build_evaluators"]
