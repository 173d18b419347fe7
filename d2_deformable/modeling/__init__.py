"""Backbones and heads; importing this package registers them with Detectron2."""

from .backbone import (
    DeformResNet,
    InceptionResBlock,
    build_aligned_inception_resnet_backbone,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    deform_convs,
    dilate_stage,
    kernel_convs,
)
from .poolers import DeformROIPooler
from .roi_heads import (
    DeformCascadeROIHeads,
    DeformPoolerMixin,
    DeformROIHeads,
    RFCNHeads,
    RFCNOutputLayers,
)

__all__ = [
    "DeformCascadeROIHeads",
    "DeformPoolerMixin",
    "DeformROIHeads",
    "DeformROIPooler",
    "DeformResNet",
    "InceptionResBlock",
    "RFCNHeads",
    "RFCNOutputLayers",
    "build_aligned_inception_resnet_backbone",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "deform_convs",
    "dilate_stage",
    "kernel_convs",
]
