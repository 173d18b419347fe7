"""The operators, each on one page: public function, fake kernels, autograd (kernels: csrc/)."""

from . import _vmap  # registers its rules
from ._library import has_cuda
from .deform_conv2d import BORDERS, deform_conv2d
from .deform_roi_align import deform_roi_align
from .deform_roi_pool import deform_roi_pool
from .ps_roi_pool import ps_roi_pool

__all__ = [
    "BORDERS",
    "deform_conv2d",
    "deform_roi_align",
    "deform_roi_pool",
    "has_cuda",
    "ps_roi_pool",
]
