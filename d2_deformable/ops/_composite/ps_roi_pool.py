"""Position-sensitive RoI pooling as standard tensor operations.

A bin is computed from four corners of a table of running sums. The sums are float64, so that small
bins keep their precision. Unlike in the kernels, an infinite pixel also affects bins that do not
hold it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import bin_indices, roi_boxes
from .tables import fixed, read, read_backward, to_compute_dtype


def ps_roi_pool(
    input: Tensor, rois: Tensor, *, output_size, spatial_scale: float, round_rois: bool
) -> Tensor:
    """Differentiable with respect to input."""
    images, _, height, width = input.shape
    bins_h, bins_w = output_size
    bins, top_channels = bins_h * bins_w, fixed(input.shape[1]) // (bins_h * bins_w)
    values, rois = to_compute_dtype(input, rois)

    # Sums over all pixels above and left of each corner: (N*(H+1)*(W+1)*bins, C_out).
    table = F.pad(values.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    table = table.reshape(images, top_channels, bins, height + 1, width + 1)
    table = table.permute(0, 3, 4, 2, 1)
    table = table.reshape(images * (height + 1) * (width + 1) * bins, top_channels)

    corners, area = _corners(rois, (height, width), output_size, spatial_scale, round_rois)
    total = sum(sign * read(table, rows) for rows, sign in corners)
    output = total / area.clamp(min=1)[..., None]
    return output.permute(0, 3, 1, 2).to(input.dtype)


def ps_roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    *,
    input_size,
    output_size,
    spatial_scale: float,
    round_rois: bool,
    channels_last: bool,
) -> Tensor:
    """Gradient with respect to the input; it is linear in grad_output."""
    images, channels, height, width = input_size
    bins_h, bins_w = output_size
    bins = bins_h * bins_w
    grad, rois = to_compute_dtype(grad_output, rois)
    corners, area = _corners(rois, (height, width), output_size, spatial_scale, round_rois)
    grad = grad.double().permute(0, 2, 3, 1) / area.clamp(min=1)[..., None]
    grad = torch.where(area[..., None] > 0, grad, 0)
    table = grad.new_zeros(images * (height + 1) * (width + 1) * bins, channels // bins)
    table = sum(sign * read_backward(grad, rows, table) for rows, sign in corners)
    table = table.reshape(images, height + 1, width + 1, bins, channels // bins)
    grad = table[:, 1:, 1:].permute(0, 4, 3, 1, 2).reshape(images, channels, height, width)
    # A pixel is in the sums of all corners below and right of it.
    grad = grad.flip(2, 3).cumsum(2).cumsum(3).flip(2, 3).to(grad_output.dtype)
    return grad.contiguous(memory_format=torch.channels_last) if channels_last else grad


def _corners(rois, size, output_size, spatial_scale, round_rois):
    """The four corners of each bin, as (row of the table, sign), and its area in pixels.

    All are (R, bins_h, bins_w). The counterpart of PsRoiBin in
    csrc/geometry/ps_roi_pool_geometry.h.
    """
    (height, width), (bins_h, bins_w) = size, output_size
    image, y, x, roi_h, roi_w = roi_boxes(rois, spatial_scale, 0.0, round_rois)
    image, y, x, roi_h, roi_w = (t.squeeze(1) for t in (image, y, x, roi_h, roi_w))
    bin_h, bin_w = roi_h / bins_h, roi_w / bins_w
    bins_y, bins_x = bin_indices(output_size, rois.device)
    top = _inside(_fused(bins_y, bin_h, y), height).floor().long()
    bottom = _inside(_fused(bins_y + 1, bin_h, y), height).ceil().long()
    left = _inside(_fused(bins_x, bin_w, x), width).floor().long()
    right = _inside(_fused(bins_x + 1, bin_w, x), width).ceil().long()
    bin_index = bins_y * bins_w + bins_x

    def rows(corner_y, corner_x):
        """Rows of the integral table for a corner of every bin, (R, bins_h, bins_w)."""
        pixel = (image * (height + 1) + corner_y) * (width + 1) + corner_x
        return pixel * (bins_h * bins_w) + bin_index

    corners = [
        (rows(bottom, right), 1),
        (rows(top, right), -1),
        (rows(bottom, left), -1),
        (rows(top, left), 1),
    ]
    return corners, (bottom - top) * (right - left)


def _fused(factor: Tensor, value: Tensor, addend: Tensor) -> Tensor:
    """Compute factor * value + addend, rounded once.

    The kernels are compiled to a fused instruction that does the same. Where a bin ends at a whole
    pixel, one ulp more is one pixel more.
    """
    return (factor * value.double() + addend.double()).to(value.dtype)


def _inside(coordinate: Tensor, size) -> Tensor:
    """Clamp to [0, size]; NaN becomes 0."""
    return torch.where(coordinate > 0, coordinate, 0).clamp(max=size)
