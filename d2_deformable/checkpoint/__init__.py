"""Checkpoint files: read safely, written to hand on, whole or not at all."""

from ..utils.files import FileFormatError
from .export import export_checkpoint
from .files import read_weights, write_weights
from .safe import SafeCheckpointer
from .strict import StrictCheckpointer

__all__ = [
    "FileFormatError",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "export_checkpoint",
    "read_weights",
    "write_weights",
]
