"""Compiles the CUDA kernels for the CPU, under sanitizers, and calls them; see README.md."""

import shutil
import struct
import subprocess
from math import prod
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
OPERATORS = ("deform_conv2d", "deform_roi_pool", "ps_roi_pool")
COMPILER = shutil.which("g++")
SANITIZE = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]
FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off"),
    *("-include", "cuda_runtime.h"),  # as nvcc does
    "-DD2_CUDA_EMULATOR",
    f"-I{HERE / 'shim'}",
    f"-isystem{Path(torch.__file__).parent / 'include'}",
]
# The grid as launched, and two small ones whose threads have much to do.
SEEDS = 3


class EmulatorError(Exception):
    """A kernel was stopped; the text is what it or a sanitizer said."""


def build(operator: str, folder: Path, csrc: Path = CSRC) -> Path:
    """Compiles the kernels of one operator, and what calls them, to a program in `folder`."""
    driver, kernels = folder / f"{operator}.o", folder / f"{operator}_kernels.o"
    program = folder / operator
    flags = [*FLAGS, f"-I{csrc}"]
    source = csrc / "cuda" / f"{operator}_kernels.cu"
    for command in (
        [*flags, "-c", HERE / f"{operator}.cpp", "-o", driver],
        [*flags, *SANITIZE, "-g1", "-c", "-x", "c++", source, "-o", kernels],
        [*SANITIZE, kernels, driver, "-o", program],  # of code in both, the first one's is taken
    ):
        subprocess.run([COMPILER, *command], check=True)
    return program


def pack(argument) -> bytes:
    """driver.h holds the other half of the format."""
    if argument is None:
        return struct.pack("=q", -1)
    if isinstance(argument, torch.Tensor):
        data = argument.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return struct.pack("=q", argument.numel()) + data
    return struct.pack("=d" if isinstance(argument, float) else "=q", argument)


def run(program: Path, kernel: str, dtype: torch.dtype, arguments: list, results: list) -> list:
    """Launches a kernel once per seed.

    arguments: int, bool, float, tensors and None, in the order in which <operator>.cpp reads them
    results: (shape, dtype) of each result
    -> the results, each (SEEDS, *shape)
    """
    arguments_file, results_file = (program.with_suffix(s) for s in (".arguments", ".results"))
    arguments_file.write_bytes(b"".join(map(pack, arguments)))
    name = str(dtype).removeprefix("torch.")
    process = subprocess.run(
        [program, kernel, name, arguments_file, results_file, str(SEEDS)],
        capture_output=True,
        text=True,
        timeout=120,
        # Looking for leaks needs ptrace, which containers forbid.
        env={"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    if process.returncode != 0:
        raise EmulatorError(process.stderr or f"exit status {process.returncode}")
    data, seeds = results_file.read_bytes(), [[] for _ in results]
    for _ in range(SEEDS):
        for k, (shape, result_dtype) in enumerate(results):
            size = prod(shape) * result_dtype.itemsize
            flat = torch.frombuffer(bytearray(data[:size]), dtype=result_dtype) if size else None
            seeds[k].append(torch.empty(shape) if flat is None else flat.view(shape))
            data = data[size:]
    assert not data, "the results are larger than the shapes say"
    return [torch.stack(tensors) for tensors in seeds]
