"""The emulator can fail: bugs planted in a copy of csrc/, each with the alarm that must go off."""

import re
import shutil
from dataclasses import dataclass

import pytest
import torch

from cuda_emulator import cases, emulator

RACE = "race: "
OUT_OF_BOUNDS = "out of bounds: "
NO_INTEGER = "outside the range of representable values"
WRONG = "not close"


@dataclass(frozen=True)
class Mutant:
    alarm: str
    operator: str
    file: str
    right: str
    wrong: str


# At least one of every operator, most in the one that compiles fastest.
QUICK = {
    "add that is not atomic": Mutant(
        RACE, "ps_roi_pool", "cuda/launch.h", "atomicAdd(address, value);", "*address += value;"
    ),
    "two threads write one place": Mutant(
        RACE,
        "ps_roi_pool",
        "kernels/ps_roi_pool.h",
        "acc_t* out = output + roi_bin * sizes.top_channels + channel;",
        "acc_t* out = output + roi_bin * sizes.top_channels;",
    ),
    "bin beyond the map": Mutant(
        OUT_OF_BOUNDS,
        "ps_roi_pool",
        "geometry/ps_roi_pool.h",
        "(value < acc_t(size) ? value : acc_t(size))",
        "value",
    ),
    "every lane writes the sum": Mutant(
        RACE,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "if (exists && lane == 0) grad_mask",
        "if (exists) grad_mask",
    ),
    "offset gradient of another axis": Mutant(
        WRONG,
        "deform_roi_pool",
        "kernels/deform_roi_pool.h",
        "grad_x += sum_x * acc_t(sizes.gamma) * bin.box.width",
        "grad_x += sum_x * acc_t(sizes.gamma) * bin.box.height",
    ),
}
SLOW = {
    "bilinear neighbour beyond the map": Mutant(
        WRONG, "deform_conv2d", "sampling.h", "= has_high ? fraction : T(0);", "= fraction;"
    ),
    "stride of one block": Mutant(
        RACE, "ps_roi_pool", "cuda/launch.cuh", "i += grid", "i += blockDim.x"
    ),
    "no loop over the grid": Mutant(
        WRONG, "ps_roi_pool", "cuda/launch.cuh", "i += grid", "i += count"
    ),
    "one call too many": Mutant(
        OUT_OF_BOUNDS, "ps_roi_pool", "cuda/launch.cuh", "i < count", "i <= count"
    ),
    "one pack too many": Mutant(
        f"{RACE}|{OUT_OF_BOUNDS}",
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "c < unit_channels;",
        "c <= unit_channels;",
    ),
    "a unit that is none": Mutant(
        OUT_OF_BOUNDS,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "if (index >= units) return;",
        "",
    ),
    "lanes that leave before the sum": Mutant(
        "shuffle: |deadlock: ",
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "const bool exists = index < units;",
        "const bool exists = true;\n      if (index >= units) return;",
    ),
    "scattered without atomics": Mutant(
        RACE,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "atomic_add(address + k, weight * acc_t(grad.values[k]));",
        "address[k] += weight * acc_t(grad.values[k]);",
    ),
    "every row in the first image": Mutant(
        f"{WRONG}|{OUT_OF_BOUNDS}",
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "unit.image = chunk.first_image + chunk.image_rows.divide(unit.position);",
        "unit.image = chunk.first_image;",
    ),
    "owners of more than a line": Mutant(
        WRONG,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "y.index[a] == line",
        "y.index[a] >= line",
    ),
    "wrong stride": Mutant(
        WRONG,
        "ps_roi_pool",
        "kernels/ps_roi_pool.h",
        "(y * sizes.width + x) * sizes.pixel_stride() + channel;\n#pragma",
        "(y * sizes.height + x) * sizes.pixel_stride() + channel;\n#pragma",
    ),
    "result not written": Mutant(
        WRONG,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d.h",
        "grad_offset[unit.offset_index(s) + s.image_rows()] = grad_x;",
        "",
    ),
    "sum not started at zero": Mutant(
        WRONG, "ps_roi_pool", "kernels/ps_roi_pool.h", "out[c] = acc_t(0);", ";"
    ),
    "NaN taken for a coordinate": Mutant(
        NO_INTEGER,
        "deform_conv2d",
        "sampling.h",
        "coordinate < T(size) && (legacy ? coordinate >= T(0) : coordinate > T(-1))",
        "!(coordinate >= T(size) || (legacy ? coordinate < T(0) : coordinate <= T(-1)))",
    ),
    "written and added to": Mutant(
        RACE,
        "ps_roi_pool",
        "kernels/ps_roi_pool.h",
        "c < channels; ++c) add(pixel + c,",
        "c < channels; ++c) pixel[c] = 1, add(pixel + c,",
    ),
    "empty grid": Mutant(
        "the launch fails with error 9",
        "ps_roi_pool",
        "cuda/launch.cuh",
        "if (count == 0) return cudaSuccess;",
        "",
    ),
    "mean of no samples": Mutant(
        WRONG,
        "deform_roi_pool",
        "kernels/deform_roi_pool.h",
        "if (samples == 0) return;\n    for",
        "for",
    ),
}
MUTANTS = [
    *(pytest.param(mutant, id=name) for name, mutant in QUICK.items()),
    *(pytest.param(mutant, id=name, marks=pytest.mark.slow) for name, mutant in SLOW.items()),
]


def alarms(program, operator):
    for _, case, kernel in cases.calls(operator):
        try:
            case.check(program, kernel, torch.float32)
        except (emulator.EmulatorError, AssertionError) as error:
            yield str(error)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_caught(mutant, tmp_path):
    csrc = shutil.copytree(emulator.CSRC, tmp_path / "csrc")
    file = csrc / mutant.file
    source = file.read_text()
    assert source.count(mutant.right) == 1, f"{mutant.file} has changed: plant the bug anew"
    file.write_text(source.replace(mutant.right, mutant.wrong))
    program = emulator.build(mutant.operator, tmp_path, csrc)
    assert any(re.search(mutant.alarm, text) for text in alarms(program, mutant.operator))
