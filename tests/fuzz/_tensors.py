"""Tensors for fuzz targets: memory layouts of valid ones, and ways to damage them."""

import torch

# as_layout keeps values for these, and makes some of them equal for the others.
SAME_VALUES = ("contiguous", "transposed", "sliced", "shifted", "negated")
LAYOUTS = (*SAME_VALUES, "channels_last", "expanded", "overlapping")
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32,
         torch.int64, torch.uint8, torch.bool, torch.complex64, torch.complex128,
         torch.float8_e4m3fn)  # fmt: skip
DAMAGES = ("type", "type", "rank", "rank", "size", "size", "empty", "huge", "huge", "huge")
DAMAGES = (*DAMAGES, "no elements", "no elements", "no elements", "meta", "sparse", "values")
BIG = (2**20, 2**24, 2**31, 2**32, 2**44, 2**48, 2**56, 2**60, 2**61, 2**62, 2**63 - 1)


class Normal:
    """normal(*size) draws float64 numbers, about 1 in size."""

    dtype = torch.float64

    def __init__(self, seed: int):
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.random, dtype=self.dtype)


def as_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The tensor in another memory layout, where it has dimensions and elements enough."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        order = range(tensor.dim())
        return tensor.permute(*reversed(order)).contiguous().permute(*reversed(order))
    if layout == "sliced":
        larger = tensor.new_full([2 * side + 1 for side in tensor.shape], 7)
        view = larger[tuple(slice(1, None, 2) for _ in tensor.shape)]
        return view.copy_(tensor)
    if layout == "shifted":  # its address is not aligned
        return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    if layout == "negated" and tensor.dtype in (torch.float32, torch.float64):
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    if layout == "expanded" and tensor.numel():
        return tensor[..., :1].expand(tensor.shape)
    if layout == "overlapping" and tensor.numel():
        memory = tensor.flatten()[: sum(side - 1 for side in tensor.shape) + 1].clone()
        return memory.as_strided(tensor.shape, [1] * tensor.dim())
    return tensor.contiguous()


def damaged(tensor: torch.Tensor, kind: str, draw):
    """A tensor that differs in one respect, or something else altogether."""
    shape = list(tensor.shape)
    axis = draw.number(0, max(len(shape) - 1, 0))
    if kind == "type":
        return tensor.to(draw.among(TYPES))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse":
        return tensor.to_sparse()
    if kind == "rank" or not shape:
        views = (tensor[None], tensor.flatten(), tensor[..., None], tensor.new_zeros(()))
        return draw.among((*views, tensor.sum(axis) if shape else tensor))
    if kind == "size":
        shape[axis] = max(shape[axis] + draw.among((-1, 1, 2)), 0)
    elif kind == "empty":
        shape[axis] = 0
    elif kind == "values":
        values = (float("nan"), float("inf"), -1e30, 1e30, 2.0**24, 1e9)
        return torch.full_like(tensor.double(), draw.among(values)).to(tensor.dtype)
    else:  # "huge": one number, seen as many. "no elements": but sides of any size
        empty = {k for k, side in enumerate(shape) if side == 0}
        for _ in range(draw.number(1, 2)):
            larger = draw.among((*range(len(shape)), len(shape) - 2, len(shape) - 1))
            shape[larger] = 0 if larger in empty else draw.among(BIG)
        if kind == "no elements" and not empty:
            shape[draw.among((0, 0, axis))] = 0
    try:
        return torch.ones(1, dtype=tensor.dtype).expand(shape)
    except RuntimeError:  # more than torch can count
        return tensor


def describe(value) -> str:
    """One line on an argument."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    text = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"
    if value.layout == torch.strided:
        text += f" strides {list(value.stride())}"
        if value.device.type == "cpu" and 0 < value.numel() <= 20:
            text += f" {value.tolist()}"
    return text
