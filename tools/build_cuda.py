#!/usr/bin/env python
"""Compile the operators for CUDA and inspect the result; no GPU is needed, and none is used.

python tools/build_cuda.py "8.0;9.0"

If setup.py finds no CUDA toolkit, pip's cuda-toolkit[nvcc] of torch's own version is used.
Everything is written to build/cuda/; installed packages stay unchanged.
"""

import argparse
import importlib.metadata
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda"
# The folder in which pip installs a toolkit of torch's version.
PIP_TOOLKIT = BUILD / "toolkit" / "nvidia" / f"cu{str(torch.version.cuda).split('.')[0]}"
OPERATORS = ("deform_conv2d", "deform_roi_align", "deform_roi_pool", "ps_roi_pool")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "architectures", nargs="?", help="as in TORCH_CUDA_ARCH_LIST (default: all in setup.py)"
    )
    architectures = parser.parse_args().architectures
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="build_cuda_settings")
    architectures = architectures or setup["ARCHITECTURES"]
    if not torch.version.cuda:
        sys.exit(f"torch {torch.__version__} was built without CUDA: install one that was")
    environment = {**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
    if not setup["find_toolkit"]():
        environment["CUDA_HOME"] = str(install_toolkit())
    start = time.monotonic()
    folders = ["--build-lib", str(BUILD / "lib"), "--build-temp", str(BUILD / "temp")]
    command = [sys.executable, "setup.py", "build_ext", *folders]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - start
    library = BUILD / "lib" / "d2_deformable" / "_C.so"
    check(library)
    print(f"{library.relative_to(ROOT)}: CUDA kernels of {', '.join(OPERATORS)}")
    print(f"sm {architectures}, {library.stat().st_size / 2**20:.1f} MiB, {seconds:.0f} s")


def install_toolkit() -> Path:
    """Install pip's nvcc of torch's version into build/cuda once, and return its CUDA_HOME.

    Raises:
        SystemExit: torch does not state which toolkit it was built with.
    """
    if (PIP_TOOLKIT / "bin" / "nvcc").exists():
        return PIP_TOOLKIT
    try:
        version = importlib.metadata.version("cuda-toolkit")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            f"no CUDA toolkit found, and torch {torch.__version__} does not state which one it was "
            f"built with: install CUDA {torch.version.cuda} and set CUDA_HOME"
        )
    # crt and nvvm are pinned, since nvcc's package would install their newest versions.
    requirement = f"cuda-toolkit[nvcc,crt,nvvm,cccl]=={version}"
    pip = [sys.executable, "-m", "pip", "install", "--target", str(BUILD / "toolkit"), requirement]
    subprocess.run(pip, check=True)
    return PIP_TOOLKIT


def check(library: Path) -> None:
    """Check that the library loads and holds CUDA kernels for forward and backward."""
    torch.ops.load_library(library)
    for operator in OPERATORS:
        for name in (operator, f"{operator}_backward"):
            try:
                torch.library.get_kernel(f"d2_deformable::{name}", "CUDA")
            except RuntimeError as error:
                sys.exit(f"{library} holds no CUDA kernel for {name} ({error})")


if __name__ == "__main__":
    main()
