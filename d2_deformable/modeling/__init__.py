"""Backbones, heads and meta-architectures; importing this registers them with Detectron2."""

from .backbone import (
    DeformResNet,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    deform_convs,
    dilate_stage,
    kernel_convs,
)
from .meta_arch import ClassAwareRPN, ClassAwareRPNHead, DeformRCNN
from .poolers import DeformROIPooler
from .roi_heads import (
    DeformCascadeROIHeads,
    DeformPoolerMixin,
    DeformROIHeads,
    RFCNHeads,
    RFCNOutputLayers,
)
from .sem_seg_head import DeepLabHead

__all__ = [
    "ClassAwareRPN",
    "ClassAwareRPNHead",
    "DeepLabHead",
    "DeformCascadeROIHeads",
    "DeformPoolerMixin",
    "DeformRCNN",
    "DeformROIHeads",
    "DeformROIPooler",
    "DeformResNet",
    "RFCNHeads",
    "RFCNOutputLayers",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "deform_convs",
    "dilate_stage",
    "kernel_convs",
]
