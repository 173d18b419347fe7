"""Checkpoint files: safe reading, atomic writing, and export for distribution."""

from .. import needs_detectron2
from ..utils.files import FileFormatError
from .export import export_checkpoint
from .files import read_weights, write_weights
from .safe import SafeCheckpointer
from .strict import StrictCheckpointer, load_model

__all__ = [
    "FileFormatError",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "export_checkpoint",
    "load_model",
    "read_weights",
    "write_weights",
]
