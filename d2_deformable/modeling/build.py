"""Builds the network of a config."""

from detectron2 import modeling
from torch import nn

from ..layers import deform_modules


def build_model(cfg) -> nn.Module:
    """Build the network as Detectron2's `build_model`, and apply MODEL.DEFORM_MODULES.

    Use it instead of Detectron2's, which does not know that key; the network can be any that
    is registered. It has no weights of MODEL.WEIGHTS yet.

    Raises:
        ValueError: an entry of MODEL.DEFORM_MODULES is invalid, see `deform_modules`.
    """
    # A config without this package's keys asks for nothing more.
    return deform_modules(modeling.build_model(cfg), cfg.MODEL.get("DEFORM_MODULES", ()))
