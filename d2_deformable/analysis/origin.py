"""What a measurement was made with: versions and commit."""

import platform
import subprocess
from pathlib import Path

import torch
import torchvision

from ..compat import detectron2_source


def versions() -> str:
    """Python, torch, torchvision and Detectron2 of this process."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {detectron2_source()}"
    )


def commit() -> str:
    """The git commit this package's files are of, with "-dirty" where they were changed."""
    here = Path(__file__)

    def git(*args):
        return subprocess.run(
            ["git", "-C", here.parent, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
