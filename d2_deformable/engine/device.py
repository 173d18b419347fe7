"""The device of a config: a GPU where one can be used, else the CPU."""

import logging

import torch
from detectron2.config import CfgNode

from ..ops import has_cuda

logger = logging.getLogger(__name__)


def fall_back_to_cpu(cfg: CfgNode) -> None:
    """Take the CPU for a MODEL.DEVICE of "cuda" or "cuda:N" where no GPU can be used; log why."""
    if cfg.MODEL.DEVICE.startswith("cuda") and (reason := why_not_cuda()):
        logger.info("Running on the CPU: %s", reason)
        cfg.MODEL.DEVICE = "cpu"


def why_not_cuda() -> str:
    """What keeps this process from running on a GPU, in words; empty if nothing does."""
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if not has_cuda():
        return "the operators were built without a CUDA toolkit (see README, GPUs)"
    return ""
