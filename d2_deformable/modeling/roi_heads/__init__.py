from .faster_rcnn import DeformCascadeROIHeads, DeformROIHeads
from .rfcn import RFCNHeads, RFCNOutputLayers

__all__ = ["DeformCascadeROIHeads", "DeformROIHeads", "RFCNHeads", "RFCNOutputLayers"]
