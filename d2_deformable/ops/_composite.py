"""The operators as standard tensor operations: for derivatives of any order, for forward-mode and
batched derivatives, and for exchange formats that know no operators of ours.

Signatures and meaning are those of torch.ops.d2_deformable (csrc/library.cpp), borders, one-sided
derivatives and wild coordinates included; the rules about one axis are those of csrc/sampling.h.
The kernels are many times faster and smaller. No Python branch here hangs on a tensor's values, so
all of it can be traced with symbolic sizes.

A map is read as a table: a row holds the channels that are read together, and a point that must
not count reads a row of zeros, since zero times an infinite pixel would not be zero.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    mask: Tensor | None = None,
    border: str = "zero",
) -> Tensor:
    """Differentiable by input, offset, weight, bias and mask.

    Memory: 4 samples per output position, tap and input channel where gradients are taken.
    """
    images, _, height, width = input.shape
    channels = _fixed(input.shape[1])
    out_channels, group_channels, kernel_h, kernel_w = (_fixed(size) for size in weight.shape)
    out_h, out_w = offset.shape[2:]
    taps, positions = kernel_h * kernel_w, out_h * out_w
    offset_groups, groups = _fixed(offset.shape[1]) // (2 * taps), channels // group_channels
    map, offset, mask = _computed(input, offset, mask)

    # (N, positions, taps, G), the order in which columns are wanted.
    offset = offset.reshape(images, offset_groups, taps, 2, positions).permute(3, 0, 4, 2, 1)
    grid_y = _grid(out_h, kernel_h, stride[0], padding[0], dilation[0], like=offset)
    grid_x = _grid(out_w, kernel_w, stride[1], padding[1], dilation[1], like=offset)
    grid_shape = (out_h, out_w, kernel_h, kernel_w)
    grid_y = grid_y[:, None, :, None].expand(grid_shape).reshape(positions, taps, 1)
    grid_x = grid_x[None, :, None, :].expand(grid_shape).reshape(positions, taps, 1)
    y, inside_y = _tap_axis(grid_y + offset[0], height, border)
    x, inside_x = _tap_axis(grid_x + offset[1], width, border)
    inside = inside_y & inside_x
    factor = 1 if mask is None else mask.reshape(images, offset_groups, taps, positions)
    factor = factor if mask is None else factor.permute(0, 3, 2, 1)

    # One pixel of zeros around the map: (N*(H+2)*(W+2)*G, C/G), row 0 in the corner.
    table = F.pad(map, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    rows, row_length = height + 2, width + 2
    table = table.reshape(images * rows * row_length * offset_groups, channels // offset_groups)
    image = torch.arange(images, device=input.device).view(images, 1, 1, 1)
    group = torch.arange(offset_groups, device=input.device)
    columns = 0
    for index_y, weight_y in y:
        for index_x, weight_x in x:
            pixel = (image * rows + index_y + 1) * row_length + index_x + 1
            index = torch.where(inside, pixel * offset_groups + group, 0)
            columns = columns + (weight_y * weight_x * factor)[..., None] * F.embedding(
                index, table
            )

    # (N, groups, positions, taps * C/groups) x (groups, taps * C/groups, O/groups).
    columns = columns.reshape(images, positions, taps, groups, group_channels)
    columns = columns.permute(0, 3, 1, 2, 4)
    columns = columns.reshape(images, groups, positions, taps * group_channels)
    weight = weight.to(map.dtype).reshape(groups, out_channels // groups, group_channels, taps)
    weight = weight.permute(0, 3, 2, 1)
    weight = weight.reshape(groups, taps * group_channels, out_channels // groups)
    output = (columns @ weight).transpose(2, 3).reshape(images, out_channels, out_h, out_w)
    output = output if bias is None else output + bias.to(map.dtype)[:, None, None]
    return output.to(input.dtype)


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    *,
    output_size,
    spatial_scale: float,
    group_size: int = 1,
    samples_per_part: int = 4,
    gamma: float = 0.1,
    round_rois: bool = True,
) -> Tensor:
    """Differentiable by input and offset.

    Memory: 2 * samples_per_part samples per result, times as many where gradients by the offset are
    taken.
    """
    images, _, height, width = input.shape
    channels = _fixed(input.shape[1])
    bins_h, bins_w = output_size
    groups = group_size * group_size
    classes = 1 if offset is None else _fixed(offset.shape[1]) // 2
    class_channels = channels // (groups * classes)
    map, rois, offset = _computed(input, rois, offset)
    image, y, x, roi_h, roi_w = _roi_boxes(rois, spatial_scale, -0.5, round_rois)
    bin_h, bin_w = roi_h / bins_h, roi_w / bins_w

    # (R, classes or 1, bins_h or 1, bins_w or 1), without and with the offset.
    bins_y = torch.arange(bins_h, device=input.device)[:, None]
    bins_x = torch.arange(bins_w, device=input.device)
    y, x = bins_y * bin_h + y, bins_x * bin_w + x
    if offset is not None:
        parts_h, parts_w = (_fixed(size) for size in offset.shape[2:])
        offset = offset.index_select(2, _parts(bins_y[:, 0], parts_h, bins_h))
        offset = offset.index_select(3, _parts(bins_x, parts_w, bins_w))
        offset = offset * gamma
        y, x = y + offset[:, 0::2] * roi_h, x + offset[:, 1::2] * roi_w

    # A row and a column of zeros behind the map: (N*(H+1)*(W+1)*groups*classes, C_out/classes).
    rows, row_length = height + 1, width + 1
    table = F.pad(map, (0, 1, 0, 1))
    table = table.reshape(images, classes, class_channels, groups, rows, row_length)
    table = table.permute(0, 4, 5, 3, 1, 2)
    table = table.reshape(images * rows * row_length * groups * classes, class_channels)
    group = _parts(bins_y, group_size, bins_h) * group_size + _parts(bins_x, group_size, bins_w)
    plane = group * classes + torch.arange(classes, device=input.device)[:, None, None]

    # A whole row of samples, both neighbours of each, at a time.
    steps = torch.arange(samples_per_part, device=input.device, dtype=map.dtype)
    samples = x[..., None] + steps * (bin_w / samples_per_part)[..., None]
    neighbours_x, inside_x = _clamped_axis(samples, width)
    index_x = torch.cat([index for index, _ in neighbours_x], dim=-1)
    weight_x = torch.cat([weight for _, weight in neighbours_x], dim=-1)[..., None, :]
    total, count_y = 0, 0
    for step in range(samples_per_part):
        neighbours_y, inside_y = _clamped_axis(y + step * (bin_h / samples_per_part), height)
        count_y = count_y + inside_y.to(map.dtype)
        for index_y, weight_y in neighbours_y:
            pixel = (image * rows + index_y)[..., None] * row_length + index_x
            sampled = F.embedding(pixel * (groups * classes) + plane[..., None], table)
            total = total + weight_y[..., None] * (weight_x @ sampled).squeeze(-2)
    count = count_y * inside_x.to(map.dtype).sum(-1)
    output = total / count.clamp(min=1)[..., None]
    output = output.permute(0, 1, 4, 2, 3)
    return output.reshape(rois.shape[0], channels // groups, bins_h, bins_w).to(input.dtype)


def ps_roi_pool(
    input: Tensor, rois: Tensor, *, output_size, spatial_scale: float, round_rois: bool = True
) -> Tensor:
    """Differentiable by input.

    A bin is four corners of a table of running sums, which are float64, lest small bins suffer from
    large sums. Here an infinite pixel reaches bins beyond those that hold it.
    """
    images, _, height, width = input.shape
    channels = _fixed(input.shape[1])
    bins_h, bins_w = output_size
    bins = bins_h * bins_w
    map, rois = _computed(input, rois)
    image, y, x, roi_h, roi_w = _roi_boxes(rois, spatial_scale, 0.0, round_rois)
    bin_h, bin_w = roi_h / bins_h, roi_w / bins_w
    bins_y = torch.arange(bins_h, device=input.device)[:, None]
    bins_x = torch.arange(bins_w, device=input.device)
    top = _inside(_fused(bins_y, bin_h, y), height).floor().long()
    bottom = _inside(_fused(bins_y + 1, bin_h, y), height).ceil().long()
    left = _inside(_fused(bins_x, bin_w, x), width).floor().long()
    right = _inside(_fused(bins_x + 1, bin_w, x), width).ceil().long()

    # Sums over all pixels above and left of each corner: (N*(H+1)*(W+1)*bins, C_out).
    rows, row_length = height + 1, width + 1
    table = F.pad(map.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    table = table.reshape(images, channels // bins, bins, rows, row_length)
    table = table.permute(0, 3, 4, 2, 1)
    table = table.reshape(images * rows * row_length * bins, channels // bins)
    bin = bins_y * bins_w + bins_x

    def sums(corner_y, corner_x):
        pixel = (image * rows + corner_y) * row_length + corner_x
        return F.embedding(pixel * bins + bin, table)

    total = sums(bottom, right) - sums(top, right) - sums(bottom, left) + sums(top, left)
    area = (bottom - top) * (right - left)
    output = (total / area.clamp(min=1)[..., None]).squeeze(1).permute(0, 3, 1, 2)
    return output.to(input.dtype)


def _fixed(size) -> int:
    """A size that the network fixes. TorchScript's tracer makes tensors of all sizes; of an empty
    tensor ONNX Runtime cannot bear two that are unknown."""
    if not torch.jit.is_tracing():
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(size)


def _computed(input: Tensor, *tensors: Tensor | None):
    """The tensors in the type that results for the input are computed in, at least float32."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return tuple(t if t is None else t.to(dtype) for t in (input, *tensors))


def _grid(positions, kernel, stride, padding, dilation, like: Tensor) -> Tensor:
    """(positions, kernel): where the taps stand without an offset."""
    position = torch.arange(positions, device=like.device) * stride - padding
    return (position[:, None] + torch.arange(kernel, device=like.device) * dilation).to(like.dtype)


def _tap_axis(coordinate: Tensor, size, border: str):
    """As `sample_axis` of csrc/sampling.h: ((index, weight) of both neighbours, inside); indices
    from -1 to size, which the zeros around the map serve."""
    above = coordinate >= 0 if border == "legacy" else coordinate > -1
    inside = above & (coordinate < size)
    at = torch.where(inside, coordinate, 0)
    at = at.clamp(max=size - 1) if border == "legacy" else at
    low = at.floor()
    fraction = at - low
    if border == "legacy":  # clamp's own derivative at the bound itself is 1
        fraction = torch.where(at < size - 1, fraction, 0)
    index = low.detach().long()
    return ((index, 1 - fraction), (index + 1, fraction)), inside


def _clamped_axis(coordinate: Tensor, size):
    """As `sample_axis_clamped` of csrc/sampling.h: ((index, weight) of both neighbours, inside);
    index `size`, the zeros behind the map, for those that do not count."""
    inside = (coordinate >= -0.5) & (coordinate <= size - 0.5)
    at = torch.where(inside, coordinate, 0).clamp(0, size - 1)
    low = at.floor()
    fraction = at - low
    between = fraction > 0
    fraction = torch.where(between, fraction, 0)  # no derivative at integers
    index = low.detach().long()
    weight = inside.to(at.dtype) - fraction
    return (
        (torch.where(inside, index, size), weight),
        (torch.where(between, index + 1, size), fraction),
    ), inside


def _roi_boxes(rois: Tensor, spatial_scale: float, shift: float, round_rois: bool):
    """As RoiBox of csrc/geometry/roi.h: image index, y, x, height, width, each (R, 1, 1, 1)."""
    corners = rois.detach()[:, 1:]
    if round_rois:  # halves away from zero; torch.round takes them to even numbers
        size = corners.abs()
        whole = size.floor()
        corners = corners.sign() * (whole + (size - whole >= 0.5).to(size.dtype))
    corners = corners * spatial_scale + shift
    corners = corners[:, :, None, None, None]
    x0, y0, x1, y1 = corners[:, 0], corners[:, 1], corners[:, 2], corners[:, 3]
    image = rois.detach()[:, 0].long()[:, None, None, None]
    return image, y0, x0, _at_least_a_tenth(y1 - y0), _at_least_a_tenth(x1 - x0)


def _at_least_a_tenth(side: Tensor) -> Tensor:
    return torch.where(side > 0.1, side, 0.1)


def _fused(factor: Tensor, value: Tensor, addend: Tensor) -> Tensor:
    """factor * value + addend, rounded once, as the fused instruction that the kernels are compiled
    to: where a bin ends at a whole pixel, one ulp more is one pixel more."""
    return (factor * value.double() + addend.double()).to(value.dtype)


def _inside(coordinate: Tensor, size) -> Tensor:
    """From 0 to size; NaN counts as 0."""
    return torch.where(coordinate > 0, coordinate, 0).clamp(max=size)


def _parts(bins: Tensor, parts, number_of_bins) -> Tensor:
    """Bin b belongs to part b * parts // bins."""
    return torch.div(bins * parts, number_of_bins, rounding_mode="floor")
