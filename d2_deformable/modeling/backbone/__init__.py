"""Backbones with dilated and deformable convolutions."""

from .aligned_inception_resnet import (
    InceptionResBlock,
    build_aligned_inception_resnet_backbone,
)
from .deform import deform_convs, dilate_stage, kernel_convs
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
