"""Compiles an operator's unchanged host code, its kernels and the emulator to a library that runs
on CPU tensors."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

from cuda_emulator import emulator

TORCH = Path(torch.__file__).parent
NAMESPACE = "d2_emulated"  # of the library; it must not clash with d2_deformable's own
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-w"),
    *("-DD2_CUDA_EMULATOR", f"-Dd2_deformable={NAMESPACE}"),
    f"-I{emulator.HERE / 'shim'}",
    f"-isystem{TORCH / 'include'}",
    f"-isystem{TORCH / 'include/torch/csrc/api/include'}",
]


def build(operator: str, folder: Path, csrc: Path) -> Path:
    """Build the library in `folder` and return its path."""
    library = folder / f"{operator}_host.so"
    sources = [
        csrc / "cuda" / f"{operator}_cuda.cpp",
        csrc / "cuda" / f"{operator}_kernels.cu",
        emulator.HERE / "blocks.cpp",
        emulator.HERE / "cublas.cpp",
        emulator.HERE / "unwatched.cpp",
    ]
    command = [emulator.COMPILER, *FLAGS, "-include", "cuda_runtime.h", "-shared", "-o", library]
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, "-x", "c++", *sources, *libraries], check=True)
    return library


def copy_with(replacements: list[tuple[str, str, str]], folder: Path) -> Path:
    """Copy csrc/ and apply replacements (file, text, its replacement)."""
    csrc = Path(shutil.copytree(emulator.CSRC, folder / "csrc"))
    for name, text, replacement in replacements:
        source = (csrc / name).read_text()
        assert source.count(text) == 1, f"{name} has changed"
        (csrc / name).write_text(source.replace(text, replacement))
    return csrc


class Operator:
    """Calls the kernels that the library registers for CUDA, with CPU tensors."""

    def __init__(self, name: str, library: Path):
        self.definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
        for schema in self.schemas(name):
            self.definitions.define(schema)
        torch.ops.load_library(library)
        self.library = ctypes.CDLL(str(library))
        self.name = name
        self.keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    @staticmethod
    def schemas(name):
        for operator in (name, f"{name}_backward"):
            schema = getattr(torch.ops.d2_deformable, operator).default._schema
            yield str(schema).removeprefix("d2_deformable::")

    def forward(self, *arguments, **keywords):
        return self._call(self.name, arguments, keywords)

    def backward(self, *arguments, **keywords):
        return self._call(f"{self.name}_backward", arguments, keywords)

    def take_gemms(self):
        """(compute type, math mode of the handle) of each cuBLAS GEMM since the last call."""
        words = (ctypes.c_int32 * 2000)()
        count = self.library.take_gemms(words, ctypes.c_int64(len(words) // 2))
        assert count <= len(words) // 2
        return list(zip(words[: 2 * count : 2], words[1 : 2 * count : 2]))

    def _call(self, name, arguments, keywords):
        operator = getattr(getattr(torch.ops, NAMESPACE), name).default
        return operator.redispatch(self.keys, *arguments, **keywords)
