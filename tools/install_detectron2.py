#!/usr/bin/env python3
"""Run `d2-deformable install-detectron2` in a checkout whose operators are not compiled yet."""

import runpy
from pathlib import Path

COMMAND = Path(__file__).resolve().parents[1] / "d2_deformable/cli/install_detectron2.py"

if __name__ == "__main__":
    # By path, since importing the package needs Detectron2 and the operators.
    runpy.run_path(str(COMMAND), run_name="__main__")
