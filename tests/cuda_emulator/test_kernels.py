"""Every CUDA kernel, compiled for the CPU with every memory access checked, against the slow
reference."""

import math
from dataclasses import replace

import pytest
import torch

from cuda_emulator import cases, emulator

CALLS = [
    pytest.param(operator, case, kernel, id=f"{operator}-{kernel}-{name}")
    for operator in emulator.OPERATORS
    for name, case, kernel in cases.calls(operator)
]


@pytest.mark.parametrize("dtype", cases.TOLERANCES, ids=lambda dtype: str(dtype)[len("torch.") :])
@pytest.mark.parametrize("operator, case, kernel", CALLS)
def test_equals_reference(operator, case, kernel, dtype, program):
    case.check(program(operator), kernel, dtype)


@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, 1e30, math.nan])
@pytest.mark.parametrize("operator", ["deform_roi_pool", "ps_roi_pool"])
def test_wrong_image_index_stops(operator, index, program):
    case = replace(cases.CASES[operator]["exact RoIs"], image_index=index)
    for kernel in case.kernels:
        with pytest.raises(emulator.EmulatorError, match="a RoI names an image"):
            case.check(program(operator), kernel, torch.float32)
