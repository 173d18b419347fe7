import logging

import pytest
import torch
from detectron2.config import get_cfg

from d2_deformable.engine import device as engine_device
from d2_deformable.engine import fall_back_to_cpu


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_gpu_the_cpu_is_used(device, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("d2_deformable"), "propagate", True)
    caplog.set_level(logging.INFO)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engine_device, "has_cuda", lambda: True)
    fall_back_to_cpu(cfg)
    assert device == cfg.MODEL.DEVICE and not caplog.messages
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fall_back_to_cpu(cfg)
    assert cfg.MODEL.DEVICE == "cpu"
    assert "Running on the CPU: no GPU is visible" in caplog.messages
