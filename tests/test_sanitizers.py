"""The CPU operators under GCC's sanitizers; `make sanitize` runs many more cases."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("setarch"), reason="needs setarch of util-linux")
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_no_finding(kind):
    """In build/sanitize, which is compiled again only where csrc changed. For threads, a planted
    race is found first."""
    command = [sys.executable, "tools/sanitize.py", kind, "--cases", "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no finding in 500 cases" in done.stdout
    assert ("a planted race is found" in done.stdout) == (kind == "thread")
