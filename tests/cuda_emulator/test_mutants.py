"""The emulator finds bugs: each one planted in a copy of csrc/ must raise the expected alarm."""

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


# At least one of every operator; most are in the operator that compiles fastest.
QUICK = {
    "add that is not atomic": Mutant(
        RACE,
        "ps_roi_pool",
        "cuda/simt.h",
        "  atomicAdd(address, value);",
        "  *address += value;",
    ),
    "two threads write one place": Mutant(
        RACE,
        "ps_roi_pool",
        "cuda/kernels/ps_roi_pool_cuda_kernel.h",
        "s.bins() + bin_y * s.bins_w + bin_x",
        "s.bins() + bin_y * s.bins_w",
    ),
    "no barrier after a plane is copied": Mutant(
        RACE,
        "ps_roi_pool",
        "cuda/kernels/roi_planes.h",
        "      __syncthreads();\n      visit(plane, split, copy);",
        "      visit(plane, split, copy);",
    ),
    "offset gradient of another axis": Mutant(
        WRONG,
        "deform_roi_pool",
        "cuda/kernels/deform_roi_pool_offset_gradient_cuda_kernel.h",
        "bins.shift_x(grad_x)",
        "bins.shift_y(grad_x)",
    ),
    "bin beyond the map": Mutant(
        OUT_OF_BOUNDS,
        "ps_roi_pool",
        "geometry/ps_roi_pool_geometry.h",
        "(value < acc_t(size) ? value : acc_t(size))",
        "value",
    ),
    "every lane writes the sum": Mutant(
        RACE,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "if (exists && lane == 0) grad_mask",
        "if (exists) grad_mask",
    ),
}
SLOW = {
    "no barrier before the next plane": Mutant(
        RACE,
        "ps_roi_pool",
        "cuda/kernels/roi_planes.h",
        "    __syncthreads();  // before the next plane is cleared\n",
        "",
    ),
    "no loop over the grid": Mutant(
        WRONG,
        "ps_roi_pool",
        "cuda/kernels/roi_planes.h",
        "piece < plan.pieces(); piece += gridDim.x",
        "piece < gridDim.x; piece += gridDim.x",
    ),
    "splits with the same RoIs": Mutant(
        RACE,
        "deform_roi_pool",
        "cuda/kernels/roi_planes.h",
        "{bin, bins, split * rois + roi,",
        "{bin, bins, roi,",
    ),
    "warps that share a copy": Mutant(
        RACE,
        "ps_roi_pool",
        "cuda/kernels/roi_planes.h",
        "threadIdx.x / kWarp % plan.copies * pixels",
        "0",
    ),
    "lanes that share columns": Mutant(
        RACE,
        "ps_roi_pool",
        "cuda/kernels/ps_roi_pool_cuda_kernel.h",
        "kInOrder ? int32_t((threadIdx.x - uint32_t(bin.x_begin)) % kWarp) : 0",
        "0",
    ),
    "lists that begin in one place": Mutant(
        f"{RACE}|{WRONG}",
        "ps_roi_pool",
        "cuda/kernels/roi_lists.h",
        "      place += list;\n",
        "",
    ),
    "wrong stride": Mutant(
        WRONG,
        "ps_roi_pool",
        "cuda/kernels/ps_roi_pool_cuda_kernel.h",
        "const scalar_t* row = map + y * sizes.width;",
        "const scalar_t* row = map + y * sizes.height;",
    ),
    "no room to align a copy": Mutant(
        OUT_OF_BOUNDS,
        "ps_roi_pool",
        "cuda/roi_plan.h",
        "work.pixels * pixel_bytes + 16;",
        "work.pixels * pixel_bytes;",
    ),
    "empty grid": Mutant(
        "the launch fails with error 9",
        "deform_roi_pool",
        "cuda/launch.cuh",
        "if (grid.blocks == 0) return cudaSuccess;",
        "",
    ),
    "column that has no weight": Mutant(
        OUT_OF_BOUNDS,
        "deform_roi_pool",
        "cuda/kernels/merged_samples.h",
        "if (counts<kSlopes>(weight[k][a], slope[k][a])) {",
        "{",
    ),
    "column that counts twice": Mutant(
        WRONG,
        "deform_roi_pool",
        "cuda/kernels/merged_samples.h",
        "    weight[k - 1][from] = slope[k - 1][from] = T(0);\n",
        "",
    ),
    "mean of no samples": Mutant(
        WRONG,
        "deform_roi_pool",
        "cuda/kernels/deform_roi_pool_cuda_kernel.h",
        "return count == acc_t(0) ? acc_t(0) : sum / count;",
        "return sum / count;",
    ),
    "bilinear neighbour beyond the map": Mutant(
        WRONG,
        "deform_conv2d",
        "geometry/sampling.h",
        "= has_high ? fraction : T(0);",
        "= fraction;",
    ),
    "one pack too many": Mutant(
        f"{RACE}|{OUT_OF_BOUNDS}",
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "c < unit_channels;",
        "c <= unit_channels;",
    ),
    "a unit that is none": Mutant(
        OUT_OF_BOUNDS,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "if (index >= units) return;",
        "",
    ),
    "lanes that leave before the sum": Mutant(
        "shuffle: |deadlock: ",
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "const bool exists = index < units;",
        "const bool exists = true;\n      if (index >= units) return;",
    ),
    "scattered without atomics": Mutant(
        RACE,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "atomic_add(address + k, weight * acc_t(grad.values[k]));",
        "address[k] += weight * acc_t(grad.values[k]);",
    ),
    "every row in the first image": Mutant(
        f"{WRONG}|{OUT_OF_BOUNDS}",
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "offset_group, chunk.first_image + image, position};",
        "offset_group, chunk.first_image, position};",
    ),
    "owners of more than a line": Mutant(
        WRONG,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "y.index[a] == line",
        "y.index[a] >= line",
    ),
    "result not written": Mutant(
        WRONG,
        "deform_conv2d",
        "cuda/kernels/deform_conv2d_cuda_kernel.h",
        "grad_offset[unit.offset_index(s) + s.image_rows()] = grad_x;",
        "",
    ),
    "NaN taken for a coordinate": Mutant(
        NO_INTEGER,
        "deform_conv2d",
        "geometry/sampling.h",
        "coordinate < T(size) && (legacy ? coordinate >= T(0) : coordinate > T(-1))",
        "!(coordinate >= T(size) || (legacy ? coordinate < T(0) : coordinate <= T(-1)))",
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
    assert source.count(mutant.right) == 1, f"{mutant.file} has changed: update the planted bug"
    file.write_text(source.replace(mutant.right, mutant.wrong))
    program = emulator.build(mutant.operator, tmp_path, csrc)
    assert any(re.search(mutant.alarm, text) for text in alarms(program, mutant.operator))
