"""Devices and tolerances, one table for all tests."""

import pytest
import torch

from d2_deformable import ops  # noqa: F401  (loads the operators)

# Sums of a few hundred products of numbers near 1.
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
}


def devices() -> list[str]:
    """The CPU, and CUDA where there is a GPU and the operators were built for it."""
    built = torch._C._dispatch_has_kernel_for_dispatch_key("d2_deformable::deform_conv2d", "CUDA")
    return ["cpu", "cuda"] if built and torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=devices())
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def assert_close():
    """assert_close(actual, expected): tensors, or sequences of tensors, within the table."""

    def check(actual, expected):
        tensor = actual if isinstance(actual, torch.Tensor) else actual[0]
        torch.testing.assert_close(actual, expected, **TOLERANCES[tensor.dtype])

    return check


@pytest.fixture
def threads():
    """threads(n) sets the number of CPU threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
