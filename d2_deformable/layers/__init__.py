"""Layers that predict their own offsets and then call an operator of `d2_deformable.ops`.

Like the operators, they need torch only.
"""

from .conversion import deform_convs, deform_modules, kernel_convs
from .deform_conv2d import DeformConv2d
from .deform_roi_align import DeformRoIAlign
from .deform_roi_pool import DeformRoIPool, ModulatedDeformRoIPool, RoIAveragePool
from .offset_prediction import OffsetOutput, OffsetPrediction, RoISampling
from .ps_roi_pool import PSRoIPredictor

__all__ = [
    "DeformConv2d",
    "DeformRoIAlign",
    "DeformRoIPool",
    "ModulatedDeformRoIPool",
    "OffsetOutput",
    "OffsetPrediction",
    "PSRoIPredictor",
    "RoIAveragePool",
    "RoISampling",
    "deform_convs",
    "deform_modules",
    "kernel_convs",
]
