"""Convert ImageNet ResNets of torchvision into backbones."""

from detectron2.config import CfgNode

from .conversion import Conversion
from .imagenet_resnet import convert_resnet


def convert(conversion: Conversion, cfg: CfgNode) -> None:
    """Convert torchvision.models.resnet18 to 152, resnext and wide_resnet, see `convert_resnet`."""
    convert_resnet(conversion, cfg)
