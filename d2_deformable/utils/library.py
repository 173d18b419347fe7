"""The compiled library: where it is, and what it says about its build, without loading it."""

import re
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).resolve().parents[1] / "_C.so"
BUILD = "`pip install --no-build-isolation -e .` in the repository"


class Build(NamedTuple):
    """The build of a library.

    torch: version of torch that it was compiled with; None if the file does not say it.
    cuda_architectures: ("8.0", "9.0"), empty if it was built for the CPU alone.
    """

    torch: str | None
    cuda_architectures: tuple[str, ...]


def read_build(path) -> Build:
    """Read the texts that csrc/library.cpp and csrc/cuda/launch.cuh put into the library.

    Raises:
        FileNotFoundError: there is no such file.
    """
    content = Path(path).read_bytes()
    torch = re.search(rb"d2_deformable built with torch ([\w.+]+)", content)
    cuda = re.search(rb"d2_deformable built for CUDA architectures ([\d,]+)", content)
    numbers = map(int, cuda[1].split(b",")) if cuda else ()  # 900 is 9.0
    return Build(torch and torch[1].decode(), tuple(f"{n // 100}.{n // 10 % 10}" for n in numbers))


def same_minor(version: str, other: str) -> bool:
    """Whether two versions of torch are of the same minor version, as 2.11.0 and 2.11.1+cpu are."""
    return version.split(".")[:2] == other.split(".")[:2]
