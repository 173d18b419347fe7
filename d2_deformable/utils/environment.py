"""The packages, processors and driver that this process runs with, and what is wrong with them.

Nothing here fails because something is missing or broken. Packages are imported inside functions.
"""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .provenance import detectron2_source

# Distribution: a module of it that fails to import if it does not fit the others. A package comes
# after those that it builds on.
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision.ops",
    "Pillow": "PIL.Image",
    "pycocotools": "pycocotools.mask",
    "fvcore": "fvcore.nn",
}
REMEDIES = {
    "torchvision": "install the torchvision that belongs to this torch",
    "pycocotools": "pip install --upgrade --force-reinstall --no-cache-dir pycocotools (one that "
    "was built for NumPy 1 does not work with NumPy 2)",
    "detectron2": "`pip uninstall detectron2`, and install it again",
}
DRIVER = Path("/proc/driver/nvidia/version")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        broken: whether something does not work at all; else it works, but not as it could.
        problem: one line.
        remedy: what to do about it.
    """

    broken: bool
    problem: str
    remedy: str


def brief(error: Exception) -> str:
    """Format an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def versions() -> dict[str, str]:
    """Versions of Python, of PACKAGES and of CUDA; "missing" where there is none."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    try:
        found["Detectron2"] = detectron2_source().removeprefix("Detectron2 ")
    except Exception:  # of any type
        found["Detectron2"] = "missing"
    return found | {
        "CUDA of torch": cuda_of_torch(),
        "CUDA toolkit": nvcc(),
        "GPU driver": driver(),
    }


def cuda_of_torch() -> str:
    try:
        import torch
    except Exception:  # of any type: the caller reports it
        return "missing"
    return torch.version.cuda or "none, torch is built for the CPU"


def nvcc() -> str:
    """The CUDA toolkit in CUDA_HOME or on the PATH, which compiles the operators."""
    home = os.environ.get("CUDA_HOME")
    program = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    program = program or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not program:
        return "none"
    text = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release ([\d.]+)", text)
    return f"{release[1] if release else 'unknown version'} ({program})"


def driver() -> str:
    """Version of NVIDIA's driver; "none" without one."""
    try:
        found = re.search(r"\b\d{3,}\.[\d.]+", DRIVER.read_text())
    except OSError:
        return "none"
    return found[0] if found else "unknown version"


def check_packages() -> Iterator[Finding]:
    """Find packages that are missing, do not import, or do not fit each other."""
    for name, module in PACKAGES.items():
        broken = list(check_import(name, module))
        yield from broken
        if broken and name in ("numpy", "torch"):
            return  # all others need them
        if name == "torchvision" and not broken:
            yield from check_torchvision()


def check_import(name: str, module: str) -> Iterator[Finding]:
    """Import a module of a distribution."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # of any type, also RuntimeError and AttributeError
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            yield Finding(True, f"{name} is not installed", f"pip install {name}")
            return
        remedy = REMEDIES.get(name, f"pip install --force-reinstall {name}")
        problem = f"{name} does not import ({brief(error)})"
        yield Finding(True, problem, remedy)


def check_torchvision() -> Iterator[Finding]:
    """Compare torch with the release that torchvision was built for, which its metadata names."""
    needs = importlib.metadata.requires("torchvision") or []
    pinned = next((match[1] for n in needs if (match := re.match(r"torch ?\(?==([\d.]+)", n))), "")
    torch = importlib.metadata.version("torch")
    if pinned and torch.partition("+")[0] != pinned:
        yield Finding(
            True,
            f"torchvision {importlib.metadata.version('torchvision')} was built for torch "
            f"{pinned}, and this is torch {torch}",
            REMEDIES["torchvision"],
        )


def check_threads() -> Iterator[Finding]:
    """Compare torch's threads with the processors that this process may use."""
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    if threads > cores:
        yield Finding(
            False,
            f"torch uses {threads} threads on {cores} usable core{'s' * (cores > 1)}, which slows "
            "everything down",
            f"export OMP_NUM_THREADS={cores}",
        )


def usable_cores() -> int:
    """Cores that this process may run on, and that its container's quota allows; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def check_gpu(built_for_cuda: bool) -> Iterator[Finding]:
    """Find why a GPU of this machine, if it has one, cannot be used.

    Args:
        built_for_cuda: whether the operators were.
    """
    import torch

    if driver() == "none":
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not torch.version.cuda:
        yield Finding(
            False, "the GPU is not used: torch is built for the CPU", "install torch for CUDA"
        )
    elif not available:
        why = caught[0].message if caught else "it is hidden (CUDA_VISIBLE_DEVICES) or not working"
        yield Finding(
            False,
            f"torch cannot use the GPU: {why}",
            f"check nvidia-smi and CUDA_VISIBLE_DEVICES; the driver ({driver()}) must support "
            f"CUDA {torch.version.cuda}",
        )
    elif not built_for_cuda:
        yield Finding(
            False,
            "the GPU is not used: the operators are built for the CPU alone",
            f"install a CUDA {torch.version.cuda.partition('.')[0]} toolkit and build them again, "
            "with FORCE_CUDA=1 to see what is missing",
        )


def check_shared_memory() -> Iterator[Finding]:
    """Data loaders pass images through /dev/shm, of which Docker gives 64 MB."""
    try:
        size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
    except OSError:  # not Linux
        return
    if size < 2**28:
        yield Finding(
            False,
            f"/dev/shm has {size >> 20} MiB, and data loaders may be killed (bus error)",
            "docker run --shm-size 8g, or train with DATALOADER.NUM_WORKERS 0",
        )
