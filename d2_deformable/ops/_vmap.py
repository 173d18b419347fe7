"""torch.vmap rules of the operators: the mapped dimension, of size B, is folded into the images,
channel groups or RoIs of one call."""

import torch
from torch import Tensor

from . import _library  # noqa: F401  (registers the operators)


def _stacked(info, in_dims, args):
    """Move the mapped dimension of each argument to the front; expand arguments without one."""

    def stack(arg, dim):
        if not isinstance(arg, Tensor):
            return arg
        return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

    return [stack(arg, dim) for arg, dim in zip(args, in_dims, strict=True)]


def _as_rows(tensor: Tensor | None) -> Tensor | None:
    """(B, N, ...) -> (B*N, ...)"""
    return None if tensor is None else tensor.flatten(0, 1)


def _from_rows(tensor: Tensor, batch: int) -> Tensor:
    return tensor.unflatten(0, (batch, tensor.shape[0] // batch))


def _as_channels(tensor: Tensor | None) -> Tensor | None:
    """(B, N, C, ...) -> (N, B*C, ...)"""
    return None if tensor is None else tensor.transpose(0, 1).flatten(1, 2)


def _from_channels(tensor: Tensor, batch: int) -> Tensor:
    return tensor.unflatten(1, (batch, tensor.shape[1] // batch)).transpose(0, 1)


@torch.library.register_vmap("d2_deformable::deform_conv2d")
def _(info, in_dims, input, offset, weight, bias, stride, padding, dilation, mask, border):
    op, geometry = torch.ops.d2_deformable.deform_conv2d, (stride, padding, dilation)
    if in_dims[2] is None and in_dims[3] is None:
        tensors = _stacked(info, (*in_dims[:2], in_dims[7]), (input, offset, mask))
        input, offset, mask = map(_as_rows, tensors)
        output = op(input, offset, weight, bias, *geometry, mask, border)
        return _from_rows(output, info.batch_size), 0
    tensors = _stacked(info, (*in_dims[:4], in_dims[7]), (input, offset, weight, bias, mask))
    input, offset, mask = (_as_channels(tensors[k]) for k in (0, 1, 4))
    weight, bias = (_as_rows(tensors[k]) for k in (2, 3))
    output = op(input, offset, weight, bias, *geometry, mask, border)
    return _from_channels(output, info.batch_size), 0


@torch.library.register_vmap("d2_deformable::deform_conv2d_backward")
def _(info, in_dims, *args):
    # Always fold into groups, so that each element of the mapped dimension gets its own gradient of
    # the weight.
    grad_output, input, offset, weight, mask, *arguments = _stacked(info, in_dims, args)
    maps = (_as_channels(tensor) for tensor in (grad_output, input, offset))
    gradients = torch.ops.d2_deformable.deform_conv2d_backward(
        *maps, _as_rows(weight), _as_channels(mask), *arguments
    )
    grad_input, grad_offset, grad_weight, grad_mask = gradients
    batch = info.batch_size
    return (
        _from_channels(grad_input, batch),
        _from_channels(grad_offset, batch),
        _from_rows(grad_weight, batch),
        grad_mask if mask is None else _from_channels(grad_mask, batch),
    ), (0, 0, 0, None if mask is None else 0)


def _as_rois(rois: Tensor, images: int) -> Tensor:
    """(B, R, 5) -> (B*R, 5), with image indices into (B*N, C, H, W); `images` is N."""
    # Half precision does not represent every index.
    rois = rois.float() if rois.dtype in (torch.float16, torch.bfloat16) else rois
    first = images * torch.arange(rois.shape[0], device=rois.device, dtype=rois.dtype)
    return torch.cat([rois[..., :1] + first[:, None, None], rois[..., 1:]], dim=-1).flatten(0, 1)


def _register_deform_roi(name: str) -> None:
    pool = getattr(torch.ops.d2_deformable, name)
    pool_backward = getattr(torch.ops.d2_deformable, f"{name}_backward")

    @torch.library.register_vmap(f"d2_deformable::{name}")
    def _(info, in_dims, *args, **keywords):
        input, rois, offset = _stacked(info, in_dims, args)
        output = pool(_as_rows(input), _as_rois(rois, input.shape[1]), _as_rows(offset), **keywords)
        return _from_rows(output, info.batch_size), 0

    @torch.library.register_vmap(f"d2_deformable::{name}_backward")
    def _(info, in_dims, *args, **keywords):
        grad_output, input, rois, offset = _stacked(info, in_dims, args)
        grad_input, grad_offset = pool_backward(
            _as_rows(grad_output),
            _as_rows(input),
            _as_rois(rois, input.shape[1]),
            _as_rows(offset),
            **keywords,
        )
        grad_input = _from_rows(grad_input, info.batch_size)
        if offset is None:
            return (grad_input, grad_offset), (0, None)
        return (grad_input, _from_rows(grad_offset, info.batch_size)), (0, 0)


_register_deform_roi("deform_roi_pool")
_register_deform_roi("deform_roi_align")


@torch.library.register_vmap("d2_deformable::ps_roi_pool")
def _(info, in_dims, *args, **keywords):
    input, rois = _stacked(info, in_dims, args)
    output = torch.ops.d2_deformable.ps_roi_pool(
        _as_rows(input), _as_rois(rois, input.shape[1]), **keywords
    )
    return _from_rows(output, info.batch_size), 0


@torch.library.register_vmap("d2_deformable::ps_roi_pool_backward")
def _(info, in_dims, *args, input_size, **keywords):
    grad_output, rois = _stacked(info, in_dims, args)
    images, *size = input_size
    grad_input = torch.ops.d2_deformable.ps_roi_pool_backward(
        _as_rows(grad_output),
        _as_rois(rois, images),
        input_size=[info.batch_size * images, *size],
        **keywords,
    )
    return _from_rows(grad_input, info.batch_size), 0
