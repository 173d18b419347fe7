import pytest
from detectron2.config import get_cfg

from d2_deformable import add_deformable_config


@pytest.fixture
def cfg():
    """Detectron2's defaults and ours, on the CPU, without weights and without frozen layers."""
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg
