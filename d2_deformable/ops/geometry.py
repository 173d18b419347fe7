"""Sampling positions of the operators in their input map: csrc/geometry/ in Python.

Coordinates are (y, x) in pixels of the map. The centre of pixel (0, 0) is at (0, 0). No branch
depends on a tensor's values, so that composites and exported graphs can be traced.
"""

import torch
from torch import Tensor

# ---- Deformable convolution ---------------------------------------------------------------------


def kernel_taps(kernel_size, dilation, device=None) -> Tensor:
    """Positions of the taps relative to the first one, row by row: (taps, 2)."""
    rows, columns = (torch.arange(k, device=device) * d for k, d in zip(kernel_size, dilation))
    return torch.stack([rows.repeat_interleave(len(columns)), columns.repeat(len(rows))], dim=1)


def tap_grid(output_size, kernel_size, stride, padding, dilation, device=None):
    """Sampling points without offsets: integers y (taps, H_out, 1) and x (taps, 1, W_out)."""
    taps = kernel_taps(kernel_size, dilation, device)
    rows, columns = (
        torch.arange(n, device=device) * s - p for n, s, p in zip(output_size, stride, padding)
    )
    return taps[:, 0, None, None] + rows[:, None], taps[:, 1, None, None] + columns


def is_inside(points: Tensor, size) -> Tensor:
    """Whether the pixel nearest to each point (..., 2) belongs to the map: (...).

    With the zero border, a point up to half a pixel further out still gets part of a border pixel.
    """
    return ((points >= -0.5) & (points < points.new_tensor(size) - 0.5)).all(dim=-1)


# ---- RoI pooling --------------------------------------------------------------------------------

MIN_SIZE = 0.1  # minimum height and width of a RoI in the released operators


def roi_boxes(rois: Tensor, spatial_scale, shift: float, round_rois: bool, min_size=MIN_SIZE):
    """Convert RoIs (R, 5) to image index, y, x, height and width in map pixels, each (R, 1, 1, 1).

    Args:
        spatial_scale: map pixels per image pixel, a number or (R, 1).
        shift: -0.5 where pixels have their centres at whole numbers, 0 where they start there.
        round_rois: round the corners to whole image pixels first, halves away from zero.
        min_size: minimum height and width; None leaves them as they are (mmcv).
    """
    corners = rois.detach()[:, 1:]
    if round_rois:  # torch.round rounds halves to even numbers
        size = corners.abs()
        whole = size.floor()
        corners = corners.sign() * (whole + (size - whole >= 0.5).to(size.dtype))
    corners = (corners * spatial_scale + shift)[:, :, None, None, None]
    x0, y0, x1, y1 = corners[:, 0], corners[:, 1], corners[:, 2], corners[:, 3]
    image = rois.detach()[:, 0].long()[:, None, None, None]
    height, width = y1 - y0, x1 - x0
    if min_size is not None:
        height, width = (torch.where(side > min_size, side, min_size) for side in (height, width))
    return image, y0, x0, height, width


def bin_indices(output_size, device=None):
    """Indices of the bins' rows (bins_h, 1) and columns (bins_w,)."""
    bins_h, bins_w = output_size
    return torch.arange(bins_h, device=device)[:, None], torch.arange(bins_w, device=device)


def bin_corners(y, x, height, width, output_size, offset: Tensor | None = None):
    """First corners of the bins: y and x, each (R, classes or 1, bins_h or 1, bins_w or 1).

    Args:
        y, x, height, width: of the RoIs, see `roi_boxes`.
        offset: (R, 2*classes, bins_h, bins_w), (dy, dx) pairs in fractions of the RoI's height and
            width.
    """
    rows, columns = bin_indices(output_size, y.device)
    y, x = rows * (height / output_size[0]) + y, columns * (width / output_size[1]) + x
    if offset is not None:
        y, x = y + _shift(offset[:, 0::2], height), x + _shift(offset[:, 1::2], width)
    return y, x


def _shift(offset: Tensor, side: Tensor) -> Tensor:
    """offset * side. A RoI of infinite size reads nothing, so its offset gets the gradient 0, not
    0 * infinity."""
    shift = offset * finite(side)
    return torch.where(side.abs() < torch.inf, shift, offset.detach() * side)


def finite(side: Tensor) -> Tensor:
    """The sides, with 0 for those that are infinite or NaN."""
    return torch.where(side.abs() < torch.inf, side, 0)


def samples_of_bins(corner: Tensor, bin_side: Tensor, samples: int, centred: bool = False):
    """Coordinates of a bin's samples along one axis: (...) -> (..., samples).

    The first is at the bin's corner, as in the released operator. With `centred`, all are at the
    centres of equal parts of the bin, as in mmcv.
    """
    steps = torch.arange(samples, device=corner.device, dtype=corner.dtype)
    return corner[..., None] + (steps + 0.5 * centred) * (bin_side / samples)[..., None]


def is_counted(coordinate: Tensor, size) -> Tensor:
    """Whether a sample is at most half a pixel outside the map, along one axis.

    Other samples are left out of a bin's mean.
    """
    return (coordinate >= -0.5) & (coordinate <= size - 0.5)


def parts_of_bins(bins: Tensor, parts, number_of_bins) -> Tensor:
    """The part that each bin belongs to: bin b to part b * parts // number_of_bins."""
    return torch.div(bins * parts, number_of_bins, rounding_mode="floor")
