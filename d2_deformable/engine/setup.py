"""A config from a YAML and overrides, and its device, as every command of this package has them."""

import logging
import re
from difflib import get_close_matches

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_deformable_config
from ..data import allow_custom_fields
from ..ops import has_cuda

logger = logging.getLogger(__name__)


def read_config(config_file: str, overrides=()) -> CfgNode:
    """Detectron2's defaults and this package's, then the YAML, then the overrides; not frozen.

    Args:
        overrides: KEY, VALUE, KEY, VALUE, ...

    Raises:
        ValueError: one sentence on a key that does not exist or a value of another type, or on a
            file that is no YAML.
        FileNotFoundError: no such file, or one that it builds on.
    """
    cfg = get_cfg()
    add_deformable_config(cfg)
    # What yacs raises names the key, but neither the file nor what to do.
    try:
        cfg.merge_from_file(str(config_file))
    except (KeyError, ValueError, AssertionError) as error:
        if "does not exist" in str(error):
            raise FileNotFoundError(f"--config-file {config_file}: there is no such file") from None
        raise ValueError(f"{config_file}, or what it builds on: {_explain(error, cfg)}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{config_file} builds on {error.filename} (_BASE_), and there is no such file"
        ) from error
    except (yaml.YAMLError, AttributeError, TypeError) as error:  # the latter of what is no mapping
        raise ValueError(
            f"{config_file}, or what it builds on, is no YAML of keys and values: "
            f"{' '.join(str(error).split())}"
        ) from error
    merge_overrides(cfg, overrides)
    return cfg


def merge_overrides(cfg: CfgNode, overrides) -> None:
    """Set KEY, VALUE, KEY, VALUE, ... in `cfg`.

    Raises:
        ValueError: one sentence on a key that does not exist or a value of another type.
    """
    try:
        allow_custom_fields(cfg, overrides)
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"on the command line: {_explain(error, cfg)}") from error


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


def _explain(error: Exception, cfg: CfgNode) -> str:
    message = str(error.args[0]) if error.args else str(error)
    if match := re.match(r"Non-existent (?:config )?key: (.+)", message):
        similar = get_close_matches(match[1], _keys(cfg), n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        return f"there is no key {match[1]}{hint}"
    if "Type mismatch" in message and "<class 'str'> vs. <class" in message:
        return f"{message}. Quote a text that looks like a number, e.g. '07'"
    return message


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    """Full names of all keys, sections too."""
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
