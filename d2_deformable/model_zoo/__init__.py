"""Configs, models and trained checkpoints by name: the API of `detectron2.model_zoo`.

Checkpoints are also Detectron2 paths, d2_deformable://<name>. Importing this package registers the
prefix with Detectron2's PathManager, and nothing more. Functions that build a model are imported on
first use.
"""

from importlib import import_module

from .. import needs_detectron2
from .catalog import ModelZooHandler, NotInModelZooError, get_checkpoint_url, register_index

__all__ = [
    "ModelZooHandler",
    "NotInModelZooError",
    "find_config",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "list_configs",
    "register_index",
    "summary",
]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".model_zoo", __name__), name)
