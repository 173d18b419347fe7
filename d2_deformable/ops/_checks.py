"""Checks of the public functions: errors that say what was given, what was expected, how to fix it.

csrc/ checks sizes again, for callers of torch.ops.d2_deformable; fake kernels repeat neither.
"""

import torch

from . import _library

DTYPES = (torch.float32, torch.float64)


class ArgumentError(ValueError, RuntimeError):
    """Arguments that do not fit: ValueError is Python's name for it, RuntimeError torchvision's."""


def shape(tensor: torch.Tensor) -> tuple:
    return tuple(tensor.shape)


def check_pair(op: str, name: str, value, least: int) -> list[int]:
    """An int or a (height, width) pair, each at least `least`, as [height, width]."""
    pair = list(value) if isinstance(value, (tuple, list)) else [value, value]
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ArgumentError(
            f"{op}: {name} is an int or a (height, width) pair of ints, each at least {least}; "
            f"got {value!r}"
        )
    return pair


def check_map(op: str, input: torch.Tensor) -> None:
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ArgumentError(
            f"{op}: input must be (N, C, H, W) with C, H and W above 0, got shape {shape(input)}; "
            "a single image takes input[None]"
        )
    if input.dtype not in DTYPES:
        raise ArgumentError(
            f"{op}: input is {input.dtype}, but float32 and float64 are supported; "
            "convert it with input.float()"
        )

    if input.device.type == "cuda" and not _library.has_cuda():
        raise ArgumentError(
            f"{op}: input is on {input.device}, but the operators were built for the CPU only; "
            "use the CPU (MODEL.DEVICE cpu), or build them for CUDA"
        )


def check_like_input(op: str, input: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """All tensors must have the device and the dtype of the input."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ArgumentError(
                f"{op}: {name} is on {tensor.device} but input is on {input.device}; "
                f"move it with {name}.to(input.device)"
            )
        if tensor.dtype != input.dtype:
            raise ArgumentError(
                f"{op}: {name} is {tensor.dtype} but input is {input.dtype}; "
                f"convert it with {name}.to(input.dtype)"
            )


def check_rois(op: str, input: torch.Tensor, rois: torch.Tensor) -> None:
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ArgumentError(
            f"{op}: rois must be (R, 5), each (image index, x0, y0, x1, y1), got shape "
            f"{shape(rois)} for input {shape(input)}"
        )
    check_like_input(op, input, rois=rois)
