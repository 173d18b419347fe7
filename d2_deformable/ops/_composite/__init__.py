"""The operators as standard tensor operations: for derivatives of any order, for forward-mode
derivatives, and for exchange formats that know no operators of ours.

Signatures and meaning are those of torch.ops.d2_deformable (csrc/library.cpp), borders, one-sided
derivatives and wild coordinates included. The kernels are many times faster and smaller. No Python
branch here hangs on a tensor's values, so all of it can be traced with symbolic sizes.
"""

from .deform_conv2d import deform_conv2d, deform_conv2d_backward
from .deform_roi_pool import deform_roi_pool, deform_roi_pool_backward
from .ps_roi_pool import ps_roi_pool, ps_roi_pool_backward

__all__ = [
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_roi_pool",
    "deform_roi_pool_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
]
