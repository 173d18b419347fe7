"""Devices and tolerances for all tests."""

import os

import pytest
import torch

from devices import DEVICES

# cuBLAS needs this for deterministic matrix multiplies, and reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Allowed differences of sums of a few hundred products of numbers near 1.
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def assert_close():
    """assert_close(actual, expected) compares tensors or sequences of them, with TOLERANCES."""

    def check(actual, expected):
        tensor = actual if isinstance(actual, torch.Tensor) else actual[0]
        torch.testing.assert_close(actual, expected, **TOLERANCES[tensor.dtype])

    return check


@pytest.fixture
def assert_same(assert_close):
    """assert_same(actual, expected): equal to the bit on the CPU; close on CUDA, where atomic adds
    run in any order."""

    def check(actual, expected):
        if actual[0].device.type == "cpu":
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert_close(actual, expected)

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
