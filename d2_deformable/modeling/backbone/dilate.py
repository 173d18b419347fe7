"""Dilates a stage of a plain network in place (paper sec. 2.3 and table 3)."""

from detectron2.layers import CNNBlockBase
from torch import nn

from ...layers import kernel_convs


def dilate_stage(stage: nn.Module, dilation: int) -> None:
    """Give `stage` stride 1 and its convolutions larger than 1x1 the given dilation.

    Every position that the strided stage computes stays where it was, and the padding grows so that
    maps keep their size. The paper does this to conv5 of every network, with dilation 2 (sec. 2.3)
    or 4, 6, 8 (table 3).
    """
    for module in stage.modules():
        if isinstance(module, CNNBlockBase):
            module.stride = 1
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    for conv in kernel_convs(stage).values():
        conv.dilation = (dilation, dilation)
        conv.padding = tuple(dilation * (k - 1) // 2 for k in conv.kernel_size)
