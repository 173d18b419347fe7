"""Boxes of RoIs on the map, as RoiBox of csrc/geometry/roi.h."""

import torch
from torch import Tensor


def roi_boxes(rois: Tensor, spatial_scale: float, shift: float, round_rois: bool):
    """(R, 5) -> image index, y, x, height, width in map pixels, each (R, 1, 1, 1)."""
    corners = rois.detach()[:, 1:]
    if round_rois:  # halves away from zero; torch.round takes them to even numbers
        size = corners.abs()
        whole = size.floor()
        corners = corners.sign() * (whole + (size - whole >= 0.5).to(size.dtype))
    corners = (corners * spatial_scale + shift)[:, :, None, None, None]
    x0, y0, x1, y1 = corners[:, 0], corners[:, 1], corners[:, 2], corners[:, 3]
    image = rois.detach()[:, 0].long()[:, None, None, None]
    return image, y0, x0, _at_least_a_tenth(y1 - y0), _at_least_a_tenth(x1 - x0)


def _at_least_a_tenth(side: Tensor) -> Tensor:
    return torch.where(side > 0.1, side, 0.1)


def parts_of_bins(bins: Tensor, parts, number_of_bins) -> Tensor:
    """Bin b belongs to part b * parts // bins."""
    return torch.div(bins * parts, number_of_bins, rounding_mode="floor")
