"""Training: the trainer, and its parts for a trainer of another project."""

from .offset_health import OffsetHealth
from .optimizer import build_optimizer, multiply_learning_rates
from .proposals import dump_proposals
from .settings import check_settings
from .setup import read_config
from .trainer import Trainer, tests_with_TTA, why_not_cuda

__all__ = [
    "OffsetHealth",
    "Trainer",
    "build_optimizer",
    "check_settings",
    "dump_proposals",
    "multiply_learning_rates",
    "read_config",
    "tests_with_TTA",
    "why_not_cuda",
]
