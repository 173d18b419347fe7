"""The definition of the operators: slow, obvious, differentiable PyTorch, one formula at a time.

Everything is based on the paper's equations (3) and (4): the value of a map at a real point p is
the sum over all its pixels q of G(q, p) * x(q), with G(q, p) = g(q_y, p_y) * g(q_x, p_x) and the
hat function g(a, b) = max(0, 1 - |a - b|). Pixels outside the map are absent, so they count as 0.
Kernels never compute it this way, which makes the comparison meaningful. Autograd gives the
gradients.

At integer coordinates the hat function has a kink, where the operators define one-sided gradients;
compare gradients away from integers.
"""

import itertools

import torch
from torch import Tensor


def hat(coordinates: Tensor, size: int) -> Tensor:
    """(...) coordinates along an axis -> (..., size) weights of the pixels 0 .. size-1."""
    pixels = torch.arange(size, dtype=coordinates.dtype, device=coordinates.device)
    return (1 - (pixels - coordinates[..., None]).abs()).clamp(min=0)


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def deform_conv2d(
    input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None, border="zero"
):
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    images, channels, height, width = input.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    out_h, out_w = offset.shape[2:]
    offset_groups = offset.shape[1] // (2 * kernel_h * kernel_w)
    like = {"dtype": input.dtype, "device": input.device}
    offset = offset.view(images, offset_groups, kernel_h, kernel_w, 2, out_h, out_w)
    mask = offset.new_ones(()) if mask is None else mask.view(*offset.shape[:4], out_h, out_w)
    mask = mask.expand(*offset.shape[:4], out_h, out_w)

    # Per tap and offset group: read the input at every output position's shifted point.
    sampled = input.new_zeros(images, channels, kernel_h, kernel_w, out_h, out_w)
    grid_y = (torch.arange(out_h, **like) * stride[0] - padding[0])[:, None]
    grid_x = (torch.arange(out_w, **like) * stride[1] - padding[1])[None, :]
    for group, i, j in itertools.product(range(offset_groups), range(kernel_h), range(kernel_w)):
        y = grid_y + i * dilation[0] + offset[:, group, i, j, 0]  # (N, out_h, out_w)
        x = grid_x + j * dilation[1] + offset[:, group, i, j, 1]
        factor = mask[:, group, i, j]
        if border == "legacy":
            factor = factor * ((y >= 0) & (y < height) & (x >= 0) & (x < width))
            y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        first, last = (g * channels // offset_groups for g in (group, group + 1))
        value = torch.einsum(
            "nchw,nabh,nabw->ncab", input[:, first:last], hat(y, height), hat(x, width)
        )
        sampled[:, first:last, i, j] = value * factor[:, None]

    # An ordinary convolution's sum of products, per weight group.
    groups = channels // group_channels
    output = torch.einsum(
        "ngcijab,gocij->ngoab",
        sampled.view(images, groups, group_channels, kernel_h, kernel_w, out_h, out_w),
        weight.view(groups, out_channels // groups, group_channels, kernel_h, kernel_w),
    ).reshape(images, out_channels, out_h, out_w)
    return output if bias is None else output + bias[:, None, None]


def round_half_away(value: Tensor) -> Tensor:
    """C's round(); torch.round rounds halves to even."""
    return value.sign() * (value.abs() + 0.5).floor()


def roi_box(roi, spatial_scale, round_rois):
    """(y, x, height, width) in map pixels of one (index, x0, y0, x1, y1), sides at least 0.1."""
    corners = round_half_away(roi[1:]) if round_rois else roi[1:]
    x0, y0, x1, y1 = corners * spatial_scale
    return y0, x0, (y1 - y0).clamp(min=0.1), (x1 - x0).clamp(min=0.1)


def deform_roi_pool(
    input,
    rois,
    offset=None,
    *,
    output_size,
    spatial_scale,
    group_size=1,
    samples_per_part=4,
    gamma=0.1,
    round_rois=True,
):
    bins_h, bins_w = pair(output_size)
    height, width = input.shape[2:]
    # (N, class, channel of the class, group row, group column, H, W)
    offset = input.new_zeros(len(rois), 2, 1, 1) if offset is None else offset
    classes, part_h, part_w = offset.shape[1] // 2, *offset.shape[2:]
    maps = input.view(input.shape[0], classes, -1, group_size, group_size, height, width)
    offset = offset.view(len(rois), classes, 2, part_h, part_w) * gamma
    steps = torch.arange(samples_per_part, dtype=input.dtype, device=input.device)

    output = input.new_zeros(len(rois), classes, maps.shape[2], bins_h, bins_w)
    for r, roi in enumerate(rois):
        y0, x0, roi_h, roi_w = roi_box(roi, spatial_scale, round_rois)
        y0, x0 = y0 - 0.5, x0 - 0.5
        bin_h, bin_w = roi_h / bins_h, roi_w / bins_w
        for k, i, j in itertools.product(range(classes), range(bins_h), range(bins_w)):
            dy, dx = offset[r, k, :, i * part_h // bins_h, j * part_w // bins_w]
            y = y0 + i * bin_h + dy * roi_h + steps * (bin_h / samples_per_part)
            x = x0 + j * bin_w + dx * roi_w + steps * (bin_w / samples_per_part)
            y = y[(y >= -0.5) & (y <= height - 0.5)]
            x = x[(x >= -0.5) & (x <= width - 0.5)]
            if len(y) > 0 and len(x) > 0:
                rows = hat(y.clamp(0, height - 1), height)
                columns = hat(x.clamp(0, width - 1), width)
                group = (i * group_size // bins_h, j * group_size // bins_w)
                planes = maps[(int(roi[0]), k, slice(None), *group)]
                output[r, k, :, i, j] = (rows @ planes @ columns.T).mean(dim=(1, 2))
    return output.flatten(1, 2)


def roi_average_pool(input, rois, *, output_size, spatial_scale, round_rois=True):
    """Equation (5) of the paper: bin (i, j) is the mean over floor(i*h/k) <= p_y < ceil((i+1)*h/k),
    and the same along x, of the pixels p_0 + p. Where p_0 is not a whole pixel, it is added before
    floor and ceil."""
    bins_h, bins_w = pair(output_size)
    output = input.new_zeros(len(rois), input.shape[1], bins_h, bins_w)
    for r, roi in enumerate(rois):
        y0, x0, roi_h, roi_w = roi_box(roi, spatial_scale, round_rois)
        for i, j in itertools.product(range(bins_h), range(bins_w)):
            pixels = [
                input[int(roi[0]), :, y, x]
                for y, x in itertools.product(*map(range, input.shape[2:]))
                if (y0 + i * (roi_h / bins_h)).floor()
                <= y
                < (y0 + (i + 1) * (roi_h / bins_h)).ceil()
                and (x0 + j * (roi_w / bins_w)).floor()
                <= x
                < (x0 + (j + 1) * (roi_w / bins_w)).ceil()
            ]
            if pixels:
                output[r, :, i, j] = torch.stack(pixels).mean(dim=0)
    return output


def ps_roi_pool(input, rois, *, output_size, spatial_scale, round_rois=True):
    bins_h, bins_w = pair(output_size)
    height, width = input.shape[2:]
    maps = input.view(input.shape[0], -1, bins_h, bins_w, height, width)
    output = input.new_zeros(len(rois), maps.shape[1], bins_h, bins_w)
    for r, roi in enumerate(rois):
        y0, x0, roi_h, roi_w = roi_box(roi, spatial_scale, round_rois)
        for i, j in itertools.product(range(bins_h), range(bins_w)):
            top = int((y0 + i * (roi_h / bins_h)).floor().clamp(0, height))
            bottom = int((y0 + (i + 1) * (roi_h / bins_h)).ceil().clamp(0, height))
            left = int((x0 + j * (roi_w / bins_w)).floor().clamp(0, width))
            right = int((x0 + (j + 1) * (roi_w / bins_w)).ceil().clamp(0, width))
            if bottom > top and right > left:
                cells = maps[int(roi[0]), :, i, j, top:bottom, left:right]
                output[r, :, i, j] = cells.mean(dim=(1, 2))
    return output


def deform_roi_align(
    input,
    rois,
    offset=None,
    *,
    output_size,
    spatial_scale,
    sampling_ratio=0,
    gamma=0.1,
):
    bins_h, bins_w = pair(output_size)
    height, width = input.shape[2:]
    offset = input.new_zeros(len(rois), 2, bins_h, bins_w) if offset is None else offset
    output = input.new_zeros(len(rois), input.shape[1], bins_h, bins_w)
    for r, roi in enumerate(rois):
        x0, y0, x1, y1 = roi[1:] * spatial_scale - 0.5
        bin_h, bin_w = (y1 - y0) / bins_h, (x1 - x0) / bins_w
        rows = sampling_ratio or int(bin_h.ceil())
        columns = sampling_ratio or int(bin_w.ceil())
        for i, j in itertools.product(range(bins_h), range(bins_w)):
            dy, dx = offset[r, :, i, j] * gamma
            for a, b in itertools.product(range(rows), range(columns)):
                y = y0 + dy * (y1 - y0) + bin_h * (i + (a + 0.5) / rows)
                x = x0 + dx * (x1 - x0) + bin_w * (j + (b + 0.5) / columns)
                if y.isnan() or x.isnan():
                    output[r, :, i, j] = torch.nan
                elif -1 <= y <= height and -1 <= x <= width:
                    row = hat(y.clamp(0, height - 1), height)
                    column = hat(x.clamp(0, width - 1), width)
                    sample = torch.einsum("chw,h,w->c", input[int(roi[0])], row, column)
                    output[r, :, i, j] += sample / (rows * columns)
    return output
