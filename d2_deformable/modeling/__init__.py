"""Backbones, anchors, heads and meta-architectures, registered with Detectron2 on import."""

from .anchor_generator import RoundedAnchorGenerator
from .backbone import (
    DeformResNet,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    deform_convs,
    dilate_stage,
    kernel_convs,
)
from .meta_arch import ClassAwareRPN, ClassAwareRPNHead
from .poolers import DeformROIPooler
from .roi_heads import (
    DeformCascadeROIHeads,
    DeformPoolerMixin,
    DeformROIHeads,
    RFCNHeads,
    RFCNOutputLayers,
)

__all__ = [
    "ClassAwareRPN",
    "ClassAwareRPNHead",
    "DeformCascadeROIHeads",
    "DeformPoolerMixin",
    "DeformROIHeads",
    "DeformROIPooler",
    "DeformResNet",
    "RFCNHeads",
    "RFCNOutputLayers",
    "RoundedAnchorGenerator",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "deform_convs",
    "dilate_stage",
    "kernel_convs",
]
