"""The YAML that goes with a converted checkpoint."""

from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ...config import read_config
from ...utils.files import replacing


def value_of(cfg: CfgNode, key: str):
    """Value of a key of cfg, e.g. "MODEL.PIXEL_MEAN"; tuples become lists."""
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


def write_yaml(settings: dict, weights: Path, cfg: CfgNode, config_file=None) -> Path:
    """Write <weights>.yaml: cfg with `settings` and MODEL.WEIGHTS, on top of `config_file`."""
    cfg = cfg.clone()
    cfg.defrost()
    settings = {**settings, "MODEL.WEIGHTS": str(weights.resolve())}
    cfg.merge_from_list([part for item in settings.items() for part in item])
    content = yaml.safe_load(cfg.dump())
    if config_file is not None:
        base = yaml.safe_load(read_config(config_file).dump())
        content = {"_BASE_": str(Path(config_file).resolve()), **_difference(content, base)}
    file = weights.with_suffix(".yaml")
    with replacing(file) as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def _difference(content: dict, base: dict) -> dict:
    """Keys of `content` that `base` lacks or has with another value."""
    result = {}
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            value = _difference(value, base[key])
            if value:
                result[key] = value
        elif key not in base or value != base[key]:
            result[key] = value
    return result
