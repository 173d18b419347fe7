"""A map as a table: a row holds the channels that are read together.

Points that must not count read a row of zeros: a weight of zero would not do, since zero times an
infinite pixel is not zero.
"""

import warnings

import torch
from torch import Tensor


def to_compute_dtype(input: Tensor, *tensors: Tensor | None):
    """Cast all tensors to the compute type of the input: float64 for float64, else float32."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return tuple(t if t is None else t.to(dtype) for t in (input, *tensors))


def fixed(size) -> int:
    """Convert a size that is constant in the network to an int.

    TorchScript's tracer represents all sizes as tensors, and ONNX Runtime fails on an empty tensor
    with two unknown sizes.
    """
    if not torch.jit.is_tracing():
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(size)


def read(table: Tensor, rows: Tensor) -> Tensor:
    """(number of rows, channels), (...) -> (..., channels)."""
    # Not F.embedding, whose second derivative fails where there are no rows.
    return table.index_select(0, rows.flatten()).reshape(*rows.shape, table.shape[1])


def read_backward(grad: Tensor, rows: Tensor, table: Tensor) -> Tensor:
    """(..., channels), (...) -> gradient of the table."""
    return grad.new_zeros(table.shape).index_add(0, rows.flatten(), grad.flatten(0, -2))
