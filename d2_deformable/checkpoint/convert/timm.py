"""ImageNet ResNets of timm as backbones."""

from detectron2.config import CfgNode

from .conversion import Conversion
from .imagenet_resnet import convert_resnet


def convert(conversion: Conversion, cfg: CfgNode) -> None:
    convert_resnet(conversion, cfg)
