#!/usr/bin/env python
"""Compile the operators for CUDA and look into the result; no GPU is needed, and none is used.

python tools/build_cuda.py "8.0;9.0"

Where setup.py finds no CUDA toolkit, pip's cuda-toolkit[nvcc] of torch's own version is taken. All
of it goes to build/cuda/: what is installed stays as it is.
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
# Where pip puts a toolkit of torch's version.
PIP_TOOLKIT = BUILD / "toolkit" / "nvidia" / f"cu{str(torch.version.cuda).split('.')[0]}"
OPERATORS = ("deform_conv2d", "deform_roi_pool", "ps_roi_pool")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "architectures", nargs="?", help="as in TORCH_CUDA_ARCH_LIST (default: all of setup.py)"
    )
    architectures = parser.parse_args().architectures
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="look")
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
    """CUDA_HOME of pip's nvcc of torch's version, installed into build/cuda once.

    Raises:
        SystemExit: torch does not say which toolkit it was built with.
    """
    if (PIP_TOOLKIT / "bin" / "nvcc").exists():
        return PIP_TOOLKIT
    try:
        version = importlib.metadata.version("cuda-toolkit")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            f"no CUDA toolkit found, and this torch {torch.__version__} does not name the one that "
            f"it was built with: install CUDA {torch.version.cuda} and set CUDA_HOME"
        )
    # crt and nvvm too: nvcc's package takes whatever version of them is newest.
    requirement = f"cuda-toolkit[nvcc,crt,nvvm,cccl]=={version}"
    pip = [sys.executable, "-m", "pip", "install", "--target", str(BUILD / "toolkit"), requirement]
    subprocess.run(pip, check=True)
    return PIP_TOOLKIT


def check(library: Path) -> None:
    """The library loads, and holds CUDA kernels forward and backward."""
    torch.ops.load_library(library)
    for operator in OPERATORS:
        for name in (operator, f"{operator}_backward"):
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"d2_deformable::{name}", "CUDA"):
                sys.exit(f"{library} holds no CUDA kernel of {name}")


if __name__ == "__main__":
    main()
