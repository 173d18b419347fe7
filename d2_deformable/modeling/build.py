"""Builds the network of a config."""

import torch
from detectron2 import modeling
from torch import nn

from ..layers import deform_modules
from ..utils.text import one_line


def build_model(cfg) -> nn.Module:
    """Build the network as Detectron2's `build_model`, and apply MODEL.DEFORM_MODULES.

    Use it instead of Detectron2's, which does not know that key; the network can be any that
    is registered. It has no weights of MODEL.WEIGHTS yet.

    Raises:
        ValueError: settings contradict each other, or name a feature map or a class that does not
            exist; or an entry of MODEL.DEFORM_MODULES is invalid, see `deform_modules`.
    """
    try:
        model = modeling.build_model(cfg)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"the config builds no model ({type(error).__name__}: {one_line(error)}). Check the "
            "keys of MODEL; --debug shows where it failed"
        ) from error
    # A config without this package's keys asks for nothing more.
    return deform_modules(model, cfg.MODEL.get("DEFORM_MODULES", ()))
