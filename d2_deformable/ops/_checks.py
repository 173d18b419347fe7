"""Checks of the public functions: errors that say what was given, what was expected, how to fix it.

csrc/ checks sizes again, for callers of torch.ops.d2_deformable. Fake kernels check nothing.
"""

import math

import torch

from . import _library
from ._autocast import autocast_is_on

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF_TYPES = (torch.float16, torch.bfloat16)


class ArgumentError(ValueError, RuntimeError):
    """Arguments that do not fit: ValueError is Python's name for it, RuntimeError torchvision's."""


def shape(tensor: torch.Tensor) -> tuple:
    return tuple(tensor.shape)


def check_tensors(op: str, optional=(), **tensors) -> None:
    """Check that arguments are tensors; those whose names are in `optional` may be None."""
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor) or (value is None and name in optional):
            continue
        given, todo = "None", ""
        if value is not None:
            given = f"a {type(value).__name__}"
            todo = f". Convert it with torch.as_tensor({name})"
        if name == "rois" and isinstance(value, (list, tuple)):
            given += f" of length {len(value)}"
            todo = (
                " (R, 5), each row (image index, x0, y0, x1, y1). Join the boxes of the images: "
                "torch.cat([torch.nn.functional.pad(b, (1, 0), value=i) for i, b in "
                "enumerate(rois)])"
            )
        raise ArgumentError(f"{op}: {name} is {given}; expected a torch.Tensor{todo}")


def check_scale(op: str, spatial_scale: float) -> None:
    if not 0 < spatial_scale < math.inf:  # also of NaN
        raise ArgumentError(
            f"{op}: spatial_scale is {spatial_scale}; expected map pixels per image pixel, a "
            "finite number above 0 such as 1/16"
        )


def check_pair(op: str, name: str, value, least: int) -> list[int]:
    """Convert an int or a (height, width) pair to [height, width], each at least `least` and below
    2^24, the bound of csrc/check.h."""
    pair = list(value) if isinstance(value, (tuple, list)) else [value, value]
    if len(pair) != 2 or not all(isinstance(v, int) and least <= v < 2**24 for v in pair):
        raise ArgumentError(
            f"{op}: {name} is an int or a (height, width) pair of ints below 2^24, each at least "
            f"{least}; got {value!r}"
        )
    return pair


def check_map(op: str, input: torch.Tensor) -> None:
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ArgumentError(
            f"{op}: input must be (N, C, H, W) with C, H and W above 0, got shape {shape(input)}; "
            "for a single image, pass input[None]"
        )
    # As in csrc/check.h, which forward mode does not run. While compiling, it would be a guard.
    if not torch.compiler.is_compiling() and max(input.shape[2:]) >= 2**24:
        raise ArgumentError(
            f"{op}: input {shape(input)} has a side of 2^24 or more, the most that float32 "
            "coordinates can address; crop or resize it"
        )
    if input.dtype not in DTYPES:
        raise ArgumentError(
            f"{op}: input is {input.dtype}, but float32, float64, float16 and bfloat16 are "
            "supported; convert it with input.float()"
        )
    if input.device.type == "cuda" and not _library.has_cuda():
        raise ArgumentError(
            f"{op}: input is on {input.device}, but the operators were built for the CPU only; "
            f"use the CPU (MODEL.DEVICE cpu), or run {_library.BUILD} again with nvcc on the PATH "
            "or in CUDA_HOME"
        )


def check_like_input(op: str, input: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """Check that all tensors have the device of the input, and its dtype or one that autocast casts
    to it."""
    _check_types(op, input, (input.dtype,), tensors)


def check_coordinates(op: str, input: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """Check as `check_like_input` does, but also allow float32 beside a half-precision input."""
    float32 = (torch.float32,) if input.dtype in HALF_TYPES else ()
    _check_types(op, input, (input.dtype, *float32), tensors)


def _check_types(op, input, dtypes, tensors) -> None:
    if input.dtype != torch.float64 and autocast_is_on(input):
        dtypes = (*HALF_TYPES, torch.float32)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ArgumentError(
                f"{op}: {name} is on {tensor.device} but input is on {input.device}; "
                f"move it with {name}.to(input.device)"
            )
        if tensor.dtype not in dtypes:
            raise ArgumentError(
                f"{op}: {name} is {tensor.dtype} but input is {input.dtype}; "
                f"convert it with {name}.to({dtypes[-1]})"
            )


def is_channels_last(input: torch.Tensor) -> bool:
    """Whether results for `input` are channels-last (the rule of csrc/layout.h)."""
    return input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()


def empty_like_input(input: torch.Tensor, size) -> torch.Tensor:
    """A fake result of the given size, with the dtype and the memory format of the input."""
    channels_last = is_channels_last(input)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format)


def check_rois(op: str, input: torch.Tensor, rois: torch.Tensor) -> None:
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ArgumentError(
            f"{op}: rois must be (R, 5), each (image index, x0, y0, x1, y1), got shape "
            f"{shape(rois)} for input {shape(input)}"
        )
    check_coordinates(op, input, rois=rois)


def without_wrong_images(rois: torch.Tensor, images: int) -> torch.Tensor:
    """RoIs whose image index is none of 0 .. images - 1 get -1, which tensor operations refuse.

    For composites: they would read other images for a fraction or an index beyond 64 bits.

    Raises:
        IndexError: there are RoIs but no images. Such a map may have sides of any size.
    """
    if images == 0 and len(rois):
        raise IndexError(f"rois has {len(rois)} RoIs, but input has no images")
    index = rois[:, :1]
    is_image = (index >= 0) & (index < images) & (index == index.floor())
    return torch.cat([torch.where(is_image, index, -1), rois[:, 1:]], dim=1)
