"""The operators, each on one page: public function, fake kernels, autograd (kernels: csrc/)."""

from .deform_conv2d import deform_conv2d
from .deform_roi_pool import deform_roi_pool
from .ps_roi_pool import ps_roi_pool

__all__ = ["deform_conv2d", "deform_roi_pool", "ps_roi_pool"]
