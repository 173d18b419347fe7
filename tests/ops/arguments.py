"""Arguments for torch.ops.d2_deformable, whose operators have no default values."""

import inspect

SIZES = ("stride", "padding", "dilation", "output_size")


def every_argument(function, **arguments) -> dict:
    """Convert a public function's arguments to its operator's: add defaults, make sizes pairs."""
    bound = inspect.signature(function).bind(**arguments)
    bound.apply_defaults()
    return {
        name: [value, value] if name in SIZES and isinstance(value, int) else value
        for name, value in bound.arguments.items()
    }
