"""Provenance of a measurement: machine, versions and commit.

The top-level imports are standard library only: `tools/install_detectron2.py` runs this file before
Detectron2 or the operators are installed.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path


def machine() -> str:
    """Processors and GPU of this machine, e.g. "2 x AMD EPYC"."""
    import torch

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
    import torch
    import torchvision

    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {detectron2_source()}"
    )


def detectron2_source() -> str:
    """Describe the Detectron2 that this Python imports, and where it came from.

    Raises:
        ImportError: Detectron2 is not installed.
    """
    import detectron2

    name = f"Detectron2 {detectron2.__version__}"
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return f"{name}, not installed by pip"
    if "+d2deformable" in distribution.version:
        return distribution.metadata["Summary"]
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f"{name} from {origin['url']} at {origin['vcs_info']['commit_id'][:8]}"
    return f"{name} of unknown origin"


def commit() -> str:
    """The git commit of this package's files, with "-dirty" if they were changed.

    Changes in docs/ and benchmarks/results/ do not count: measurements write there.
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
