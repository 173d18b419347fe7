"""torch.autocast for the operators: coordinates stay float32, whatever the maps become."""

import contextlib

import torch

DEVICES = ("cpu", "cuda")
# Registrations last as long as this object.
_library = torch.library.Library("d2_deformable", "FRAGMENT")


def autocast_is_on(tensor: torch.Tensor) -> bool:
    """Whether torch.autocast is at work for operators on the tensor's device."""
    device = tensor.device.type
    return device in DEVICES and torch.is_autocast_enabled(device)


def without_autocast(tensor: torch.Tensor):
    """A context in which operators on the tensor's device keep the types they are given."""
    if not autocast_is_on(tensor):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def register_autocast(op: str, kernel) -> None:
    """Has torch.autocast call ``kernel(dtype, *arguments)`` in the place of the operator, where
    dtype is the type that autocast asks for; inside, autocast is off."""

    def on(device: str):
        def call(*args, **kwargs):
            dtype = torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return kernel(dtype, *args, **kwargs)

        return call

    for device in DEVICES:
        _library.impl(op, on(device), f"Autocast{device.upper()}")


def cast(dtype: torch.dtype, *tensors: torch.Tensor | None):
    """The tensors in that type; float64 stays, as everywhere under autocast."""
    return (t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)
