"""Checkpoint files: written to hand on, read whole or not at all."""

from .export import export_checkpoint
from .strict import StrictCheckpointer

__all__ = ["StrictCheckpointer", "export_checkpoint"]
