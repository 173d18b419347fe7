"""Block kernels in the emulator: a kernel that uses all of csrc/cuda/simt.h is right, and each bug
planted in it raises its alarm."""

import re
import shutil

import pytest
import torch

from cuda_emulator import cases, emulator

KERNELS = emulator.HERE / "simt" / "row_sums_kernels.cu"


def build(folder, plant=lambda csrc, kernels: None):
    csrc = shutil.copytree(emulator.CSRC, folder / "csrc")
    for header in (KERNELS, KERNELS.with_suffix(".h")):
        shutil.copy(header, folder)
    plant(csrc, folder / KERNELS.with_suffix(".h").name)
    return emulator.build("row_sums", folder, csrc, folder / KERNELS.name)


def check(program, dtype, rows=5, columns=808):
    matrix = torch.randn(rows, columns, dtype=dtype)
    sums = cases.sum_type(dtype)
    row_sums = matrix.to(sums).sum(1)
    total = row_sums.sum()
    totals = torch.stack([total, total, torch.tensor(rows), torch.tensor(0)])
    results = [(matrix.shape, dtype), ((rows,), sums), ((), sums), ((4,), torch.float32)]
    actual = emulator.run(program, "", dtype, [rows, columns, matrix], results)
    cases.assert_close(actual, [matrix, row_sums, total, totals])


@pytest.fixture(scope="module")
def row_sums(compiler, tmp_path_factory):
    return build(tmp_path_factory.mktemp("row_sums"))


@pytest.mark.parametrize("dtype", cases.TOLERANCES, ids=lambda dtype: str(dtype)[len("torch.") :])
def test_block_kernel(row_sums, dtype):
    check(row_sums, dtype)
    check(row_sums, dtype, rows=1, columns=8)
    check(row_sums, dtype, rows=0)


def test_packs_are_aligned(row_sums):
    with pytest.raises(emulator.EmulatorError, match="misaligned address"):
        check(row_sums, torch.float32, columns=6)


KERNEL, SIMT = "row_sums_kernels.h", "cuda/simt.h"
MUTANTS = {
    "no barrier after writing": (
        "race: |not initialised: ",
        KERNEL,
        "__syncthreads();  // the",
        "// the",
    ),
    "no barrier before writing again": ("race: ", KERNEL, "__syncthreads();  // and", "// and"),
    "barrier for some": (
        "deadlock: ",
        KERNEL,
        "__syncthreads();  // the",
        "if (warp == 0) __syncthreads();  // the",
    ),
    "shared memory one element short": (
        "out of bounds: ",
        KERNEL,
        "int64_t(kWarps * sizeof(acc_t))",
        "int64_t((kWarps - 1) * sizeof(acc_t))",
    ),
    "shared memory not written": ("not initialised: ", KERNEL, "if (lane == 0)", "if (lane == 40)"),
    "shared memory written by all lanes": ("race: ", KERNEL, "if (lane == 0)", ""),
    "mask without some lanes": ("shuffle: ", SIMT, "0xffffffffu", "0xffffu"),
    "too few lanes": ("not close", SIMT, "int lanes = 32", "int lanes = 16"),
    "too many lanes": ("shuffle: ", SIMT, "int lanes = 32", "int lanes = 128"),
    "lanes that do not come": (
        "shuffle: |deadlock: ",
        KERNEL,
        "sum = warp_sum(sum);",
        "if (lane < 16) sum = warp_sum(sum);",
    ),
    "threads that are no whole warps": ("shuffle: ", KERNEL, "32 * kWarps,", "32 * kWarps - 1,"),
    "no loop over the grid": ("not close", KERNEL, "row += gridDim.x", "row += rows"),
    "two blocks write one place": ("race: ", KERNEL, "sums[row] = row_sum", "sums[0] = row_sum"),
    "add that is not atomic": ("race: ", SIMT, "atomicAdd(address, value);", "*address += value;"),
    "pack beyond the end": ("out of bounds: |race: ", KERNEL, "c < columns;", "c <= columns;"),
    "add of four not aligned": ("misaligned", KERNEL, "add4(totals,", "add4(totals + 1,"),
    "more threads than a block may have": ("error 9", KERNEL, "kWarps = 3", "kWarps = 33"),
    "more shared memory than asked for": (
        "error 1",
        KERNEL,
        "int64_t(kWarps * sizeof(acc_t))",
        "int64_t(300 << 10)",
    ),
}  # fmt: skip
QUICK = ("no barrier after writing", "mask without some lanes", "shared memory one element short")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MUTANTS]
)
def test_planted_bug_is_caught(name, compiler, tmp_path):
    alarm, file, right, wrong = MUTANTS[name]

    def plant(csrc, kernels):
        path = kernels if file == KERNEL else csrc / file
        source = path.read_text()
        assert source.count(right) == 1, f"{file} has changed: update the planted bug"
        path.write_text(source.replace(right, wrong))

    program = build(tmp_path, plant)
    with pytest.raises((emulator.EmulatorError, AssertionError)) as error:
        check(program, torch.float32)
    assert re.search(alarm, str(error.value))
