"""Deformable RoIAlign as standard tensor operations.

The samples of a bin form a grid. So its mean is a matrix product of weights of the map's rows, the
map, and weights of the map's columns. Memory: one number per bin and pixel of all images. Unlike in
the kernels, an infinite pixel also affects bins that do not read it.
"""

import torch
from torch import Tensor

from ..geometry import bin_corners, finite, roi_boxes
from .tables import fixed, to_compute_dtype

MOST_SAMPLES = 2**20  # per bin and axis: kMostAlignSamples in csrc/geometry/bin_axis.h


def deform_roi_align(input: Tensor, rois: Tensor, offset: Tensor | None, **arguments) -> Tensor:
    """Differentiable with respect to input and offset; `arguments` are those of `_Bins`."""
    bins = _Bins(input, rois, offset, **arguments)
    output = (bins.grid() @ bins.table).reshape(bins.shape) / bins.divisor[..., None]
    output = torch.where(bins.is_nan[..., None], torch.nan, output)
    return output.permute(0, 3, 1, 2).to(input.dtype)


def deform_roi_align_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, **arguments
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to input and offset, themselves differentiable with respect to
    grad_output, input and offset; `arguments` are those of `_Bins`."""
    bins = _Bins(input, rois, offset, **arguments)
    grad = grad_output.to(bins.table.dtype).permute(0, 2, 3, 1)
    grad = torch.where(bins.reads[..., None], grad / bins.divisor[..., None], 0)
    grad = grad.reshape(bins.number, bins.table.shape[1])
    grad_input = bins.as_map(bins.grid().mT @ grad).to(input.dtype)
    if offset is None:
        return grad_input, input.new_empty([0])
    dot = (grad @ bins.table.mT).reshape(bins.grid_shape)
    grad_y = torch.einsum("rijyx,rijy,rijx->rij", dot, bins.y.slope, bins.x.weight)
    grad_x = torch.einsum("rijyx,rijy,rijx->rij", dot, bins.y.weight, bins.x.slope)
    shifts = [grad_y * finite(bins.roi_h), grad_x * finite(bins.roi_w)]
    return grad_input, (bins.gamma * torch.stack(shifts, dim=1)).to(offset.dtype)


class _Bins:
    """The map as a table (N*H*W, C), and the weights of its rows and columns in all bins.

    y: of the rows of all images, (R, bins_h, bins_w or 1, N*H).
    x: of the columns, (R, bins_h or 1, bins_w, W).
    divisor: samples per bin, at least 1, (R, bins_h, bins_w).
    is_nan: whether a coordinate is NaN, (R, bins_h, bins_w). Such a bin reads nothing.
    reads: whether a sample reads the map, (R, bins_h, bins_w). Other bins pass no gradients.
    """

    def __init__(
        self,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        *,
        output_size,
        spatial_scale: float,
        sampling_ratio: int,
        gamma: float,
    ):
        images, _, height, width = input.shape
        channels = fixed(input.shape[1])
        self.gamma, self.map_shape = gamma, (images, height, width, channels)
        self.shape = (rois.shape[0], *output_size, channels)
        self.number = rois.shape[0] * output_size[0] * output_size[1]
        self.grid_shape = (rois.shape[0], *output_size, images * height, width)
        input, rois, offset = to_compute_dtype(input, rois, offset)
        self.table = input.permute(0, 2, 3, 1).reshape(images * height * width, channels)
        image, y, x, roi_h, roi_w = roi_boxes(rois, spatial_scale, -0.5, False, min_size=None)
        y, x = bin_corners(
            y, x, roi_h, roi_w, output_size, None if offset is None else gamma * offset
        )
        image, y, x, self.roi_h, self.roi_w = (t.squeeze(1) for t in (image, y, x, roi_h, roi_w))
        bins_h, bins_w = output_size
        image = image[..., None]
        self.y = _Axis(y, self.roi_h / bins_h, sampling_ratio, height, images, image)
        self.x = _Axis(x, self.roi_w / bins_w, sampling_ratio, width)
        count = self.y.count * self.x.count
        self.divisor = torch.where(count > 0, count, 1).expand(self.shape[:-1])
        self.is_nan = (self.y.is_nan | self.x.is_nan).expand(self.shape[:-1])
        self.reads = (self.y.reads & self.x.reads).expand(self.shape[:-1])

    def grid(self) -> Tensor:
        """Weights of the table's rows in all bins: (R*bins_h*bins_w, N*H*W)."""
        grid = self.y.weight[..., None] * self.x.weight[..., None, :]
        return grid.reshape(self.number, self.table.shape[0])

    def as_map(self, table: Tensor) -> Tensor:
        return table.reshape(self.map_shape).permute(0, 3, 1, 2)


class _Axis:
    """The counterpart of `align_sampling` and `BinAxis` in csrc/geometry/bin_axis.h: weights and
    slopes (..., maps * size) of the pixels of `maps` maps along one axis, of which a bin reads one.

    Args:
        start: first corner of each bin, (...).
        side: size of the bins in map pixels, negative for an inverted box.
        samples: per bin; 0 uses the side, rounded up.
        size: pixels of a map.
        image: the map that each bin reads, (..., 1).
    """

    def __init__(self, start: Tensor, side: Tensor, samples: int, size, maps=1, image=0):
        # Samples of a chosen number are less than a pixel apart, so only so many fit into a map.
        number = samples or 2 * size + 6
        count = torch.full_like(side, samples) if samples else side.ceil().clamp(0, MOST_SAMPLES)
        cell = side / count.clamp(min=1)
        first = start + torch.where(cell < 0, count - 0.5, 0.5) * cell
        self.count, self.is_nan = count, first.isnan()
        step = cell.abs()
        k = torch.arange(number, device=start.device, dtype=start.dtype)
        if not samples:
            skipped = ((-1 - first.detach()) / step).floor() - 1
            k = k + torch.where(skipped > 0, skipped, 0)[..., None]
        at = first[..., None] + k * step[..., None]
        inside = (at >= -1) & (at <= size) & (k < count[..., None])
        self.reads = inside.any(-1)
        at = torch.where(inside, at, 0).clamp(0, size - 1)
        low = at.detach().floor()
        between = (at > 0) & (at < size - 1)
        fraction = torch.where(between, at - low, 0)  # no derivative at the border
        slope, counted = between.to(at.dtype), inside.to(at.dtype)
        low = low.long() + image * size
        zeros = at.new_zeros(*at.shape[:-1], maps * size)
        high = low + between
        self.weight = zeros.scatter_add(-1, low, counted - fraction)
        self.weight = self.weight.scatter_add(-1, high, fraction)
        self.slope = zeros.scatter_add(-1, low, -slope).scatter_add(-1, high, slope)
