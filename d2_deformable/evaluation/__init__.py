from .build import build_evaluators
from .voc import VOCEvaluator

__all__ = ["VOCEvaluator", "build_evaluators"]
