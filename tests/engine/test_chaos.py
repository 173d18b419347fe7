"""Trainings that are killed at random moments end as one that was never killed."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_trainings():
    tool = Path(__file__).parents[2] / "tools/chaos.py"
    done = subprocess.run(
        [sys.executable, tool, "--trials", "10"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills of a process" in done.stdout
