"""The line that a training prints: Detectron2's, with images/s, memory and offset health."""

import logging
import resource
import sys

import torch
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from .offset_health import OffsetHealth
from .resume import WINDOW

WAITING = 0.1  # share of the time; a lower one is not printed


class ConsolePrinter(CommonMetricPrinter):
    """Adds to Detectron2's line, whatever its version prints.

    grad_norm: median of the last 20 iterations, see `Guarded`.
    images/s: the median of the last 20 iterations, of all processes together. Missing in the first
        iterations, as Detectron2's time is.
    waiting for images: share of the time, if it is above WAITING; both are from `Throughput`.
    max_mem: also on the CPU, where it is the peak of this process. Detectron2 prints that of a GPU.
    offsets: `OffsetHealth.in_words`, of its last measurement.

    Args:
        max_iter: as Detectron2's.
        health: the hook of the same training.
    """

    def __init__(self, max_iter: int, health: OffsetHealth):
        super().__init__(max_iter)
        self.logger = _Appending(self.logger, self._more)
        self._health = health

    def _more(self) -> str:
        parts, histories = [], get_event_storage().histories()
        if norms := histories.get("grad_norm"):
            parts.append(f"grad_norm: {norms.median(WINDOW):.4g}")
        if rates := histories.get("images_per_second"):
            parts.append(f"{rates.median(WINDOW):.3g} images/s")
            if (share := histories["data_share"].median(WINDOW)) > WAITING:
                parts.append(f"waiting for images {share:.0%} of the time")
        if not torch.cuda.is_available():
            parts.append(f"max_mem: {peak_memory('cpu') / 2**20:.0f}M")
        if self._health.in_words:
            parts.append(f"offsets: {self._health.in_words}")
        return "  ".join(parts)


class _Appending(logging.LoggerAdapter):
    """A logger that appends a text to every message."""

    def __init__(self, logger, text):
        super().__init__(logger)
        self._text = text

    def process(self, msg, kwargs):
        return f"{msg.rstrip()}  {self._text()}", kwargs


def peak_memory(device: str) -> int:
    """Peak of the memory that PyTorch has allocated on the GPU, or of this process, in bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
