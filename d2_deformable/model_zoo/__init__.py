"""Configs, models and trained checkpoints by name: the API of `detectron2.model_zoo`.

Checkpoints are also paths of Detectron2, d2_deformable://<name>: importing this package registers
the prefix with its PathManager.
"""

from .catalog import ModelZooHandler, NotInModelZooError, get_checkpoint_url, register_index
from .model_zoo import get, get_config, get_config_file, list_configs

__all__ = [
    "ModelZooHandler",
    "NotInModelZooError",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "list_configs",
    "register_index",
]
