"""Translations of this package's operators, and of NMS, to ONNX's own operators."""

from contextlib import contextmanager
from unittest import mock

import torch
import torchvision
from torch.overrides import TorchFunctionMode

from ..ops import _composite
from ..ops.geometry import bin_corners, roi_boxes, tap_grid
from . import traceable


@contextmanager
def standard_operators():
    """A context in which torch.onnx.export(dynamo=False) sees only operators that ONNX has."""
    with mock.patch.object(traceable, "batched_nms", batched_nms), _StandardOperators():
        yield


class _StandardOperators(TorchFunctionMode):
    """Redirects calls of torch.ops.d2_deformable to the functions in REPLACED."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = REPLACED.get(getattr(func, "overloadpacket", func), func)
        return func(*args, **(kwargs or {}))


# ---- Deformable convolution ---------------------------------------------------------------------


class _DeformConv(torch.autograd.Function):
    """ONNX's DeformConv (opset 19): its offset and mask have our layout; its border is "zero"."""

    @staticmethod
    def forward(ctx, input, offset, weight, bias, mask, stride, padding, dilation, groups):
        return torch.ops.d2_deformable.deform_conv2d(
            input, offset, weight, bias, stride, padding, dilation, mask, "zero"
        )

    @staticmethod
    def symbolic(g, input, offset, weight, bias, mask, stride, padding, dilation, groups):
        absent = g.op("prim::Constant")
        absent.setType(torch.OptionalType.ofTensor())
        return g.op(
            "DeformConv",
            input,
            weight,
            offset,
            absent if bias is None else bias,
            absent if mask is None else mask,
            kernel_shape_i=weight.type().sizes()[2:],
            strides_i=stride,
            pads_i=[*padding, *padding],
            dilations_i=dilation,
            group_i=groups[0],
            offset_group_i=groups[1],
        )


def deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask, border):
    taps = weight.shape[2] * weight.shape[3]
    groups = [input.shape[1] // weight.shape[1], offset.shape[1] // (2 * taps)]
    if border == "legacy":
        offset, mask = _legacy_taps(input, offset, weight, stride, padding, dilation, mask)
    return _DeformConv.apply(
        input, offset, weight, bias, mask, stride, padding, dilation, [int(n) for n in groups]
    )


def _legacy_taps(input, offset, weight, stride, padding, dilation, mask):
    """Offsets and mask with which the border "zero" gives the results of "legacy".

    Taps beyond the last row or column are moved onto it; those outside [0, H) x [0, W) are masked.
    """
    taps = weight.shape[2] * weight.shape[3]
    out_h, out_w = offset.shape[2:]
    offset = offset.reshape(offset.shape[0], -1, taps, 2, out_h, out_w)
    grids = tap_grid((out_h, out_w), weight.shape[2:], stride, padding, dilation)
    moved, inside = [], []
    for axis, grid in enumerate(grids):
        grid = grid.to(offset.dtype)
        point = grid + offset[:, :, :, axis]
        size = torch.as_tensor(input.shape[2 + axis]).to(offset.dtype)
        inside.append((point >= 0) & (point < size))
        moved.append(torch.where(point > size - 1, size - 1 - grid, offset[:, :, :, axis]))
    inside = (inside[0] & inside[1]).to(offset.dtype)
    if mask is not None:
        inside = inside * mask.reshape(inside.shape)
    return torch.stack(moved, dim=3).flatten(1, 3), inside.flatten(1, 2)


# ---- Deformable RoIAlign ------------------------------------------------------------------------

MOST_CELLS = 1024.0  # of a side of a bin; the runtime's memory grows with its square


def deform_roi_align(input, rois, offset, *, output_size, spatial_scale, sampling_ratio, gamma):
    """ONNX's RoiAlign (opset 16), with each bin as a RoI of one bin.

    Where a bin's size is almost a whole number, rounding might add a row of samples. Opposite sides
    are moved slightly to avoid that; the mean of samples around the same centre hardly changes.
    """
    if offset is None:
        return torchvision.ops.roi_align(
            input, rois, output_size, spatial_scale, sampling_ratio, aligned=True
        )
    _, y, x, *sides = roi_boxes(rois, spatial_scale, -0.5, round_rois=False, min_size=None)
    start = torch.stack(bin_corners(y, x, *sides, output_size, gamma * offset), dim=-1)
    bin_size = size = torch.stack(sides, dim=-1) / rois.new_tensor(output_size)
    if not sampling_ratio:
        count = size.ceil().clamp(min=0)
        margin = 4 * torch.finfo(size.dtype).eps * (1 + start.abs() + size)
        size = torch.clamp(size, count - 1 + margin, count - margin).clamp(0, MOST_CELLS)
    low = start + 0.5 + (bin_size - size) / 2
    is_nan = low.isnan().any(dim=-1, keepdim=True)
    low = torch.where(is_nan, 0, low)  # a runtime may read outside the map where one is NaN
    image = rois[:, 0, None, None, None, None].expand(-1, -1, *output_size, -1)
    boxes = torch.cat([image, low.flip(-1), (low + size).flip(-1)], dim=-1).flatten(0, 3)
    pooled = torchvision.ops.roi_align(input, boxes, 1, 1.0, sampling_ratio, aligned=True)
    pooled = torch.where(is_nan.reshape(-1, 1), torch.nan, pooled.flatten(1))
    pooled = pooled.view(rois.shape[0], *output_size, input.shape[1])
    return pooled.permute(0, 3, 1, 2)


REPLACED = {
    torch.ops.d2_deformable.deform_conv2d: deform_conv2d,
    torch.ops.d2_deformable.deform_roi_align: deform_roi_align,
    torch.ops.d2_deformable.deform_roi_pool: _composite.deform_roi_pool,
    torch.ops.d2_deformable.ps_roi_pool: _composite.ps_roi_pool,
}


# ---- NMS ----------------------------------------------------------------------------------------


def batched_nms(boxes, scores, classes, threshold: float):
    """Same as `traceable.batched_nms`."""
    return _BatchedNMS.apply(boxes, scores, classes, threshold)


class _BatchedNMS(torch.autograd.Function):
    """NonMaxSuppression whose classes are rows of scores.

    For up to 1000 boxes, torchvision moves the boxes of the classes apart, which rounds their
    coordinates; for more, it runs NMS class by class. This does the same, so that exactly the same
    boxes are kept.
    """

    @staticmethod
    def forward(ctx, boxes, scores, classes, threshold):
        return torchvision.ops.batched_nms(boxes, scores, classes, threshold)

    @staticmethod
    def symbolic(g, boxes, scores, classes, threshold):
        def constant(value, dtype=torch.int64):
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        def cast(value, dtype):
            return g.op("Cast", value, to_i=dtype)

        types = torch.onnx.TensorProtoDataType
        rows = g.op("Shape", scores)  # (1,), R

        # The shift that torchvision adds to the boxes of a class.
        zero = constant([0.0], torch.float32)
        highest = g.op(
            "ReduceMax", g.op("Concat", g.op("Reshape", boxes, constant([-1])), zero, axis_i=0)
        )
        step = g.op("Add", highest, constant([1.0], torch.float32))
        shift = g.op("Mul", cast(classes, types.FLOAT), step)
        few = g.op("LessOrEqual", rows, constant([1000]))
        shift = g.op("Where", few, shift, zero)
        moved = g.op("Add", boxes, g.op("Unsqueeze", shift, constant([1])))

        # Scores (1, classes, R), minus infinity where a box is not of the class.
        number = g.op(
            "Add",
            g.op("ReduceMax", g.op("Concat", classes, constant([0]), axis_i=0)),
            constant([1]),
        )
        all_classes = g.op(
            "Range",
            constant(0),
            g.op("Squeeze", number, constant([0])),
            constant(1),
        )
        belongs = g.op(
            "Equal", g.op("Unsqueeze", all_classes, constant([1])), classes
        )  # (classes, R)
        by_class = g.op("Where", belongs, scores, constant(-torch.inf, torch.float32))

        kept = g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", moved, constant([0])),
            g.op("Unsqueeze", by_class, constant([0])),
            constant([torch.iinfo(torch.int64).max]),
            constant([_float32_below(threshold)], torch.float32),
            constant([torch.finfo(torch.float32).min], torch.float32),
        )  # rows of (image, class, box)
        kept = g.op("Gather", kept, constant(2), axis_i=1)

        # Best first; equal scores stay in their order. NonMaxSuppression returns the boxes class by
        # class. The first TopK sorts them by index, so that among equal scores the second one,
        # which prefers the lower index, keeps the order of the input.
        ordered, _ = g.op(
            "TopK", kept, g.op("Shape", kept), axis_i=0, largest_i=0, sorted_i=1, outputs=2
        )
        _, order = g.op(
            "TopK",
            g.op("Gather", scores, ordered, axis_i=0),
            g.op("Shape", ordered),
            axis_i=0,
            largest_i=1,
            sorted_i=1,
            outputs=2,
        )
        result = g.op("Gather", ordered, order, axis_i=0)
        return result.setType(classes.type().with_sizes([None]))


def _float32_below(value: float) -> float:
    """The highest float32 not above `value`: for float32 x, comparing with either is the same."""
    rounded = torch.tensor(value, dtype=torch.float32)
    if rounded.double() > value:
        rounded = torch.nextafter(rounded, rounded.new_tensor(-torch.inf))
    return rounded.item()
