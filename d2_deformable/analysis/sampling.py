"""Sampling points and parts of a deformable network: geometry of figures 5 and 6, without drawing.

`conv_sampling_points`, `offset_lengths` and `part_boxes` convert the offsets that
`record.inspect_image` recorded to points, lengths and boxes in pixels of the original image.
Points are (y, x), boxes (x0, y0, x1, y1).

Pixel coordinates are continuous: the centre of cell i of a feature map is at
(i + 0.5) * image size / map size (released lib/utils/show_offset.py).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..ops import geometry
from .layer_map import LayerMap, filter_centers, layer_map
from .record import Inspection


class SamplingPoints(NamedTuple):
    """Points (y, x) in original image pixels.

    unit: (2,), the centre of the unit.
    points: (G, P, 2), the points that the unit samples through each offset group.
    inside: (G, P) bool, False where a point, or one on the way to it, is outside its map. The map
        counts as zero there, so nothing is sampled.
    """

    unit: torch.Tensor
    points: torch.Tensor
    inside: torch.Tensor


def conv_sampling_points(
    inspection: Inspection, point, num_layers: int = 3, deformed: bool = True
) -> SamplingPoints:
    """The points that the unit at `point` reaches through the last deformable convolutions.

    Paper figure 5: 9^3 = 729 points for three layers of 3x3. Only the deformable layers of one path
    (`OffsetRecord.stack`) count. Layers between them (1x1 convolutions, plain 3x3 ones, shortcuts)
    are treated as passing each point straight through.

    Args:
        point: (y, x) in original image pixels; the unit is the cell of the last layer's map that
            contains it.
        num_layers: how many of the last deformable layers to use; all if there are fewer.
        deformed: False ignores the offsets, which gives the fixed grid of the plain network.
    """
    convs = inspection.record.stack(num_layers)
    if not convs:
        raise ValueError("this network has no deformable convolution")

    top = _pixels_per_cell(inspection, convs[-1].output_size)
    cell = (torch.as_tensor(point, dtype=torch.float32) / top).floor()
    cell = torch.minimum(cell.clamp(min=0), torch.tensor(convs[-1].output_size) - 1)
    cells, inside = compose_taps(convs, cell, deformed)
    bottom = _pixels_per_cell(inspection, convs[0].input_size)
    return SamplingPoints((cell + 0.5) * top, (cells + 0.5) * bottom, inside)


def offset_lengths(inspection: Inspection) -> dict[str, LayerMap]:
    """Mean length of the offsets of each filter, over its taps and offset groups.

    Returns:
        a map of every deformable convolution, in original image pixels; of its first run if it runs
        on several maps.
    """
    maps = {}
    for conv in inspection.record.first_runs().values():
        pixels = _pixels_per_cell(inspection, conv.input_size)
        lengths = (conv.offset.float() * pixels.view(2, 1, 1)).norm(dim=2).mean(dim=(0, 1))
        centers = filter_centers(conv, inspection.record.input_size, inspection.pixel)
        maps[conv.name] = layer_map(lengths, centers, inspection.image_size)
    return maps


def _pixels_per_cell(inspection, size):
    """Original image pixels (y, x) per cell of a map of this size (H, W)."""
    return torch.tensor(
        [n / m * f for n, m, f in zip(inspection.record.input_size, size, inspection.pixel)]
    )


def compose_taps(convs, cell: torch.Tensor, deformed: bool = True):
    """Follow the taps of stacked convolutions from one output cell down to the lowest input map.

    The taps of a point p are at p * stride - padding + tap * dilation + offset. The offset is read
    at the cell nearest to p, as in the released code: units exist at whole cells only, and of the
    four units that are interpolated at p, each with taps of its own, the nearest has the largest
    weight. p itself is not rounded. Between two layers of different map sizes, a point is scaled by
    the ratio of the sizes, rounded to a whole number, as by a 1x1 convolution of that stride.

    Args:
        convs: `ConvOffsets`, lowest first, with the same number G of offset groups.
        cell: (y, x) in the last layer's output map.

    Returns:
        points (G, P, 2) of (y, x) in the first layer's input map; P is the product of the numbers
        of taps, and the topmost layer's tap is the slowest index. And inside (G, P), see
        `SamplingPoints`.
    """
    groups = convs[-1].offset.shape[0]
    points = cell.to(torch.float32).expand(groups, 1, 2)
    inside = torch.ones(groups, 1, dtype=torch.bool)
    size = convs[-1].output_size
    for conv in reversed(convs):
        ratio = [max(1, round(n / m)) for n, m in zip(conv.output_size, size, strict=True)]
        points = points * torch.tensor(ratio)
        inside = inside & geometry.is_inside(points, conv.output_size)
        reached = geometry.kernel_taps(conv.kernel_size, conv.dilation) + (
            points * torch.tensor(conv.stride) - torch.tensor(conv.padding)
        ).unsqueeze(2)
        if deformed:
            reached = reached + _at_nearest_cell(conv.offset, points)
        points = reached.flatten(1, 2)
        inside = inside.repeat_interleave(reached.shape[2], dim=1)
        size = conv.input_size
    return points, inside & geometry.is_inside(points, size)


def _at_nearest_cell(offset, points):
    """Read offsets (G, taps, 2, H, W) at points (G, P, 2): (G, P, taps, 2)."""
    # Clamped: beyond the map, and for NaN, any cell will do, because such a point samples nothing.
    last = torch.tensor(offset.shape[-2:]) - 1
    y, x = torch.minimum((points + 0.5).floor().long().clamp(min=0), last).unbind(-1)
    return offset[torch.arange(len(offset))[:, None], :, :, y, x]


@torch.no_grad()
def part_boxes(
    inspection: Inspection, boxes: torch.Tensor, classes: torch.Tensor, deformed: bool = True
) -> torch.Tensor:
    """The k * k parts that deformable RoI pooling samples for each box (paper figure 6).

    Each part is a bin of the box, which is rounded to whole network input pixels as the operator
    does, shifted by offset * gamma * (height, width) of the box. The operator's samples are at the
    top left corners of the cells of a grid over the part.

    Args:
        boxes: (R, 4), x0, y0, x1, y1 in original image pixels.
        classes: (R,), the class whose offsets a class-wise pooling (R-FCN's class scores) uses.
        deformed: False ignores the offsets, which gives the fixed bins of the plain network.

    Returns:
        (R, k * k, 4), x0, y0, x1, y1 in original image pixels, row by row, not clipped.
    """
    if not inspection.record.pools:
        raise ValueError("this network has no deformable RoI pooling")
    pool = max(inspection.record.pools, key=lambda pool: pool.num_classes)
    pixel = torch.tensor(inspection.pixel).flip(0).repeat(2)
    boxes = boxes.float() / pixel
    offset, scale = (t.float().cpu() for t in pool.predict(boxes))
    classes = classes if offset.shape[1] > 1 else torch.zeros_like(classes)
    shift = offset[torch.arange(len(boxes)), classes] * pool.gamma  # (R, 2, k, k)

    # With shift 0, cells start at whole numbers, as in the pictures.
    rois, scale = F.pad(boxes, (1, 0)), scale[:, None]  # of image 0
    _, y, x, *sides = geometry.roi_boxes(rois, scale, 0.0, pool.round_rois, pool.min_size)
    k = shift.shape[-1]
    shift = shift if deformed else torch.zeros_like(shift)
    low = geometry.bin_corners(y, x, *sides, (k, k), shift)
    high = (corner + side / k for corner, side in zip(low, sides, strict=True))
    y0, x0, y1, x1 = (side.flatten(1) / scale for side in (*low, *high))
    return torch.stack([x0, y0, x1, y1], dim=2) * pixel
