"""torch.autocast for the operators: coordinates stay float32, whatever the maps are cast to."""

import contextlib

import torch

DEVICES = ("cpu", "cuda")
# Registrations live as long as this object.
_library = torch.library.Library("d2_deformable", "FRAGMENT")


def autocast_is_on(tensor: torch.Tensor) -> bool:
    """Whether torch.autocast is enabled for operators on the tensor's device."""
    device = tensor.device.type
    return device in DEVICES and torch.is_autocast_enabled(device)


def without_autocast(tensor: torch.Tensor):
    """A context in which operators on the tensor's device keep the types of their arguments."""
    if not autocast_is_on(tensor):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def register_autocast(op: str, kernel) -> None:
    """Make torch.autocast call ``kernel(dtype, *arguments)`` instead of the operator.

    dtype is the type that autocast asks for. Autocast is off inside the kernel.
    """

    def on(device: str):
        def call(*args, **kwargs):
            dtype = torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return kernel(dtype, *args, **kwargs)

        return call

    for device in DEVICES:
        _library.impl(op, on(device), f"Autocast{device.upper()}")


def cast(dtype: torch.dtype, *tensors: torch.Tensor | None):
    """Cast the tensors to `dtype`, except float64 ones, which autocast never casts."""
    return (t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)
