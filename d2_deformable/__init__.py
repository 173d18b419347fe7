"""Deformable Convolutional Networks (Dai et al. 2017) as a Detectron2 plugin."""

from . import modeling, ops  # noqa: F401  registers the models and loads the operators
from .config import add_deformable_config

__version__ = "0.1.0"
__all__ = ["add_deformable_config"]
