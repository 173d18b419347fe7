"""RoI heads of Faster R-CNN with deformable RoI pooling, and of plain and deformable R-FCN."""

from .faster_rcnn import DeformCascadeROIHeads, DeformPoolerMixin, DeformROIHeads
from .ohem import OHEMMixin
from .rfcn import RFCNHeads, RFCNOutputLayers
from .soft_nms import SoftNMSMixin

__all__ = [
    "DeformCascadeROIHeads",
    "DeformPoolerMixin",
    "DeformROIHeads",
    "OHEMMixin",
    "RFCNHeads",
    "RFCNOutputLayers",
    "SoftNMSMixin",
]
