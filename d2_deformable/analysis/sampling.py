"""Where a deformable network samples: the geometry of the paper's figures 5 and 6, without drawing.

`inspect_image` runs one image and records what the deformable layers predict for it.
`conv_sampling_points` and `part_boxes` convert that to points and boxes in pixels of the original
image. Points are (y, x), boxes (x0, y0, x1, y1).

Pixel coordinates are continuous: the centre of cell i of a feature map is at
(i + 0.5) * image size / map size (released lib/utils/show_offset.py).
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, Instances
from torch import nn

from ..layers import DeformConv2d, DeformRoIAlign, OffsetOutput, PSRoIPredictor
from ..modeling.poolers import DeformROIPooler
from ..ops import geometry
from .layer_order import layers_below


@dataclass(frozen=True)
class ConvOffsets:
    """The offsets that one `DeformConv2d` predicted for one image.

    name: of the layer in its model.
    offset: (G, taps, 2, H_out, W_out) of (dy, dx) in pixels of the layer's input map.
    mask: (G, taps, H_out, W_out), or None when not modulated.
    input_size: (H, W) of the layer's input map.
    kernel_size, stride, padding, dilation: pairs (y, x).
    """

    name: str
    offset: torch.Tensor
    mask: torch.Tensor | None
    input_size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(self.offset.shape[-2:])


@dataclass(frozen=True)
class PartOffsets:
    """How one deformable RoI pooling layer places its parts in one image.

    predict: maps boxes (R, 4) in network input pixels to normalised shifts (R, classes, 2, k, k) of
        (dy, dx), and to 1 / stride (R,) of the feature map that each box is pooled from. It calls
        the layer: the shifts that a forward pass predicts are of proposals, and figure 6 shows
        those of detected boxes, which the pass has not pooled.
    num_classes: sets of shifts, background included; 1 when all classes share one.
    gamma, round_rois: see `d2_deformable.ops.deform_roi_pool`.
    min_size: see `d2_deformable.ops.geometry.roi_boxes`.
    """

    name: str
    num_classes: int
    predict: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    gamma: float
    round_rois: bool
    min_size: float | None


@dataclass
class OffsetRecord:
    """What `record_offsets` recorded: layers in the order in which they ran.

    input_size: (H, W) of the network input, padding included.
    below: see `layers_below`; for a missing layer, all that ran before it count as below it.
    """

    convs: list[ConvOffsets] = field(default_factory=list)
    pools: list[PartOffsets] = field(default_factory=list)
    input_size: tuple[int, int] = (0, 0)
    below: dict[str, set[str]] = field(default_factory=dict)

    def stack(self, num_layers: int) -> list[ConvOffsets]:
        """At most `num_layers` convolutions on one path up to the last that ran, lowest first.

        Of parallel branches, it holds the one that ran last.
        """
        path = []
        for conv in reversed(self.convs):
            off_path = path and conv.name not in self.below.get(path[-1].name, {conv.name})
            if len(path) < num_layers and not off_path:
                path.append(conv)
        return path[::-1]


@contextmanager
def record_offsets(model: nn.Module, plain=()):
    """Record the deformable layers of `model` while it runs on one image.

    Args:
        plain: names of plain convolutions to record as well, with offsets of zero.

    Yields:
        an `OffsetRecord`, filled by the forward pass.
    """
    record = OffsetRecord()

    def on_backbone(module, args):
        if len(args[0]) != 1:
            raise ValueError(f"record_offsets takes one image at a time, got {len(args[0])}")
        record.input_size = tuple(args[0].shape[-2:])

    def on_prediction(name, conv):
        def hook(_, args, prediction):
            record.convs.append(_conv_offsets(name, conv, args[2], *prediction))

        return hook

    def on_plain_conv(name):
        def hook(conv, args, output):
            taps = conv.kernel_size[0] * conv.kernel_size[1]
            zeros = output.new_zeros(1, 1, 1, 1).expand(1, 2 * taps, *output.shape[2:])
            record.convs.append(_conv_offsets(name, conv, args[0], zeros))

        return hook

    def on_predictor(name):
        return lambda layer, args: record.pools.append(_predictor_parts(name, layer, *args))

    def on_pooler(name):
        return lambda layer, args: record.pools.append(_pooler_parts(name, layer, *args))

    with ExitStack() as stack:

        def keep(handle):
            stack.callback(handle.remove)

        keep(model.backbone.register_forward_pre_hook(on_backbone))
        for name, module in model.named_modules():
            if isinstance(module, DeformConv2d):
                output = module.offset_prediction
                keep(output.register_forward_hook(on_prediction(name, module)))
            elif name in plain:
                keep(module.register_forward_hook(on_plain_conv(name)))
            elif isinstance(module, PSRoIPredictor) and module.offset_maps is not None:
                keep(module.register_forward_pre_hook(on_predictor(name)))
            elif isinstance(module, DeformROIPooler):
                keep(module.register_forward_pre_hook(on_pooler(name)))
        yield record


@contextmanager
def zero_offsets(model: nn.Module):
    """Let all deformable layers of `model` sample without offsets: the masks stay."""

    def hook(output, args, prediction):
        return prediction._replace(offset=torch.zeros_like(prediction.offset))

    outputs = [module for module in model.modules() if isinstance(module, OffsetOutput)]
    handles = [output.register_forward_hook(hook) for output in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _conv_offsets(name, layer, x, offset, mask=None):
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    return ConvOffsets(
        name=name,
        offset=offset[0].unflatten(0, (-1, taps, 2)).cpu(),
        mask=None if mask is None else mask[0].unflatten(0, (-1, taps)).cpu(),
        input_size=tuple(x.shape[-2:]),
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
    )


def _to_rois(boxes):
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)


def _predictor_parts(name, layer, x, _):
    def predict(boxes):
        offset, _ = layer.predict_offsets(x, _to_rois(boxes.to(x)))
        return offset.unflatten(1, (-1, 2)), offset.new_full((len(boxes),), layer.spatial_scale)

    num_classes = layer.offset_maps.out_channels // (2 * layer.output_size**2)
    return PartOffsets(name, num_classes, predict, layer.gamma, layer.round_rois, geometry.MIN_SIZE)


def _pooler_parts(name, pooler, x, _):
    first = pooler.level_pools[0]

    def predict(boxes):
        boxes = boxes.to(x[0])
        levels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        if len(x) > 1:
            levels = assign_boxes_to_levels(
                [Boxes(boxes)],
                pooler.min_level,
                pooler.max_level,
                pooler.canonical_box_size,
                pooler.canonical_level,
            )
        offset = boxes.new_zeros(len(boxes), 2, first.output_size, first.output_size)
        per_level = zip(pooler.level_pools, x, pooler.scales, strict=True)
        for level, (pool, feature, scale) in enumerate(per_level):
            here = levels == level
            offset[here] = pool.predict_offsets(feature, _to_rois(boxes[here]), scale).offset
        return offset[:, None], boxes.new_tensor(pooler.scales)[levels]

    min_size = None if isinstance(first, DeformRoIAlign) else geometry.MIN_SIZE
    return PartOffsets(name, 1, predict, first.gamma, first.round_rois, min_size)


@dataclass(frozen=True)
class Inspection:
    """One image, what was detected in it, and where the network sampled.

    instances: detections in original image pixels; None if the model is not a detector.
    labels: the class of every original image pixel, (height, width), if the model segments.
    image_size: (height, width) of the original image.
    pixel: (y, x) original image pixels per network input pixel.
    """

    record: OffsetRecord
    instances: Instances | None
    image_size: tuple[int, int]
    pixel: tuple[float, float]
    labels: torch.Tensor | None = None


@torch.no_grad()
def inspect_image(model: nn.Module, inputs: dict) -> Inspection:
    """Run `model` in evaluation mode on one image of Detectron2's input format.

    Args:
        inputs: "image" (C, H, W), resized, and "height", "width" of the original image; also
            "proposals" if the network has no RPN.

    Raises:
        ValueError: the network needs proposals and gets none.
    """
    if needs_proposals(model) and "proposals" not in inputs:
        raise ValueError(
            "this network detects on fixed proposals, and the image comes with none: give it its "
            "own RPN (MODEL.PROPOSAL_GENERATOR.NAME RPN MODEL.LOAD_PROPOSALS False)"
        )
    resized = tuple(inputs["image"].shape[-2:])
    size = (inputs.get("height", resized[0]), inputs.get("width", resized[1]))
    seen = []
    keep = model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    training = model.training
    model.eval()
    try:
        with record_offsets(model) as record:
            output = model([inputs])[0]
        keep.remove()
        names = [conv.name for conv in record.convs if conv.name.startswith("backbone.")]
        if len(names) > 1:
            layers = {name: model.get_submodule(name) for name in names}
            record.below = layers_below(model.backbone, layers, seen[0])
    finally:
        keep.remove()
        model.train(training)
    instances, logits = output.get("instances"), output.get("sem_seg")
    return Inspection(
        record,
        None if instances is None else instances.to("cpu"),
        size,
        (size[0] / resized[0], size[1] / resized[1]),
        None if logits is None else logits.argmax(dim=0).cpu(),
    )


def needs_proposals(model: nn.Module) -> bool:
    """Whether `model` is a detector without an RPN."""
    return hasattr(model, "roi_heads") and getattr(model, "proposal_generator", None) is None


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

    def pixels_per_cell(size):
        return torch.tensor(
            [n / m * f for n, m, f in zip(inspection.record.input_size, size, inspection.pixel)]
        )

    top = pixels_per_cell(convs[-1].output_size)
    cell = (torch.as_tensor(point, dtype=torch.float32) / top).floor()
    cell = torch.minimum(cell.clamp(min=0), torch.tensor(convs[-1].output_size) - 1)
    cells, inside = compose_taps(convs, cell, deformed)
    bottom = pixels_per_cell(convs[0].input_size)
    return SamplingPoints((cell + 0.5) * top, (cells + 0.5) * bottom, inside)


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
    rois, scale = _to_rois(boxes), scale[:, None]
    _, y, x, *sides = geometry.roi_boxes(rois, scale, 0.0, pool.round_rois, pool.min_size)
    k = shift.shape[-1]
    shift = shift if deformed else torch.zeros_like(shift)
    low = geometry.bin_corners(y, x, *sides, (k, k), shift)
    high = (corner + side / k for corner, side in zip(low, sides, strict=True))
    y0, x0, y1, x1 = (side.flatten(1) / scale for side in (*low, *high))
    return torch.stack([x0, y0, x1, y1], dim=2) * pixel
