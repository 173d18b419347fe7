"""What the poolings with offsets have in common: fake backward, autograd and autocast."""

import torch
from torch import Tensor

from . import _composite, _library  # noqa: F401  (_library registers the operators)
from ._autocast import cast, register_autocast
from ._autograd import register_autograd
from ._checks import empty_like_input, without_wrong_images


def register_derivatives(op: str) -> None:
    """Register what ``op(input, rois, offset, **arguments)`` needs besides its fake kernel."""
    pool = getattr(torch.ops.d2_deformable, op)
    pool_backward = getattr(torch.ops.d2_deformable, f"{op}_backward")
    composite = getattr(_composite, op)
    composite_backward = getattr(_composite, f"{op}_backward")

    @torch.library.register_fake(f"d2_deformable::{op}_backward")
    def _(grad_output, input, rois, offset, **_):
        grad_offset = input.new_empty([0]) if offset is None else offset.new_empty(offset.shape)
        return empty_like_input(input, input.shape), grad_offset

    def setup_context(ctx, input, rois, offset, **arguments) -> None:
        ctx.save_for_backward(input, rois, offset)
        ctx.arguments = arguments

    def backward(ctx, grad_output: Tensor):
        input, rois, offset = ctx.saved_tensors
        grad_input, grad_offset = pool_backward(grad_output, input, rois, offset, **ctx.arguments)
        return grad_input, None, None if offset is None else grad_offset

    # Double backward: the gradients of the composite's backward.

    def setup_double_backward(ctx, grad_output, input, rois, offset, **arguments) -> None:
        ctx.save_for_backward(grad_output, input, rois, offset)
        ctx.arguments = arguments

    def double_backward(ctx, *gradients):
        grad_output, input, rois, offset = ctx.saved_tensors

        def first_backward(grad_output, input, offset=None):
            return composite_backward(grad_output, input, rois, offset, **ctx.arguments)

        tensors = (grad_output, input) if offset is None else (grad_output, input, offset)
        pull = torch.func.vjp(first_backward, *tensors)[1]
        grad_grad_output, grad_input, *grad_offset = pull(gradients)
        return grad_grad_output, grad_input, None, *(grad_offset or [None])

    def autocast(dtype, input, rois, offset, **arguments):
        # There is no large matrix multiply, so casting the input would gain nothing.
        rois, offset = cast(torch.float32, rois, offset)
        return pool(input, rois, offset, **arguments)

    # Forward mode: the composites, which the kernels' check of the image indices does not precede.

    def forward_mode(input, rois, offset, **arguments):
        return composite(input, without_wrong_images(rois, len(input)), offset, **arguments)

    def forward_mode_backward(grad_output, input, rois, offset, **arguments):
        rois = without_wrong_images(rois, len(input))
        return composite_backward(grad_output, input, rois, offset, **arguments)

    register_autograd(op, setup_context=setup_context, backward=backward, composite=forward_mode)
    register_autograd(
        f"{op}_backward",
        setup_context=setup_double_backward,
        backward=double_backward,
        composite=forward_mode_backward,
    )
    register_autocast(op, autocast)
