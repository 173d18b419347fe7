"""The driver itself, with a target that fails for long inputs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import run

TARGET = """
import os, time
SEEDS = [b"short"]
def one_input(data):
    if len(data) > 8:
        {failure}
"""


@pytest.fixture
def drive(tmp_path):
    """drive(failure, *options) runs the driver with this target; the inputs that it kept."""
    folder = tmp_path / "tests" / "fuzz"
    folder.mkdir(parents=True)
    source = Path(run.__file__).read_text()
    (folder / "run.py").write_text(source.replace("CASE_SECONDS = 60", "CASE_SECONDS = 5"))

    def call(failure, *options):
        (folder / "sample.py").write_text(TARGET.format(failure=failure))
        command = [sys.executable, folder / "run.py", "sample", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return done, list((tmp_path / "build/fuzz/findings/sample").glob("*"))

    return call


FAILURES = {
    "exception": "raise KeyError('not expected')",
    "signal": "os.abort()",
    "hang": "time.sleep(1000)",
    "memory": "b'x' * (1200 << 20)",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_finding_is_kept_and_replayed(drive, failure):
    done, kept = drive(FAILURES[failure], "--cases", "20")
    assert done.returncode != 0
    assert [path.name for path in kept] == ["current"] and len(kept[0].read_bytes()) > 8
    if failure in ("exception", "signal"):
        assert drive(FAILURES[failure], "--replay", kept[0])[0].returncode != 0
    done, kept = drive("pass", "--cases", "20")
    assert done.returncode == 0 and not kept and "20 cases without a finding" in done.stdout


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris has no wheel here")
@pytest.mark.parametrize("failure", ["exception", "signal"])
def test_the_fuzzer_keeps_a_finding(drive, failure):
    done, kept = drive(FAILURES[failure], "--seconds", "20")
    assert done.returncode != 0 and "failed: sample" in done.stderr
    assert len(kept) == 1 and len(kept[0].read_bytes()) > 8
    assert drive("pass", "--seconds", "1")[0].returncode == 0


def test_unknown_targets_are_named(drive):
    done, _ = drive("pass", "missing")
    assert done.returncode == 2 and "unknown missing; targets are sample" in done.stderr
