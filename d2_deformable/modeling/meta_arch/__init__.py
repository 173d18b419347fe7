"""Meta-architectures, the values of MODEL.META_ARCHITECTURE."""

from .class_aware_rpn import ClassAwareRPN, ClassAwareRPNHead
from .dense import SoftNMSRetinaNet
from .fcos import build_fcos
from .mimic import MimicRCNN
from .rcnn import DeformRCNN
from .segmentor import DeformSegmentor

__all__ = [
    "ClassAwareRPN",
    "ClassAwareRPNHead",
    "DeformRCNN",
    "DeformSegmentor",
    "MimicRCNN",
    "SoftNMSRetinaNet",
    "build_fcos",
]
