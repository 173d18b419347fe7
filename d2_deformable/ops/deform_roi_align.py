"""mmcv's deformable RoI pooling, built on torchvision's RoIAlign: public function and autograd."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._autocast import without_autocast
from ._checks import (
    HALF_TYPES,
    ArgumentError,
    check_coordinates,
    check_map,
    check_pair,
    check_rois,
    check_scale,
    check_tensors,
    shape,
)
from .geometry import bin_corners, roi_boxes

# Values that the gradient with respect to the offset reads at a time: 64 MiB of float32.
MAX_VALUES = 2**24


def deform_roi_align(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """RoIAlign whose bins are moved by offsets: the deformable RoI pooling of mmcv.

    It differs from `deform_roi_pool`, the operator of the paper, in three ways. Box corners are not
    rounded, and boxes have no minimum size. A bin's samples are at the centres of equal cells of
    the bin, and by default their number follows its size. Samples outside the map count as zero,
    except that those within one pixel of it take the value at its border. Without offsets it is
    Detectron2's "ROIAlignV2".

    Args:
        input: (N, C, H, W).
        rois: (R, 5), each (image index, x0, y0, x1, y1) in input-image pixels.
        offset: (R, 2, bins_h, bins_w), the shift of each bin: channel 0 is dy and channel 1 is dx
            (mmcv has dx first), in units of `gamma` times the RoI's height and width.
        output_size: bins per RoI, an int or (bins_h, bins_w).
        spatial_scale: map pixels per image pixel, e.g. 1/16.
        sampling_ratio: samples per bin and axis; 0 uses the bin's size in map pixels, rounded up.
        gamma: scale of the offsets.

    Returns:
        (R, C, bins_h, bins_w), with the input's dtype; sums are at least float32.

    Raises:
        ArgumentError (a ValueError): shapes that do not fit together, a spatial_scale that is not a
            finite number above 0, or a negative sampling_ratio.

    RoIs get no gradient. Where a sample is replicated from the map's border, its offset gets no
    gradient; mmcv gives it the slope next to the border. Double backward is not supported.

    Example:
        >>> input, rois = torch.randn(1, 4, 8, 8), torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> offset = torch.zeros(1, 2, 7, 7)
        >>> deform_roi_align(input, rois, offset, output_size=7, spatial_scale=1 / 8).shape
        torch.Size([1, 4, 7, 7])

    Source: mmcv 2.2.0, ops/csrc/common/cuda/deform_roi_pool_cuda_kernel.cuh.
    """
    op = "deform_roi_align"
    check_tensors(op, ("offset",), input=input, rois=rois, offset=offset)
    output_size = check_pair(op, "output_size", output_size, least=1)
    check_map(op, input)
    check_rois(op, input, rois)
    check_coordinates(op, input, offset=offset)
    check_scale(op, spatial_scale)
    if sampling_ratio < 0:
        raise ArgumentError(
            f"{op}: sampling_ratio is {sampling_ratio}; expected 0 for a number that follows the "
            "bin's size, or at least 1"
        )
    if offset is not None and offset.shape != (rois.shape[0], 2, *output_size):
        raise ArgumentError(
            f"{op}: the shape of the offset is {shape(offset)}, expected ({rois.shape[0]}, 2, "
            f"{output_size[0]}, {output_size[1]}): a (dy, dx) pair per bin"
        )
    from torchvision.ops import roi_align  # the other operators work without torchvision

    with without_autocast(input):
        value = input.float() if input.dtype in HALF_TYPES else input
        rois = rois.detach().to(value.dtype)
        if offset is None:
            pooled = roi_align(value, rois, output_size, spatial_scale, sampling_ratio, True)
            return pooled.to(input.dtype)
        bins = _bins(
            rois, offset.to(value.dtype), output_size, spatial_scale, sampling_ratio, gamma
        )
        pooled = roi_align(value, _boxes(bins, sampling_ratio), 1, 1.0, sampling_ratio, True)
        pooled = pooled.flatten(1).masked_fill(bins.start.isnan().any(1, keepdim=True), torch.nan)
        if bins.start.requires_grad:
            pooled = _GradientOfStart.apply(pooled, value.detach(), *bins)
        pooled = pooled.view(rois.shape[0], *output_size, input.shape[1])
        return pooled.permute(0, 3, 1, 2).to(input.dtype)


class _Bins(NamedTuple):
    """Bins of all RoIs, B = R * bins_h * bins_w.

    image: (B,), index of the image, in the dtype of the coordinates.
    start: (B, 2), first corner (y, x) in map pixels, whose centres are at whole numbers.
    size: (B, 2), height and width in map pixels.
    counts: (B, 2), rows and columns of samples, in the dtype of the coordinates.
    """

    image: Tensor
    start: Tensor
    size: Tensor
    counts: Tensor


def _bins(rois, offset, output_size, spatial_scale, sampling_ratio, gamma) -> _Bins:
    _, y, x, height, width = roi_boxes(rois, spatial_scale, -0.5, round_rois=False, min_size=None)
    start = torch.stack(bin_corners(y, x, height, width, output_size, gamma * offset), dim=-1)
    size = torch.stack([height, width], dim=-1) / rois.new_tensor(output_size)
    count = torch.full_like(size, sampling_ratio) if sampling_ratio else size.ceil().clamp(min=0)

    def of_bins(value):  # (R, 1, 1, 1, ...) -> (B, ...)
        return value.expand(-1, -1, *output_size, *value.shape[4:]).flatten(0, 3)

    image = rois[:, 0, None, None, None]
    return _Bins(of_bins(image), start.flatten(0, 3), of_bins(size), of_bins(count))


def _boxes(bins: _Bins, sampling_ratio) -> Tensor:
    """Bins as RoIs (B, 5) for which torchvision takes the given number of samples.

    Where a bin's size is almost a whole number, rounding might add a row of samples. Opposite sides
    are moved slightly to avoid that; the mean of samples around the same centre hardly changes.
    """
    start, size = bins.start.detach(), bins.size
    if not sampling_ratio:
        margin = 4 * torch.finfo(size.dtype).eps * (1 + start.abs() + size)
        size = torch.clamp(size, bins.counts - 1 + margin, bins.counts - margin).clamp(min=0)
    low = start + 0.5 + (bins.size - size) / 2
    # torchvision reads outside the map's memory where a coordinate is NaN.
    low = low.nan_to_num(nan=-torch.inf)
    return torch.cat([bins.image[:, None], low.flip(1), (low + size).flip(1)], dim=1)


class _GradientOfStart(torch.autograd.Function):
    """Return `pooled` (B, C) unchanged; backward also computes a gradient for `start`."""

    @staticmethod
    def forward(ctx, pooled, input, image, start, size, count):
        ctx.save_for_backward(input, image, start, size, count)
        return pooled.view_as(pooled)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad, None, None, _gradient_of_start(grad, *ctx.saved_tensors), None, None


# A custom operator, which torch.compile does not trace: the number of samples depends on values.
@torch.library.custom_op("d2_deformable::deform_roi_align_start_gradient", mutates_args=())
def _gradient_of_start(
    grad: Tensor, input: Tensor, image: Tensor, start: Tensor, size: Tensor, count: Tensor
) -> Tensor:
    """The mean over a bin's samples of their slopes in y and x, times grad (B, C): (B, 2)."""
    cells = input.permute(0, 2, 3, 1).contiguous()
    height, width = input.shape[2:]
    image, columns = image.long(), count[:, 1].long()
    samples = count.prod(dim=1).long()
    bin_of = torch.repeat_interleave(samples)
    nth = torch.arange(len(bin_of), device=grad.device) - (samples.cumsum(0) - samples)[bin_of]
    gradient = torch.zeros_like(start)
    step = max(1, MAX_VALUES // (4 * max(1, input.shape[1])))
    for b, n in zip(bin_of.split(step), nth.split(step), strict=True):
        sample = torch.stack([n // columns[b], n % columns[b]], dim=1)
        y, x = (start[b] + (sample + 0.5) * size[b] / count[b]).unbind(1)
        rows, weight_y, slope_y = _corners(y, height)
        columns_x, weight_x, slope_x = _corners(x, width)
        values = cells[image[b, None, None], rows[:, :, None], columns_x[:, None]]  # (S, 2, 2, C)
        values = (values @ grad[b, None, :, None]).squeeze(3)
        slopes = torch.stack(
            [
                torch.einsum("spq,sp,sq->s", values, slope_y, weight_x),
                torch.einsum("spq,sp,sq->s", values, weight_y, slope_x),
            ],
            dim=1,
        )
        gradient.index_add_(0, b, slopes)
    return gradient / samples.clamp(min=1)[:, None]


@_gradient_of_start.register_fake
def _(grad, input, image, start, size, count):
    return start.new_empty(start.shape)


def _corners(at, size: int):
    """The two cells next to each coordinate along one axis (S, 2), with their bilinear weights and
    the slopes of the weights."""
    inside = (at >= -1) & (at <= size)
    at = torch.where(inside, at, 0)
    low = at.floor().clamp(0, size - 1)
    fraction = (at - low).clamp(0, 1)
    cells = torch.stack([low, (low + 1).clamp(max=size - 1)], dim=1).long()
    weight = torch.stack([1 - fraction, fraction], dim=1) * inside[:, None]
    # Beyond the last cell both neighbours are that cell, and the slopes cancel.
    moves = (inside & (at > 0)).to(at)
    return cells, weight, torch.stack([-moves, moves], dim=1)
