from .optimizer import build_optimizer
from .trainer import Trainer, check_settings, why_not_cuda

__all__ = ["Trainer", "build_optimizer", "check_settings", "why_not_cuda"]
