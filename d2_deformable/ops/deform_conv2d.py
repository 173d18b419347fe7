"""Deformable convolution, plain or modulated: public function, fake kernels and autograd."""

import torch
from torch import Tensor

from . import _composite, _library  # noqa: F401  (_library registers the operators)
from ._autocast import cast, register_autocast
from ._autograd import register_autograd
from ._checks import (
    ArgumentError,
    check_coordinates,
    check_like_input,
    check_map,
    check_pair,
    check_tensors,
    empty_like_input,
    shape,
)

BORDERS = ("zero", "legacy")


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
    border: str = "zero",
) -> Tensor:
    """Convolution whose taps read the input at shifted, real-valued points (paper, eq. 2 to 4).

    A drop-in replacement for ``torchvision.ops.deform_conv2d`` (except in TorchScript) that also
    supports the border rule of the released 2017 operator. The number of groups follows from the
    channels of input and weight, the number G of offset groups from the channels of the offset.
    K = kernel_h * kernel_w is the number of taps.

    Args:
        input: (N, C, H, W).
        offset: (N, G*K*2, H_out, W_out), in input-map pixels, neither normalised nor clamped.
            Channel order: offset group, then tap (row by row), then (dy, dx). Input channel c uses
            offset group c // (C/G).
        weight: (C_out, C/groups, kernel_h, kernel_w).
        bias: (C_out,).
        stride, padding, dilation: an int or a (height, width) pair.
        mask: (N, G*K, H_out, W_out), multiplies the value of each tap (modulation, DCN v2).
        border: what a tap reads near and beyond the border of the map. "zero": zeros surround the
            map, as in equations 3 and 4 of the paper, the 2018 operator and torchvision. "legacy":
            the operator of the 2017 models; points outside [0, H) x [0, W) read 0, and those in the
            last pixel's span [H-1, H) or [W-1, W) read the last row or column.

    Returns:
        (N, C_out, H_out, W_out), where H_out and W_out are those of an ordinary convolution;
        channels-last if the input is, otherwise contiguous.

    Raises:
        ArgumentError (a ValueError): shapes, dtypes or devices that do not fit together.

    All tensors are float32, float64, float16 or bfloat16. With a half-precision input, offset and
    mask may be float32; under torch.autocast they are. Coordinates, interpolation weights and sums
    are at least float32. On CUDA, sampled values of a half-precision input and their gradients stay
    in half precision between sampling and the matrix multiply; the CPU computes in float32. Whether
    float32 matrix multiplies on CUDA may use TF32 depends on torch.backends.cudnn.allow_tf32, as
    for torch.nn.functional.conv2d.

    A tap with a coordinate that is NaN or infinite reads 0 and passes no gradients, like others
    outside the map. (torchvision's reads NaN if one is NaN.)

    At integer coordinates, gradients with respect to the offset are right-hand derivatives, as in
    all released operators: 0 at H-1 (W-1) with border "legacy", and at H (W) with both. With border
    "zero" a coordinate of exactly -1 is outside and its gradient 0, as in the 2018 operator,
    Detectron2 and mmcv; torchvision has the right-hand derivative there too.

    Gradients are deterministic on the CPU, and on CUDA under torch.use_deterministic_algorithms,
    where the gradient with respect to the input takes many times longer.

    Gradients are differentiable, to any order, and torch.func's transforms apply. Second and
    forward-mode derivatives are computed by standard tensor operations (_composite/), which keep
    several copies of every sampled value. First-order gradients cost no more.

    Example:
        >>> input, weight = torch.randn(1, 8, 10, 10), torch.randn(4, 8, 3, 3)
        >>> offset = torch.zeros(1, 2 * 3 * 3, 10, 10)
        >>> output = deform_conv2d(input, offset, weight, padding=1)
        >>> torch.allclose(output, torch.conv2d(input, weight, padding=1), atol=1e-4)
        True

    Source: msracver/Deformable-ConvNets, rfcn/operator_cxx/nn/deformable_im2col.cuh ("legacy") and
    DCNv2_op/nn/modulated_deformable_im2col.cuh ("zero", mask).
    """
    op = "deform_conv2d"
    check_tensors(
        op, ("bias", "mask"), input=input, offset=offset, weight=weight, bias=bias, mask=mask
    )
    stride = check_pair(op, "stride", stride, least=1)
    padding = check_pair(op, "padding", padding, least=0)
    dilation = check_pair(op, "dilation", dilation, least=1)
    if border not in BORDERS:
        raise ArgumentError(f"{op}: border must be one of {BORDERS}, got {border!r}")
    check_map(op, input)
    _check_weight(op, input, weight, bias)
    size = output_size(input, weight, stride, padding, dilation)
    if min(size) < 1:
        raise ArgumentError(
            f"{op}: weight {shape(weight)} with dilation {tuple(dilation)} does not fit into input "
            f"{shape(input)} with padding {tuple(padding)}: the output would be {tuple(size)}; "
            "use a larger input or more padding"
        )
    _check_offset(op, input, offset, weight, mask, size)
    check_like_input(op, input, weight=weight, bias=bias)
    check_coordinates(op, input, offset=offset, mask=mask)
    return torch.ops.d2_deformable.deform_conv2d(
        input, offset, weight, bias, stride, padding, dilation, mask, border
    )


def output_size(input: Tensor, weight: Tensor, stride, padding, dilation) -> list[int]:
    """[H_out, W_out] of an ordinary convolution."""
    spans = [
        input.shape[2 + k] + 2 * padding[k] - dilation[k] * (weight.shape[2 + k] - 1)
        for k in (0, 1)
    ]
    return [(span - 1) // step + 1 for span, step in zip(spans, stride)]


def _check_weight(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 4 or 0 in weight.shape:
        raise ArgumentError(
            f"{op}: weight must be (C_out, C/groups, kernel_h, kernel_w) and not empty, "
            f"got shape {shape(weight)}"
        )
    out_channels, group_channels = weight.shape[:2]
    channels = input.shape[1]
    if channels % group_channels or out_channels % (channels // group_channels):
        raise ArgumentError(
            f"{op}: weight {shape(weight)} does not fit input {shape(input)}: groups = {channels} "
            f"input channels / weight.shape[1] = {channels / group_channels:g} must be a whole "
            f"number that divides the {out_channels} output channels"
        )
    if bias is not None and shape(bias) != (out_channels,):
        raise ArgumentError(
            f"{op}: bias has shape {shape(bias)}, expected ({out_channels},): one value per output "
            f"channel of weight {shape(weight)}"
        )


def _check_offset(op, input, offset, weight, mask, size) -> None:
    images, channels = input.shape[:2]
    taps = weight.shape[2] * weight.shape[3]
    groups = offset.shape[1] // (2 * taps) if offset.dim() == 4 else 0
    expected = (images, groups * 2 * taps, *size)
    if groups < 1 or channels % groups or shape(offset) != expected:
        raise ArgumentError(
            f"{op}: the shape of the offset is {shape(offset)}, expected (N, G*{2 * taps}, H_out, "
            f"W_out) = ({images}, G*{2 * taps}, {size[0]}, {size[1]}) for input {shape(input)} and "
            f"weight {shape(weight)}: a (dy, dx) pair per tap, in G groups that divide {channels}"
        )
    expected = (images, groups * taps, *size)
    if mask is not None and shape(mask) != expected:
        # "mask.shape[1] is not valid" is torchvision's text.
        sides = zip(mask.shape, expected, strict=False)
        wrong = next((k for k, (given, wanted) in enumerate(sides) if given != wanted), "...")
        raise ArgumentError(
            f"{op}: mask.shape[{wrong}] is not valid: got shape {shape(mask)}, "
            f"expected (N, G*{taps}, H_out, W_out) = {expected} for offset {shape(offset)}: "
            "one factor per tap"
        )


# Fake kernels: shapes only, for torch.compile, torch.export and the meta device.


@torch.library.register_fake("d2_deformable::deform_conv2d")
def _(input, offset, weight, bias, stride, padding, dilation, mask, border):
    size = output_size(input, weight, stride, padding, dilation)
    return empty_like_input(input, [input.shape[0], weight.shape[0], *size])


@torch.library.register_fake("d2_deformable::deform_conv2d_backward")
def _(grad_output, input, offset, weight, mask, stride, padding, dilation, border):
    grad_mask = input.new_empty([0]) if mask is None else mask.new_empty(mask.shape)
    return (
        empty_like_input(input, input.shape),
        offset.new_empty(offset.shape),
        weight.new_empty(weight.shape),
        grad_mask,
    )


def _setup_context(
    ctx, input, offset, weight, bias, stride, padding, dilation, mask, border
) -> None:
    ctx.save_for_backward(input, offset, weight, mask)
    ctx.has_bias = bias is not None
    ctx.arguments = stride, padding, dilation, border


def _backward(ctx, grad_output: Tensor):
    input, offset, weight, mask = ctx.saved_tensors
    gradients = torch.ops.d2_deformable.deform_conv2d_backward(
        grad_output, input, offset, weight, mask, *ctx.arguments
    )
    grad_input, grad_offset, grad_weight, grad_mask = gradients
    grad_bias = grad_output.sum((0, 2, 3)) if ctx.has_bias else None
    grad_mask = None if mask is None else grad_mask
    return grad_input, grad_offset, grad_weight, grad_bias, None, None, None, grad_mask, None


register_autograd(
    "deform_conv2d",
    setup_context=_setup_context,
    backward=_backward,
    composite=_composite.deform_conv2d,
)


# Double backward: the gradients of the composite's backward.


def _setup_double_backward(ctx, grad_output, input, offset, weight, mask, *arguments) -> None:
    ctx.save_for_backward(grad_output, input, offset, weight, mask)
    ctx.arguments = arguments


def _double_backward(ctx, *gradients):
    *tensors, mask = ctx.saved_tensors
    tensors = tensors if mask is None else [*tensors, mask]

    def backward(grad_output, input, offset, weight, mask=None):
        return _composite.deform_conv2d_backward(
            grad_output, input, offset, weight, mask, *ctx.arguments
        )

    second = torch.func.vjp(backward, *tensors)[1](gradients)
    grad_mask = () if mask is not None else (None,)  # with a mask, it is the last of `second`
    return *second, *grad_mask, None, None, None, None


register_autograd(
    "deform_conv2d_backward",
    setup_context=_setup_double_backward,
    backward=_double_backward,
    composite=_composite.deform_conv2d_backward,
)


def _autocast(dtype, input, offset, weight, bias, stride, padding, dilation, mask, border):
    input, weight, bias = cast(dtype, input, weight, bias)
    offset, mask = cast(torch.float32, offset, mask)
    return torch.ops.d2_deformable.deform_conv2d(
        input, offset, weight, bias, stride, padding, dilation, mask, border
    )


register_autocast("deform_conv2d", _autocast)
