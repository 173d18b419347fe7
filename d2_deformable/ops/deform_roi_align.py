"""Deformable RoIAlign, mmcv's deformable RoI pooling: public function and fake kernel."""

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
        sampling_ratio: samples per bin and axis; 0 or less uses the bin's size in map pixels,
            rounded up, so that inverted boxes have none and are 0. At most 2^20 are used.
        gamma: scale of the offsets.

    Returns:
        (R, C, bins_h, bins_w), channels-last if the input is, otherwise contiguous.

    Raises:
        ArgumentError (a ValueError): shapes, dtypes or devices that do not fit together, or a
            spatial_scale that is not a finite number above 0.
        RuntimeError: an image index outside 0 .. N-1. (CUDA reports it like any wrong index: as a
            device-side assertion, at the next synchronisation. Forward mode raises an IndexError.)

    All tensors are float32, float64, float16 or bfloat16. With a half-precision input, rois and
    offset may be float32; under torch.autocast they are. Coordinates and sums are at least float32.

    RoIs get no gradient. At integer coordinates, gradients with respect to the offset are
    right-hand derivatives. They are 0 where a sample is replicated from the map's border, which
    includes coordinates 0 and H - 1 (W - 1); mmcv gives it the slope next to the border.

    A bin with a coordinate that is NaN is NaN; one that is infinitely far away is 0. Such bins pass
    no gradients.

    Gradients are differentiable, to any order, and torch.func's transforms apply. Second and
    forward-mode derivatives are computed by standard tensor operations (_composite/), which keep
    a number for every bin and map pixel. First-order gradients cost no more.

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
    if sampling_ratio > 2**20:
        raise ArgumentError(
            f"{op}: sampling_ratio is {sampling_ratio}; expected at most 2^20 samples per bin and "
            "axis, or 0 for as many as a bin has pixels"
        )
    if offset is not None and offset.shape != (rois.shape[0], 2, *output_size):
        raise ArgumentError(
            f"{op}: the shape of the offset is {shape(offset)}, expected ({rois.shape[0]}, 2, "
            f"{output_size[0]}, {output_size[1]}): a (dy, dx) pair per bin"
        )
    return torch.ops.d2_deformable.deform_roi_align(
        input,
        rois,
        offset,
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=max(sampling_ratio, 0),
        gamma=gamma,
    )


# The fake kernel: shapes only, for torch.compile, torch.export and the meta device.


@torch.library.register_fake("d2_deformable::deform_roi_align")
def _(input, rois, offset, *, output_size, **_):
    return empty_like_input(input, [rois.shape[0], input.shape[1], *output_size])


register_derivatives("deform_roi_align")
