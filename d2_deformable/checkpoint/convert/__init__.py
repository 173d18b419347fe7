"""Checkpoints of other projects and layouts as weights of this package's models."""

from .conversion import Conversion, ConversionError

__all__ = ["Conversion", "ConversionError"]
