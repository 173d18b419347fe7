"""Load the compiled operators: importing this module defines torch.ops.d2_deformable."""

from pathlib import Path

import torch

from ..utils.library import BUILD, PATH, read_build, same_minor


def load(path: Path) -> None:
    """Load the library at `path`, or raise an ImportError that says how to build it."""
    if not path.exists():
        raise ImportError(
            f"d2_deformable's operators are not built ({path} is missing): run {BUILD}"
        )
    built = read_build(path).torch
    if built and not same_minor(built, torch.__version__):  # it might load, and compute nonsense
        minor = ".".join(torch.__version__.split(".")[:2])
        raise ImportError(
            f"d2_deformable's operators were built with torch {built}, and torch "
            f"{torch.__version__} is installed: install the wheel of d2_deformable for torch "
            f"{minor}, or run {BUILD} again"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"d2_deformable's operators in {path} do not load with torch {torch.__version__}: they "
            f"were built for another torch or machine; run {BUILD} again ({error})"
        ) from error


load(PATH)
# Looked up once, because torch.compile cannot trace a query of the dispatcher.
try:
    torch.library.get_kernel("d2_deformable::deform_conv2d", "CUDA")
    _HAS_CUDA = True
except RuntimeError:
    _HAS_CUDA = False


def has_cuda() -> bool:
    """Whether the loaded library holds CUDA kernels."""
    return _HAS_CUDA
