"""Compiles the CUDA kernels for the CPU with every memory access checked, and calls them: see
README.md."""

import atexit
import ctypes
import functools
import shutil
import struct
import subprocess
import tempfile
from math import prod
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
OPERATORS = ("deform_conv2d", "deform_roi_pool", "ps_roi_pool")
COMPILER = shutil.which("g++")
SANITIZE = ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off"),
    *("-include", "cuda_runtime.h"),  # as nvcc does
    *("-fno-pie", "-DD2_CUDA_EMULATOR"),
    f"-I{HERE / 'shim'}",
    f"-isystem{Path(torch.__file__).parent / 'include'}",
]
# The grid as launched, and two small ones whose threads do more work.
SEEDS = 3


class EmulatorError(Exception):
    """A kernel was stopped; the text is its own message or a sanitizer's."""


def build(operator: str, folder: Path, csrc: Path = CSRC, kernels: Path | None = None) -> Path:
    """Compile the kernels of one operator and their driver to a program in `folder`."""
    source = kernels or csrc / "cuda" / f"{operator}_kernels.cu"
    driver, kernels = folder / f"{operator}.o", folder / f"{operator}_kernels.o"
    program = folder / operator
    flags = [*FLAGS, f"-I{csrc}", f"-I{source.parent}"]
    # Use the thread sanitizer's instrumentation without its library; memory.cpp has the functions.
    watched = [*SANITIZE, "-fsanitize=thread", "-g1"]
    for command in (
        [*flags, "-c", HERE / f"{operator}.cpp", "-o", driver],
        [*flags, *watched, "-c", "-x", "c++", source, "-o", kernels],
        # Where several object files define the same code, the linker takes the first.
        [*SANITIZE, "-no-pie", *runtime(), kernels, driver, "-o", program],
    ):
        subprocess.run([COMPILER, *command], check=True)
    return program


@functools.cache
def runtime() -> list[Path]:
    """Compile the code that all kernels share, once."""
    folder = Path(tempfile.mkdtemp(prefix="cuda_emulator"))
    atexit.register(shutil.rmtree, folder)
    objects = [folder / "blocks.o", folder / "memory.o"]
    for path in objects:
        source = HERE / path.with_suffix(".cpp").name
        subprocess.run([COMPILER, *FLAGS, "-c", source, "-o", path], check=True)
    return objects


class Library:
    """<name>.cpp; its functions take integers and write integers to their last argument."""

    def __init__(self, name: str, folder: Path, csrc: Path = CSRC):
        path = folder / f"{name}.so"
        command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{csrc}"]
        subprocess.run([*command, HERE / f"{name}.cpp", "-o", path], check=True)
        self.library = ctypes.CDLL(path)

    def __call__(self, function: str, *arguments: int, size: int = 2) -> list[int]:
        """Return the `size` integers that the function writes."""
        results = (ctypes.c_int64 * size)()
        getattr(self.library, function)(*map(ctypes.c_int64, arguments), results)
        return list(results)


def pack(argument) -> bytes:
    """Serialise an argument; driver.h has the other half of the format."""
    if argument is None:
        return struct.pack("=q", -1)
    if isinstance(argument, torch.Tensor):
        data = argument.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return struct.pack("=q", argument.numel()) + data
    return struct.pack("=d" if isinstance(argument, float) else "=q", argument)


def run(program: Path, kernel: str, dtype: torch.dtype, arguments: list, results: list) -> list:
    """Launch a kernel once per seed.

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
        env={"UBSAN_OPTIONS": "print_stacktrace=1"},
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
    assert not data, "the results are larger than their shapes"
    return [torch.stack(tensors) for tensors in seeds]
