"""Aligned-Inception-ResNet (paper appendix A, tables 6 and 7), dilated and deformable.

The authors published neither code nor weights, and the text does not give the widths of figure 7.
Those below are the only natural ones that give the 64.3 M parameters of table 7: 64,252,072
weights of convolutions and classifier, or 64,381,800 parameters with batch normalisation.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill

from .resnet import build_network

BLOCKS_PER_STAGE = {26: [2, 2, 2, 2], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}


class InceptionResBlock(CNNBlockBase):
    """Two branches of 3x3 convolutions and a shortcut (paper figure 7).

        a: 1x1 w   - norm - ReLU - 3x3 w
        b: 1x1 w/2 - norm - ReLU - 3x3 w/2 - norm - ReLU - 3x3 w/2
        (a, b) concatenated, 1.5w - norm - ReLU - 1x1 4w - norm - + shortcut - ReLU

    Every 3x3 convolution is padded by its dilation, so that both branches and the shortcut are
    centred on the same pixel at each position. Hence "aligned" in the network's name.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels: `out_channels` is 4w. Where they differ or the stride is not 1,
            the shortcut is a 1x1 convolution with that stride.
        stride: 1 or 2.
        stride_in_1x1: put the stride into the first 1x1 convolution of both branches instead of
            their first 3x3. The paper leaves it open; the public re-implementations put it into the
            3x3.
        norm: see `detectron2.layers.get_norm`.

    Raises:
        ValueError: `out_channels` does not divide into these widths.
    """

    def __init__(self, in_channels, out_channels, *, stride=1, stride_in_1x1=False, norm="BN"):
        super().__init__(in_channels, out_channels, stride)
        if out_channels % 8:
            raise ValueError(
                f"a block of {out_channels} channels has branches of {out_channels / 4:g} and "
                f"{out_channels / 8:g}; choose MODEL.RESNETS.RES2_OUT_CHANNELS as a multiple of 8"
            )
        width = out_channels // 4
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)

        def conv(inputs, outputs, kernel_size, stride=1, norm=norm):
            layer = Conv2d(
                inputs,
                outputs,
                kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                bias=False,
                norm=get_norm(norm, outputs),
            )
            c2_msra_fill(layer)
            return layer

        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = conv(in_channels, out_channels, 1, stride)
        # a1 and b2 share the norm after the concatenation.
        self.a_reduce = conv(in_channels, width, 1, stride_1x1)
        self.a1 = conv(width, width, 3, stride_3x3, norm="")
        self.b_reduce = conv(in_channels, width // 2, 1, stride_1x1)
        self.b1 = conv(width // 2, width // 2, 3, stride_3x3)
        self.b2 = conv(width // 2, width // 2, 3, norm="")
        self.concat_norm = get_norm(norm, width + width // 2)
        self.expand = conv(width + width // 2, out_channels, 1)

    def forward(self, x):
        a = self.a1(F.relu_(self.a_reduce(x)))
        b = self.b2(F.relu_(self.b1(F.relu_(self.b_reduce(x)))))
        out = torch.cat([a, b], dim=1)
        if self.concat_norm is not None:
            out = self.concat_norm(out)
        out = self.expand(F.relu_(out))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


@BACKBONE_REGISTRY.register()
def build_aligned_inception_resnet_backbone(cfg, input_shape):
    """Build a plain, dilated or deformable Aligned-Inception-ResNet from MODEL.RESNETS.

    The keys are those of `build_deform_resnet_backbone`. DEPTH 101 is the paper's 3, 4, 23, 3
    blocks; 50 and 26 (3, 4, 6, 3 and 2, 2, 2, 2) are smaller networks. RES2_OUT_CHANNELS is 4w of
    res2, 256 in the paper. DEFORM_NUM_LAYERS counts 3x3 convolutions, of which a block has three,
    a1, b1 and b2: 3 is the last block, 9 is all of res5. The paper does not say how it counts here;
    this follows its words, "the last few convolutional layers (with kernel size > 1)".

    Raises:
        ValueError: a value that this network cannot have.
    """
    return build_network(cfg, input_shape, BLOCKS_PER_STAGE, _block)


def _block(c, stage: int) -> dict:
    return {"block_class": InceptionResBlock, "stride_in_1x1": c.STRIDE_IN_1X1}
