"""Self-test: values and gradients of each operator against its formula, on small inputs.

The formulas are those of _composite/, in float64 on the CPU. No sampling point is near a whole
pixel, where derivatives jump, so that the results of all types can be compared.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import _composite
from ._checks import HALF_TYPES
from .deform_conv2d import deform_conv2d
from .deform_roi_align import deform_roi_align
from .deform_roi_pool import deform_roi_pool
from .ps_roi_pool import ps_roi_pool

# Largest allowed error, as a share of the largest value.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


def cpu_kernels() -> str:
    """The instruction set whose kernels csrc/cpu/cpu_kernels.cpp chooses."""
    names = {"AVX512": "AVX-512", "AVX2": "AVX2"}
    return names.get(torch.backends.cpu.get_cpu_capability(), "the baseline")


@dataclass(frozen=True)
class Result:
    """The self-test of one operator.

    forward, backward: largest error of the values, and of all gradients, as a share of the largest
        value; None if the operator failed.
    error: why it failed.
    """

    operator: str
    device: str
    dtype: str
    forward: float | None = None
    backward: float | None = None
    error: str = ""

    @property
    def passed(self) -> bool:
        tolerance = TOLERANCES[getattr(torch, self.dtype)]
        errors = (self.forward, self.backward)
        return not self.error and all(e is not None and e <= tolerance for e in errors)


@dataclass(frozen=True)
class Case:
    """An operator, its formula, and arguments of both; gradients are those of the `leaves`."""

    operator: Callable
    formula: Callable
    leaves: dict[str, Tensor]
    constants: dict


def self_test(device: str) -> Iterator[Result]:
    """Test every operator with every type on a device ("cpu", "cuda")."""
    for dtype in TOLERANCES:
        for case in cases():
            result = Result(case.operator.__name__, device, str(dtype).removeprefix("torch."))
            try:
                forward, backward = largest_errors(case, device, dtype)
            except Exception as error:  # of any type
                reason = str(error).partition("\n")[0]
                yield replace(result, error=f"{type(error).__name__}: {reason}")
                continue
            if math.isfinite(forward + backward):
                yield replace(result, forward=forward, backward=backward)
            else:
                yield replace(result, error="a result is not finite")


def largest_errors(case: Case, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Compare values and gradients; return the largest error of each, see `Result`."""
    leaves = {name: value.to(dtype) for name, value in case.leaves.items()}
    # Boxes stay in float32 with half-precision maps, as in Detectron2.
    rois_type = torch.float32 if dtype in HALF_TYPES else dtype
    constants = {
        name: value.to(rois_type) if isinstance(value, Tensor) else value
        for name, value in case.constants.items()
    }
    with _without_tf32():
        actual = _values_and_gradients(case.operator, leaves, constants, device)
    leaves, constants = (
        {name: _exactly(value) for name, value in d.items()} for d in (leaves, constants)
    )
    expected = _values_and_gradients(case.formula, leaves, constants, "cpu")
    forward, *backward = (
        (a.cpu().double() - e).abs().max() / e.abs().max() for a, e in zip(actual, expected)
    )
    return forward.item(), torch.stack(backward).max().item()


@contextmanager
def _without_tf32():
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _exactly(value):
    return value.double() if isinstance(value, Tensor) else value


def _values_and_gradients(function, leaves, constants, device) -> list[Tensor]:
    leaves = {name: value.detach().to(device).requires_grad_() for name, value in leaves.items()}
    constants = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in constants.items()
    }
    output = function(**leaves, **constants)
    grad = torch.linspace(-1, 1, output.numel()).view_as(output)
    # Rounded to a half-precision type, in which the operator gets it.
    grad = grad.bfloat16().to(output)
    return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), grad)]


def cases() -> list[Case]:
    """One case per operator, in float64."""
    random = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=random, dtype=torch.float64)

    def shift(*size):
        """Offsets that are at least a quarter of a pixel away from a whole number."""
        whole = torch.randint(-2, 2, size, generator=random)
        return whole + 0.25 + 0.5 * torch.rand(*size, generator=random, dtype=torch.float64)

    # Inside the map of 12 x 10 pixels at 1/8: (image, x0, y0, x1, y1).
    rois = [[0, 12.3, 16.1, 59.7, 71.2], [1, 10.4, 21.9, 48.3, 60.6], [1, 20.2, 14.7, 51.1, 75.6]]
    rois = torch.tensor(rois, dtype=torch.float32)
    pool = {"rois": rois, "output_size": (3, 3), "spatial_scale": 0.125}
    conv = {
        "input": normal(2, 8, 12, 10),
        "offset": shift(2, 2 * 9 * 2, 12, 10),
        "weight": normal(6, 4, 3, 3),
        "bias": normal(6),
        "mask": normal(2, 2 * 9, 12, 10).sigmoid(),
    }
    same = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "border": "zero"}
    maps, parts = normal(2, 18, 12, 10), normal(3, 2, 3, 3)
    parted = {"group_size": 3, "samples_per_part": 4, "gamma": 0.1, "round_rois": True}
    aligned = {"sampling_ratio": 2, "gamma": 0.1}
    moved = {"input": maps, "offset": parts}
    return [
        Case(deform_conv2d, _composite.deform_conv2d, conv, same),
        Case(deform_roi_pool, _composite.deform_roi_pool, moved, pool | parted),
        Case(ps_roi_pool, _composite.ps_roi_pool, {"input": maps}, pool | {"round_rois": True}),
        Case(deform_roi_align, _composite.deform_roi_align, moved, pool | aligned),
    ]
