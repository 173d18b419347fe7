"""The operators as standard tensor operations: for derivatives of any order, for forward-mode
derivatives, and for exchange formats without custom operators.

Signatures and semantics are those of torch.ops.d2_deformable (csrc/library.cpp), including borders,
one-sided derivatives, and coordinates that are far outside or not finite. The kernels are many
times faster and use much less memory. No Python branch here depends on a tensor's values, so
everything can be traced with symbolic sizes.
"""

from .deform_conv2d import deform_conv2d, deform_conv2d_backward
from .deform_roi_align import deform_roi_align, deform_roi_align_backward
from .deform_roi_pool import deform_roi_pool, deform_roi_pool_backward
from .ps_roi_pool import ps_roi_pool, ps_roi_pool_backward

__all__ = [
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_roi_align",
    "deform_roi_align_backward",
    "deform_roi_pool",
    "deform_roi_pool_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
]
