"""Backbones with dilated and deformable convolutions."""

from ...layers import deform_convs, kernel_convs
from .aligned_inception_resnet import (
    InceptionResBlock,
    build_aligned_inception_resnet_backbone,
)
from .dilate import dilate_stage
from .fpn import LastLevelP6, build_deform_resnet_fpn_backbone
from .resnet import DeformResNet, build_deform_resnet_backbone

__all__ = [
    "DeformResNet",
    "InceptionResBlock",
    "LastLevelP6",
    "build_aligned_inception_resnet_backbone",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "deform_convs",
    "dilate_stage",
    "kernel_convs",
]
