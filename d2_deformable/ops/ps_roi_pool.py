"""Position-sensitive RoI pooling of plain R-FCN: public function, fake kernels and autograd."""

import torch
from torch import Tensor

from . import _composite, _library  # noqa: F401  (_library registers the operators)
from ._autocast import cast, register_autocast
from ._autograd import register_autograd
from ._checks import (
    ArgumentError,
    check_map,
    check_pair,
    check_rois,
    check_scale,
    check_tensors,
    empty_like_input,
    is_channels_last,
    shape,
    without_wrong_images,
)


def ps_roi_pool(
    input: Tensor,
    rois: Tensor,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    round_rois: bool = True,
) -> Tensor:
    """Average pooling of RoIs into bins, each with channels of its own, as in the released R-FCN.

    Bin (i, j) of output channel c is the mean of input channel (c*bins_h + i)*bins_w + j over the
    whole map pixels that the bin touches, including the last row and column of the map. A bin
    outside the map is 0. (``torchvision.ops.ps_roi_pool`` never reads the last row and column, and
    rounds after scaling.)

    Args:
        input: (N, C, H, W).
        rois: (R, 5), each (image index, x0, y0, x1, y1) in input-image pixels, continuous as in
            Detectron2: x1 and y1 are the inclusive x2 and y2 of the released operator plus 1.
        output_size: bins per RoI, an int or (bins_h, bins_w).
        spatial_scale: map pixels per image pixel, e.g. 1/16.
        round_rois: round RoI corners to whole pixels (halves away from zero) before they are
            scaled, as the released operator does. False skips the rounding only.

    Returns:
        (R, C / (bins_h*bins_w), bins_h, bins_w), channels-last if the input is, otherwise
        contiguous.

    Raises:
        ArgumentError (a ValueError): shapes, dtypes or devices that do not fit together, or a
            spatial_scale that is not a finite number above 0.
        RuntimeError: an image index outside 0 .. N-1. (CUDA reports it like any wrong index: as a
            device-side assertion, at the next synchronisation. Forward mode raises an IndexError.)

    All tensors are float32, float64, float16 or bfloat16. With a half-precision input, rois may be
    float32; under torch.autocast they are. Coordinates and sums are at least float32.

    Bins with infinite edges are clipped to the map as others are, and an edge that is NaN is at 0.
    A RoI whose side is NaN has the smallest side. Empty bins pass no gradients.

    RoIs get no gradient. Gradients are differentiable, to any order, and torch.func's transforms
    apply. Forward-mode derivatives are computed by standard tensor operations (_composite/).

    Example:
        >>> input = torch.randn(1, 3 * 2 * 2, 8, 8)  # 3 outputs with 2 x 2 maps each
        >>> rois = torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> ps_roi_pool(input, rois, output_size=2, spatial_scale=1 / 8).shape
        torch.Size([1, 3, 2, 2])

    Source: msracver/Deformable-ConvNets, rfcn/operator_cxx/psroi_pooling.cu. A RoI covers
    round(x0)*scale to round(x1)*scale of the map, and at least 0.1 pixels.
    """
    op = "ps_roi_pool"
    check_tensors(op, input=input, rois=rois)
    output_size = check_pair(op, "output_size", output_size, least=1)
    check_map(op, input)
    check_rois(op, input, rois)
    check_scale(op, spatial_scale)
    bins = output_size[0] * output_size[1]
    if input.shape[1] % bins:
        raise ArgumentError(
            f"{op}: input {shape(input)} has {input.shape[1]} channels, not a multiple of the "
            f"{bins} bins of output_size {tuple(output_size)}"
        )
    return torch.ops.d2_deformable.ps_roi_pool(
        input, rois, output_size=output_size, spatial_scale=spatial_scale, round_rois=round_rois
    )


# Fake kernels: shapes only, for torch.compile, torch.export and the meta device.


@torch.library.register_fake("d2_deformable::ps_roi_pool")
def _(input, rois, *, output_size, **_):
    bins = output_size[0] * output_size[1]
    return empty_like_input(input, [rois.shape[0], input.shape[1] // bins, *output_size])


@torch.library.register_fake("d2_deformable::ps_roi_pool_backward")
def _(grad_output, rois, *, input_size, channels_last, **_):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        input_size,
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=memory_format,
    )


def _setup_context(ctx, input, rois, **arguments) -> None:
    ctx.save_for_backward(rois)
    ctx.input_size = input.shape  # the input itself is large and not needed
    ctx.channels_last = is_channels_last(input)
    ctx.arguments = arguments


def _backward(ctx, grad_output: Tensor):
    (rois,) = ctx.saved_tensors
    grad_input = torch.ops.d2_deformable.ps_roi_pool_backward(
        grad_output,
        rois,
        input_size=ctx.input_size,
        channels_last=ctx.channels_last,
        **ctx.arguments,
    )
    return grad_input, None


# Forward mode: the composites, which the kernels' check of the image indices does not precede.


def _forward_mode(input, rois, **arguments):
    return _composite.ps_roi_pool(input, without_wrong_images(rois, len(input)), **arguments)


def _forward_mode_backward(grad_output, rois, *, input_size, **arguments):
    rois = without_wrong_images(rois, input_size[0])
    return _composite.ps_roi_pool_backward(grad_output, rois, input_size=input_size, **arguments)


register_autograd(
    "ps_roi_pool",
    setup_context=_setup_context,
    backward=_backward,
    composite=_forward_mode,
)


# Double backward: the operator is linear, so the gradient of its gradient is the operator itself.


def _setup_double_backward(
    ctx, grad_output, rois, *, input_size, channels_last, **arguments
) -> None:
    ctx.save_for_backward(rois)
    ctx.arguments = arguments


def _double_backward(ctx, gradient: Tensor):
    (rois,) = ctx.saved_tensors
    return torch.ops.d2_deformable.ps_roi_pool(gradient, rois, **ctx.arguments), None


register_autograd(
    "ps_roi_pool_backward",
    setup_context=_setup_double_backward,
    backward=_double_backward,
    composite=_forward_mode_backward,
)


def _autocast(dtype, input, rois, **arguments):
    # There is no large matrix multiply, so casting the input would gain nothing.
    (rois,) = cast(torch.float32, rois)
    return torch.ops.d2_deformable.ps_roi_pool(input, rois, **arguments)


register_autocast("ps_roi_pool", _autocast)
