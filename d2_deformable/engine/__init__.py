from .optimizer import build_optimizer
from .trainer import Trainer, check_frozen_layers

__all__ = ["Trainer", "build_optimizer", "check_frozen_layers"]
