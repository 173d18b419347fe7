"""Trained checkpoints that come with this package, under d2_deformable://<name>.

Importing this package registers the prefix with Detectron2's PathManager.
"""

from .catalog import ModelZooHandler, get_checkpoint_url

__all__ = ["ModelZooHandler", "get_checkpoint_url"]
