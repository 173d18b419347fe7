"""Backbones, heads and networks; importing this package registers them with Detectron2."""

from .. import needs_detectron2
from ..layers import deform_modules
from .anchor_generator import RoundedAnchorGenerator
from .backbone import (
    DeformResNet,
    InceptionResBlock,
    LastLevelP6,
    build_aligned_inception_resnet_backbone,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    deform_convs,
    dilate_stage,
    kernel_convs,
)
from .build import build_model
from .meta_arch import (
    ClassAwareRPN,
    ClassAwareRPNHead,
    DeformRCNN,
    DeformSegmentor,
    MimicRCNN,
    SoftNMSRetinaNet,
    build_fcos,
)
from .poolers import DeformROIPooler, LegacyROIPooler, ROIAveragePooler
from .proposal_generator import LegacyRPN
from .roi_heads import (
    DeformCascadeROIHeads,
    DeformPoolerMixin,
    DeformROIHeads,
    OHEMMixin,
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
    "LastLevelP6",
    "LegacyROIPooler",
    "LegacyRPN",
    "MimicRCNN",
    "OHEMMixin",
    "RFCNHeads",
    "RFCNOutputLayers",
    "ROIAveragePooler",
    "RoundedAnchorGenerator",
    "SoftNMS",
    "SoftNMSMixin",
    "SoftNMSRetinaNet",
    "build_aligned_inception_resnet_backbone",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_fcos",
    "build_model",
    "deform_convs",
    "deform_modules",
    "dilate_stage",
    "kernel_convs",
    "predict_raw",
]
