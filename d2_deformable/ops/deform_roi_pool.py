"""Deformable (position-sensitive) RoI pooling: public function and fake kernel."""

import torch
from torch import Tensor

from ._checks import (
    ArgumentError,
    check_coordinates,
    check_map,
    check_pair,
    check_rois,
    check_scale,
    check_tensors,
    empty_like_input,
    shape,
)
from ._deform_roi import register_derivatives


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    group_size: int = 1,
    samples_per_part: int = 4,
    gamma: float = 0.1,
    round_rois: bool = True,
) -> Tensor:
    """Average pooling of RoIs into bins that the offset shifts (paper, equations 5 and 6).

    A bin is the mean of ``samples_per_part**2`` bilinear samples, at the top left corners of the
    cells of a grid over the bin. Samples more than half a pixel outside the map do not count; a bin
    without samples is 0. With ``group_size > 1`` pooling is position-sensitive (deformable R-FCN):
    bin (i, j) of output channel c reads input channel
    (c*group_size + i*group_size // bins_h) * group_size + j*group_size // bins_w.

    Args:
        input: (N, C, H, W).
        rois: (R, 5), each (image index, x0, y0, x1, y1) in input-image pixels, continuous as in
            Detectron2: x1 and y1 are the inclusive x2 and y2 of the released operator plus 1.
        offset: (R, 2*classes, part_h, part_w), a (dy, dx) pair per class and part, in units of
            ``gamma`` times the RoI's height and width. Output channel c uses the pairs of class
            c // (C_out/classes). Bin (i, j) uses those of part
            (i*part_h // bins_h, j*part_w // bins_w). None leaves the bins in place. (The released
            operator reads dx before dy.)
        output_size: bins per RoI, an int or (bins_h, bins_w).
        spatial_scale: map pixels per image pixel, e.g. 1/16.
        group_size: position-sensitive groups per side.
        samples_per_part: samples per bin and axis.
        gamma: scale of the offset.
        round_rois: round RoI corners to whole pixels (halves away from zero) before they are
            scaled, as the released operator does. False skips the rounding only.

    Returns:
        (R, C / group_size^2, bins_h, bins_w), channels-last if the input is, otherwise contiguous.

    Raises:
        ArgumentError (a ValueError): shapes, dtypes or devices that do not fit together, or a
            spatial_scale that is not a finite number above 0.
        RuntimeError: an image index outside 0 .. N-1. (CUDA reports it like any wrong index: as a
            device-side assertion, at the next synchronisation. Forward mode raises an IndexError.)

    All tensors are float32, float64, float16 or bfloat16. With a half-precision input, rois and
    offset may be float32; under torch.autocast they are. Coordinates and sums are at least float32.

    RoIs get no gradient. Gradients with respect to the offset are 0 where a sampling coordinate is
    an integer or clamped to the map, as in the released operator.

    A sample with a coordinate that is not finite does not count, like others outside the map. A RoI
    whose side is NaN has the smallest side. Bins without samples pass no gradients.

    Gradients are differentiable, to any order, and torch.func's transforms apply. Second and
    forward-mode derivatives are computed by standard tensor operations (_composite/), which keep
    several copies of every sampled value. First-order gradients cost no more.

    Example:
        >>> input = torch.arange(64.0).view(1, 1, 8, 8)  # grows by 1 from left to right
        >>> rois = torch.tensor([[0, 1.0, 1.0, 6.0, 6.0]])
        >>> pooled = deform_roi_pool(input, rois, output_size=2, spatial_scale=1.0)
        >>> pooled.shape
        torch.Size([1, 1, 2, 2])
        >>> offset = torch.zeros(1, 2, 2, 2)
        >>> offset[:, 1] = 2.0  # dx: every bin moves right, by 2.0 * gamma * width = 1 pixel
        >>> moved = deform_roi_pool(input, rois, offset, output_size=2, spatial_scale=1.0)
        >>> (moved - pooled).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: msracver/Deformable-ConvNets, rfcn/operator_cxx/deformable_psroi_pooling.cu. A RoI
    covers round(x0)*scale - 0.5 to round(x1)*scale - 0.5 of the map, and at least 0.1 pixels.
    """
    op = "deform_roi_pool"
    check_tensors(op, ("offset",), input=input, rois=rois, offset=offset)
    output_size = check_pair(op, "output_size", output_size, least=1)
    check_map(op, input)
    check_rois(op, input, rois)
    check_coordinates(op, input, offset=offset)
    check_scale(op, spatial_scale)
    if not (1 <= group_size < 2**24 and 1 <= samples_per_part < 2**24):
        raise ArgumentError(
            f"{op}: group_size and samples_per_part must be at least 1 and below 2^24, "
            f"got {group_size} and {samples_per_part}"
        )
    channels = input.shape[1]
    if channels % group_size**2:
        raise ArgumentError(
            f"{op}: input {shape(input)} has {channels} channels, "
            f"not a multiple of group_size^2 = {group_size**2}"
        )
    if offset is not None:
        _check_offset(op, rois, offset, out_channels=channels // group_size**2)
    return torch.ops.d2_deformable.deform_roi_pool(
        input,
        rois,
        offset,
        output_size=output_size,
        spatial_scale=spatial_scale,
        group_size=group_size,
        samples_per_part=samples_per_part,
        gamma=gamma,
        round_rois=round_rois,
    )


def _check_offset(op: str, rois: Tensor, offset: Tensor, out_channels: int) -> None:
    fits = offset.dim() == 4 and offset.shape[0] == rois.shape[0] and 0 not in offset.shape[1:]
    if not fits or offset.shape[1] % 2:
        raise ArgumentError(
            f"{op}: the shape of the offset is {shape(offset)}, expected ({rois.shape[0]}, "
            f"2*classes, part_h, part_w) for rois {shape(rois)}: a (dy, dx) pair per class and part"
        )
    classes = offset.shape[1] // 2
    if out_channels % classes:
        raise ArgumentError(
            f"{op}: offset {shape(offset)} holds (dy, dx) pairs for {classes} classes, "
            f"which do not divide the {out_channels} output channels"
        )


# The fake kernel: shapes only, for torch.compile, torch.export and the meta device.


@torch.library.register_fake("d2_deformable::deform_roi_pool")
def _(input, rois, offset, *, output_size, group_size, **_):
    channels = input.shape[1] // group_size**2
    return empty_like_input(input, [rois.shape[0], channels, *output_size])


register_derivatives("deform_roi_pool")
