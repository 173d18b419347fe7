"""Deformable RoI pooling as standard tensor operations.

Memory: 2 * samples_per_part samples per result, and the square of that where gradients are taken.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import (
    bin_corners,
    bin_indices,
    finite,
    is_counted,
    parts_of_bins,
    roi_boxes,
    samples_of_bins,
)
from .tables import fixed, read, read_backward, to_compute_dtype


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    **arguments,
) -> Tensor:
    """Differentiable with respect to input and offset; `arguments` are those of `_Bins`."""
    bins = _Bins(input, rois, offset, **arguments)
    weight_x = bins.x.weight[..., None, :]
    total = 0
    for rows, weight_y, _ in bins.sample_rows():
        total = total + weight_y[..., None] * (weight_x @ read(bins.table, rows)).squeeze(-2)
    output = (total / bins.count().clamp(min=1)[..., None]).permute(0, 1, 4, 2, 3)
    return output.reshape(bins.output_shape).to(input.dtype)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    **arguments,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to input and offset, themselves differentiable with respect to
    grad_output, input and offset; `arguments` are those of `_Bins`."""
    bins = _Bins(input, rois, offset, **arguments)
    grad = grad_output.to(bins.table.dtype).reshape(bins.grad_shape).permute(0, 1, 3, 4, 2)
    count = bins.count()[..., None]
    grad = torch.where(count > 0, grad / count.clamp(min=1), 0)[..., None, :]
    zero: Any = 0  # where sums of tensors start
    grad_table = grad_y = grad_x = zero
    for rows, weight_y, slope_y in bins.sample_rows():
        grad_sampled = (weight_y[..., None] * bins.x.weight)[..., None] * grad
        grad_table = grad_table + read_backward(grad_sampled, rows, bins.table)
        if offset is not None:
            dot = (read(bins.table, rows) * grad).sum(-1)
            grad_y = grad_y + slope_y * (bins.x.weight * dot).sum(-1)
            grad_x = grad_x + weight_y * (bins.x.slope * dot).sum(-1)
    grad_input = bins.as_map(grad_table).to(input.dtype)
    if offset is None:
        return grad_input, input.new_empty([0])
    return grad_input, bins.grad_offset(grad_y, grad_x).to(offset.dtype)


class _Bins:
    """Samples of the bins, as rows of a table (N*(H+1)*(W+1)*groups*classes, C_out/classes).

    The table is the map with a row and a column of zeros after its last ones. Samples form a
    product grid. Those of one row are read together, each with both neighbours in x:
    `x` holds (R, classes or 1, bins_h or 1, bins_w, 2 * samples).
    """

    def __init__(
        self,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        *,
        output_size,
        spatial_scale: float,
        group_size: int,
        samples_per_part: int,
        gamma: float,
        round_rois: bool,
    ):
        images, _, self.height, self.width = input.shape
        channels = fixed(input.shape[1])
        bins_h, bins_w = output_size
        groups = group_size * group_size
        classes = 1 if offset is None else fixed(offset.shape[1]) // 2
        class_channels = channels // (groups * classes)
        self.planes, self.gamma = groups * classes, gamma
        self.output_shape = (rois.shape[0], channels // groups, bins_h, bins_w)
        self.grad_shape = (rois.shape[0], classes, class_channels, bins_h, bins_w)
        self.map_shape = (images, self.height + 1, self.width + 1, groups, classes, class_channels)
        input, rois, offset = to_compute_dtype(input, rois, offset)
        self.image, y, x, self.roi_h, self.roi_w = roi_boxes(rois, spatial_scale, -0.5, round_rois)
        bins_y, bins_x = bin_indices(output_size, input.device)
        if offset is not None:
            self.offset_shape = tuple(fixed(size) for size in offset.shape[2:])
            self.part_y = parts_of_bins(bins_y[:, 0], self.offset_shape[0], bins_h)
            self.part_x = parts_of_bins(bins_x, self.offset_shape[1], bins_w)
            offset = offset.index_select(2, self.part_y).index_select(3, self.part_x) * gamma
        y, x = bin_corners(y, x, self.roi_h, self.roi_w, output_size, offset)
        self.y = samples_of_bins(y, self.roi_h / bins_h, samples_per_part)

        table = F.pad(input, (0, 1, 0, 1))
        table = table.reshape(
            images, classes, class_channels, groups, self.height + 1, self.width + 1
        ).permute(0, 4, 5, 3, 1, 2)
        rows = images * (self.height + 1) * (self.width + 1) * self.planes
        self.table = table.reshape(rows, class_channels)
        group = parts_of_bins(bins_y, group_size, bins_h) * group_size
        group = group + parts_of_bins(bins_x, group_size, bins_w)
        self.plane = group * classes + torch.arange(classes, device=input.device)[:, None, None]

        self.x = _Axis(samples_of_bins(x, self.roi_w / bins_w, samples_per_part), self.width)

    def sample_rows(self):
        """Yield (rows of the table, weight, slope) of both y neighbours of each row of samples."""
        for y in self.y_axes():
            for k in (0, 1):
                pixel = (self.image * (self.height + 1) + y.index[..., k])[..., None]
                pixel = pixel * (self.width + 1) + self.x.index
                yield (
                    pixel * self.planes + self.plane[..., None],
                    y.weight[..., k],
                    y.slope[..., k],
                )

    def y_axes(self):
        for y in self.y.split(1, dim=-1):
            yield _Axis(y, self.height)

    def count(self) -> Tensor:
        """Number of samples that count. Where there are none, the sum is 0 and so are gradients."""
        count_y = sum(y.inside.to(self.table.dtype).sum(-1) for y in self.y_axes())
        return count_y * self.x.inside.to(self.table.dtype).sum(-1)

    def as_map(self, table: Tensor) -> Tensor:
        images, rows, row_length, groups, classes, class_channels = self.map_shape
        table = table.reshape(self.map_shape)[:, :-1, :-1].permute(0, 4, 5, 3, 1, 2)
        return table.reshape(images, classes * class_channels * groups, rows - 1, row_length - 1)

    def grad_offset(self, grad_y: Tensor, grad_x: Tensor) -> Tensor:
        """Sum the gradients with respect to the bins' positions, (R, classes, bins_h, bins_w), over
        the bins of each part."""
        shifts = [grad_y * finite(self.roi_h), grad_x * finite(self.roi_w)]
        shifts = (torch.stack(shifts, dim=2) * self.gamma).flatten(1, 2)
        parts_h, parts_w = self.offset_shape
        rows = shifts.new_zeros(*shifts.shape[:2], parts_h, shifts.shape[3])
        rows = rows.index_add(2, self.part_y, shifts)
        parts = shifts.new_zeros(*shifts.shape[:2], parts_h, parts_w)
        return parts.index_add(3, self.part_x, rows)


class _Axis:
    """The counterpart of `sample_axis_clamped` in csrc/geometry/sampling.h: indices, weights and
    slopes of both neighbours.

    The last dimension holds all lower neighbours, then all upper ones. Samples that do not count
    have the index `size`, that of the zeros after the map.
    """

    def __init__(self, coordinate: Tensor, size):
        self.inside = is_counted(coordinate, size)
        at = torch.where(self.inside, coordinate, 0).clamp(0, size - 1)
        low = at.detach().floor()
        between = at > low
        fraction = torch.where(between, at - low, 0)  # no derivative at integers
        slope = between.to(at.dtype)
        low = low.long()
        indices = [torch.where(self.inside, low, size), torch.where(between, low + 1, size)]
        self.index = torch.cat(indices, dim=-1)
        self.weight = torch.cat([1 - fraction, fraction], dim=-1)
        self.slope = torch.cat([-slope, slope], dim=-1)
