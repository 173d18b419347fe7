"""README's animation of the page, and tools/record_app.py, which records it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from browser import needs_chromium

ROOT = Path(__file__).parents[2]


def check(file):
    """Check size, length and number of frames; identical frames in a row are stored as one."""
    with Image.open(file) as animation:
        assert animation.size == (880, 680) and animation.n_frames > 30
        total = 0
        for number in range(animation.n_frames):
            animation.seek(number)
            animation.load()
            total += animation.info["duration"]
    assert 8_000 < total < 30_000
    assert file.stat().st_size < 700_000


def test_the_animation_of_readme():
    assert "(docs/images/app.webp)" in (ROOT / "README.md").read_text()
    check(ROOT / "docs/images/app.webp")


@pytest.mark.slow
@needs_chromium
def test_it_can_be_recorded(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools/record_app.py", tmp_path / "app.webp"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    check(tmp_path / "app.webp")
