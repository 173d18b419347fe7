"""What a measurement was made with: machine, versions and commit."""

import os
import platform
import subprocess
from pathlib import Path

import torch
import torchvision

from ..compat import detectron2_source


def machine() -> str:
    """Processors and GPU of this machine, e.g. "2 x AMD EPYC"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    names = (line.split(":")[1].strip() for line in lines if "model name" in line)
    name = next(names, platform.processor() or platform.machine())
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([f"{os.cpu_count()} x {name}", *gpu])


def versions() -> str:
    """Python, torch, torchvision and Detectron2 of this process."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {detectron2_source()}"
    )


def commit() -> str:
    """The git commit this package's files are of, with "-dirty" where they were changed.

    docs/ and benchmarks/results/ do not count: measurements themselves write there.
    """
    here = Path(__file__)

    def git(*args):
        return subprocess.run(
            ["git", "-C", here.parent, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", here.name)
        written = (":(top,exclude)docs", ":(top,exclude)benchmarks/results")
        changed = git("status", "--porcelain", "-uno", "--", ":(top)", *written)
        return git("describe", "--always") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
