"""The YAML that goes with a converted checkpoint."""

from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ...config import read_config
from ...utils.config_files import difference
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
    if config_file is None:
        content = yaml.safe_load(cfg.dump())
    else:
        content = {"_BASE_": str(Path(config_file).resolve())}
        content |= difference(cfg, read_config(config_file))
    file = weights.with_suffix(".yaml")
    with replacing(file) as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False))
    return file
