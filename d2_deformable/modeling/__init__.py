"""Backbones, heads and networks; importing this package registers them with Detectron2."""

from .. import needs_detectron2
from .anchor_generator import RoundedAnchorGenerator
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
from .meta_arch import ClassAwareRPN, ClassAwareRPNHead, DeformRCNN, DeformSegmentor
from .poolers import DeformROIPooler, LegacyROIPooler, ROIAveragePooler
from .proposal_generator import LegacyRPN
from .roi_heads import (
    DeformCascadeROIHeads,
    DeformPoolerMixin,
    DeformROIHeads,
    RFCNHeads,
    RFCNOutputLayers,
    SoftNMSMixin,
)
from .sem_seg_head import DeepLabHead
from .soft_nms import SoftNMS
from .tta import DetectorWithTTA, predict_raw

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
    "DeformSegmentor",
    "DetectorWithTTA",
    "InceptionResBlock",
    "LegacyROIPooler",
    "LegacyRPN",
    "RFCNHeads",
    "RFCNOutputLayers",
    "ROIAveragePooler",
    "RoundedAnchorGenerator",
    "SoftNMS",
    "SoftNMSMixin",
    "build_aligned_inception_resnet_backbone",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "deform_convs",
    "dilate_stage",
    "kernel_convs",
    "predict_raw",
]
