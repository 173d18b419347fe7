#!/usr/bin/env python
"""Compile the operators for CUDA and look into the result; no GPU is needed, and none is used.

python tools/build_cuda.py "8.0;9.0"

Without a CUDA toolkit this installs the compiler of torch's own CUDA version with pip
(cuda-toolkit[nvcc]). The library goes to build/cuda/, so that an installed one stays as it is.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda"
OPERATORS = ("deform_conv2d", "deform_roi_pool", "ps_roi_pool")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", help="as in TORCH_CUDA_ARCH_LIST")
    architectures = parser.parse_args().architectures
    install_compiler()
    start = time.monotonic()
    build(architectures)
    seconds = time.monotonic() - start
    library = BUILD / "lib" / "d2_deformable" / "_C.so"
    check(library)
    print(f"{library.relative_to(ROOT)}: CUDA kernels of {', '.join(OPERATORS)}")
    print(f"sm {architectures}, {library.stat().st_size / 2**20:.1f} MiB, {seconds:.0f} s")


def install_compiler() -> None:
    """pip's nvcc of torch's version where setup.py finds no toolkit.

    Raises:
        SystemExit: torch was built without CUDA, or its CUDA version is not known.
    """
    if not torch.version.cuda:
        sys.exit(f"torch {torch.__version__} was built without CUDA: install one that was")
    found = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, "FORCE_CUDA": "1"},
        capture_output=True,
    )
    if found.returncode == 0:
        return
    try:
        version = importlib.metadata.version("cuda-toolkit")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            f"no CUDA toolkit found, and this torch {torch.__version__} does not name the one that "
            f"it was built with: install CUDA {torch.version.cuda} and set CUDA_HOME"
        )
    # crt and nvvm too: nvcc's package takes whatever version of them is newest.
    requirement = f"cuda-toolkit[nvcc,crt,nvvm,cccl]=={version}"
    subprocess.run([sys.executable, "-m", "pip", "install", requirement], check=True)


def build(architectures: str) -> None:
    folders = ["--build-lib", str(BUILD / "lib"), "--build-temp", str(BUILD / "temp")]
    subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env={**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures},
        check=True,
    )


def check(library: Path) -> None:
    """The library loads, and holds CUDA kernels forward and backward."""
    torch.ops.load_library(library)
    for operator in OPERATORS:
        for name in (operator, f"{operator}_backward"):
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"d2_deformable::{name}", "CUDA"):
                sys.exit(f"{library} holds no CUDA kernel of {name}")


if __name__ == "__main__":
    main()
