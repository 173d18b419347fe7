"""Networks with random weights and statistics, and a detector's features of an image file."""

import torch
from detectron2.modeling import build_model
from torch import nn

from d2_deformable.checkpoint import SafeCheckpointer
from d2_deformable.data import DatasetMapper
from d2_deformable.engine import read_config
from yamls import CONFIGS

FPN = CONFIGS / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


def randomize(network: nn.Module) -> nn.Module:
    """Randomise batch norms, whose statistics and affine parameters start as 0 and 1."""
    for module in network.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def load(yaml, *overrides):
    """Build a YAML's detector with its MODEL.WEIGHTS, loaded as in training; return it and cfg."""
    size = ("INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu")
    cfg = read_config(yaml, [*size, *overrides])
    model = build_model(cfg).eval()
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model, cfg


@torch.no_grad()
def features(model, cfg, image) -> dict:
    """Features of a detector's ResNet for an image file, which the detector reads, normalises and
    pads."""
    inputs = DatasetMapper(cfg, False)({"file_name": str(image)})
    images = model.preprocess_image([inputs])
    return getattr(model.backbone, "bottom_up", model.backbone)(images.tensor)
