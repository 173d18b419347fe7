"""Feature pyramid on the deformable ResNet, with the top levels of each kind of detector."""

from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn

from .resnet import build_deform_resnet_backbone


class LastLevelP6(nn.Module):
    """One more level, p6: a 3x3 convolution of stride 2 on the last map of the ResNet.

    It is the first half of Detectron2's `LastLevelP6P7`, and the top level of the released FPN
    (fpn/symbols/resnet_v1_101_fpn_rcnn.py).

    Args:
        in_channels, out_channels: of the convolution.
        in_feature: the map that it reads, of the bottom-up network or of the pyramid.
    """

    num_levels = 1

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        c2_xavier_fill(self.p6)

    def forward(self, x):
        """(N, in_channels, H, W) -> [(N, out_channels, ceil(H / 2), ceil(W / 2))]."""
        return [self.p6(x)]


CONVOLUTIONAL = {"LastLevelP6": LastLevelP6, "LastLevelP6P7": LastLevelP6P7}
TOP_BLOCKS = ("LastLevelMaxPool", *CONVOLUTIONAL)


@BACKBONE_REGISTRY.register()
def build_deform_resnet_fpn_backbone(cfg, input_shape):
    """Build an FPN on `build_deform_resnet_backbone`.

    It is Detectron2's `build_resnet_fpn_backbone`, for RetinaNet and FCOS its
    `build_retinanet_resnet_fpn_backbone`. MODEL.FPN.TOP_BLOCK chooses other top levels.

    Raises:
        ValueError: a value that this network cannot have.
    """
    bottom_up = build_deform_resnet_backbone(cfg, input_shape)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_top_block(cfg, bottom_up.output_shape()),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _top_block(cfg, shapes) -> nn.Module:
    c = cfg.MODEL.FPN
    dense = cfg.MODEL.META_ARCHITECTURE in ("RetinaNet", "SoftNMSRetinaNet", "build_fcos")
    name = c.TOP_BLOCK or ("LastLevelP6P7" if dense else "LastLevelMaxPool")
    if name == "LastLevelMaxPool":
        return LastLevelMaxPool()
    # The last level of the pyramid has the number of the last stage: p5 for res5.
    last = c.IN_FEATURES[-1]
    channels = {last: shapes[last].channels, last.replace("res", "p"): c.OUT_CHANNELS}
    feature = c.TOP_BLOCK_IN_FEATURE
    if name not in CONVOLUTIONAL or feature not in channels:
        raise ValueError(
            f"MODEL.FPN.TOP_BLOCK is {name!r} and TOP_BLOCK_IN_FEATURE is {feature!r}; expected "
            f"one of {', '.join(TOP_BLOCKS)}, on {' or '.join(channels)}"
        )
    return CONVOLUTIONAL[name](channels[feature], c.OUT_CHANNELS, in_feature=feature)
