"""Deformable Convolutional Networks (Dai et al. 2017) as a Detectron2 plugin."""

from . import model_zoo, modeling, ops  # noqa: F401  register weights, models and operators
from .config import add_deformable_config

__version__ = "0.1.0"
__all__ = ["add_deformable_config"]
