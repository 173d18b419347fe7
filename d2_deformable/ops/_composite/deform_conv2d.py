"""Deformable convolution as standard tensor operations.

Memory: 4 samples per output position, tap and input channel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import tap_grid
from .tables import fixed, read, read_backward, to_compute_dtype


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride,
    padding,
    dilation,
    mask: Tensor | None,
    border: str,
) -> Tensor:
    """Differentiable with respect to input, offset, weight, bias and mask."""
    taps = _Taps(input, offset, weight, mask, stride, padding, dilation, border)
    columns = sum(factor[..., None] * read(taps.table, rows) for rows, factor in taps.corners())
    output = taps.as_matrix(taps.factor[..., None] * columns) @ taps.weight_matrix()
    output = output.transpose(2, 3).reshape(taps.output_shape)
    output = output if bias is None else output + bias.to(output.dtype)[:, None, None]
    return output.to(input.dtype)


def deform_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride,
    padding,
    dilation,
    border: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to input, offset, weight and mask, themselves differentiable with
    respect to all tensors."""
    taps = _Taps(input, offset, weight, mask, stride, padding, dilation, border)
    grad_output = taps.grad_matrix(grad_output.to(taps.table.dtype))
    grad_columns = taps.as_columns(grad_output @ taps.weight_matrix().transpose(1, 2))
    zero: Any = 0  # where sums of tensors start
    columns = grad_table = grad_y = grad_x = grad_mask = zero
    for corner, (rows, factor) in enumerate(taps.corners()):
        sampled = read(taps.table, rows)
        columns = columns + factor[..., None] * sampled
        dot = (grad_columns * sampled).sum(-1)
        grad_mask = grad_mask + factor * dot
        slope_y, slope_x = taps.slopes(corner)
        grad_y, grad_x = grad_y + slope_y * dot, grad_x + slope_x * dot
        grad_sampled = (taps.factor * factor)[..., None] * grad_columns
        grad_table = grad_table + read_backward(grad_sampled, rows, taps.table)
    grad_weight = taps.as_matrix(taps.factor[..., None] * columns).transpose(2, 3) @ grad_output
    grad_offset = torch.stack([taps.factor * grad_y, taps.factor * grad_x])
    return (
        taps.as_map(grad_table).to(input.dtype),
        grad_offset.permute(1, 4, 3, 0, 2).reshape(offset.shape).to(offset.dtype),
        taps.as_weight(grad_weight.sum(0)).to(weight.dtype),
        input.new_empty([0])
        if mask is None
        else grad_mask.permute(0, 3, 2, 1).reshape(mask.shape).to(mask.dtype),
    )


class _Taps:
    """Sampling points of the taps, as rows of a table (N*(H+2)*(W+2)*G, C/G).

    The table is the map with one pixel of zeros around it; row 0 is a corner, hence zero. Columns
    are (N, positions, taps, G, C/G).
    """

    def __init__(self, input, offset, weight, mask, stride, padding, dilation, border):
        images, _, self.height, self.width = input.shape
        self.input_shape, self.weight_shape = input.shape, weight.shape
        channels = fixed(input.shape[1])
        outputs, self.group_channels, kernel_h, kernel_w = (fixed(size) for size in weight.shape)
        self.images, (out_h, out_w) = images, offset.shape[2:]
        self.taps, self.positions = kernel_h * kernel_w, out_h * out_w
        self.offset_groups = fixed(offset.shape[1]) // (2 * self.taps)
        self.offset_channels = channels // self.offset_groups
        self.groups = channels // self.group_channels
        self.group_outputs = outputs // self.groups
        self.output_shape = (images, outputs, out_h, out_w)
        input, offset, self.weight, mask = to_compute_dtype(input, offset, weight, mask)

        table = F.pad(input, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        rows = images * (self.height + 2) * (self.width + 2) * self.offset_groups
        self.table = table.reshape(rows, self.offset_channels)

        # (N, positions, taps, G)
        shape = (images, self.offset_groups, self.taps)
        offset = offset.reshape(*shape, 2, self.positions).permute(3, 0, 4, 2, 1)
        self.factor = offset.new_ones(())
        if mask is not None:
            self.factor = mask.reshape(*shape, self.positions).permute(0, 3, 2, 1)
        y, x = (
            axis.to(input.dtype).expand(self.taps, out_h, out_w).flatten(1).T[..., None]
            for axis in tap_grid(
                (out_h, out_w), (kernel_h, kernel_w), stride, padding, dilation, input.device
            )
        )
        self.y = _Axis(y + offset[0], self.height, border)
        self.x = _Axis(x + offset[1], self.width, border)

    def corners(self):
        """Yield (rows of the table, weight) for (y0, x0), (y0, x1), (y1, x0), (y1, x1)."""
        inside = self.y.inside & self.x.inside
        device = self.table.device
        image = torch.arange(self.images, device=device).view(self.images, 1, 1, 1)
        group = torch.arange(self.offset_groups, device=device)
        for y in (0, 1):
            for x in (0, 1):
                pixel = image * (self.height + 2) + self.y.low + (y + 1)
                pixel = pixel * (self.width + 2) + self.x.low + (x + 1)
                rows = torch.where(inside, pixel * self.offset_groups + group, 0)
                yield rows, self.y.weight[y] * self.x.weight[x]

    def slopes(self, corner: int):
        """Derivatives of a corner's weight with respect to y and x."""
        y, x = divmod(corner, 2)
        return self.y.slope[y] * self.x.weight[x], self.y.weight[y] * self.x.slope[x]

    def as_matrix(self, columns: Tensor) -> Tensor:
        """-> (N, groups, positions, taps * C/groups)"""
        shape = (self.images, self.positions, self.taps, self.groups, self.group_channels)
        matrix = columns.reshape(shape).permute(0, 3, 1, 2, 4)
        length = self.taps * self.group_channels
        return matrix.reshape(self.images, self.groups, self.positions, length)

    def as_columns(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`: -> (N, positions, taps, G, C/G)"""
        shape = (self.images, self.groups, self.positions, self.taps, self.group_channels)
        columns = matrix.reshape(shape).permute(0, 2, 3, 1, 4)
        shape = (self.offset_groups, self.offset_channels)
        return columns.reshape(self.images, self.positions, self.taps, *shape)

    def weight_matrix(self) -> Tensor:
        """(groups, taps * C/groups, C_out/groups)"""
        shape = (self.groups, self.group_outputs, self.group_channels, self.taps)
        return self.weight.reshape(shape).permute(0, 3, 2, 1).flatten(1, 2)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `weight_matrix`: -> (C_out, C/groups, kernel_h, kernel_w)"""
        matrix = matrix.reshape(self.groups, self.taps, self.group_channels, self.group_outputs)
        return matrix.permute(0, 3, 2, 1).reshape(self.weight_shape)

    def grad_matrix(self, grad_output: Tensor) -> Tensor:
        """-> (N, groups, positions, C_out/groups)"""
        shape = (self.images, self.groups, self.group_outputs, self.positions)
        return grad_output.reshape(shape).transpose(2, 3)

    def as_map(self, table: Tensor) -> Tensor:
        """(N*(H+2)*(W+2)*G, C/G) -> (N, C, H, W), without the pixels around the map"""
        shape = (self.images, self.height + 2, self.width + 2, self.input_shape[1])
        return table.reshape(shape)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


class _Axis:
    """The counterpart of `sample_axis` in csrc/geometry/sampling.h: the lower neighbour, from -1 to
    size - 1, and weights and slopes of both neighbours."""

    def __init__(self, coordinate: Tensor, size, border: str):
        legacy = border == "legacy"
        above = coordinate >= 0 if legacy else coordinate > -1
        self.inside = above & (coordinate < size)
        at = torch.where(self.inside, coordinate, 0)
        at = at.clamp(max=size - 1) if legacy else at
        low = at.detach().floor()
        fraction, slope = at - low, torch.ones_like(low)
        if legacy:  # the derivative of clamp itself is 1 at the bound
            fraction = torch.where(at < size - 1, fraction, 0)
            slope = torch.where(at < size - 1, slope, 0)
        self.low = low.long()
        self.weight = 1 - fraction, fraction
        self.slope = -slope, slope
