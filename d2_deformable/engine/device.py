"""Choose the device of a config: a GPU if one can be used, else the CPU."""

import logging

import torch
from detectron2.config import CfgNode

from ..ops import has_cuda

logger = logging.getLogger(__name__)


def fall_back_to_cpu(cfg: CfgNode) -> None:
    """Replace a MODEL.DEVICE of "cuda" or "cuda:N" by the CPU if no GPU can be used; log why."""
    if cfg.MODEL.DEVICE.startswith("cuda") and (reason := why_not_cuda()):
        logger.info("Running on the CPU: %s", reason)
        cfg.MODEL.DEVICE = "cpu"


def why_not_cuda() -> str:
    """Return the reason why this process cannot run on a GPU; empty if it can."""
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if not has_cuda():
        return "the operators were built without a CUDA toolkit (see docs/getting_started.md, GPUs)"
    return ""
