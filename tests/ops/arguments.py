"""Calls of torch.ops.d2_deformable, which has no default values."""

import inspect

SIZES = ("stride", "padding", "dilation", "output_size")


def every_argument(function, **arguments) -> dict:
    """The arguments of a call of a public function as its operator takes them: with the function's
    defaults, and sizes as pairs."""
    bound = inspect.signature(function).bind(**arguments)
    bound.apply_defaults()
    return {
        name: [value, value] if name in SIZES and isinstance(value, int) else value
        for name, value in bound.arguments.items()
    }
