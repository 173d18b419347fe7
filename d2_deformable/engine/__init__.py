"""Training: the trainer, and its parts for use in other trainers."""

from .. import needs_detectron2
from ..config import merge_overrides, read_config
from .device import fall_back_to_cpu, why_not_cuda
from .offset_health import OffsetHealth
from .optimizer import build_optimizer, multiply_learning_rates
from .preflight import check_settings, check_weights, preflight
from .proposals import dump_proposals
from .schedule import learning_rate
from .trainer import Trainer, tests_with_TTA

__all__ = [
    "OffsetHealth",
    "Trainer",
    "build_optimizer",
    "check_settings",
    "check_weights",
    "dump_proposals",
    "fall_back_to_cpu",
    "learning_rate",
    "merge_overrides",
    "multiply_learning_rates",
    "preflight",
    "read_config",
    "tests_with_TTA",
    "why_not_cuda",
]
