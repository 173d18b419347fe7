"""The processes of a torchrun that is killed end as well."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2_deformable.utils import process

# Runs the module alone, since the package imports torch.
CHILD = f"""
import os, runpy, time
runpy.run_path({process.__file__!r})["end_with_torchrun"]()
print(os.getpid(), flush=True)
time.sleep(60)
"""
TORCHRUN = f"""
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
print(child.stdout.readline().decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def lives(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
@pytest.mark.parametrize("of_torchrun", [True, False])
def test_a_process_ends_with_its_torchrun(of_torchrun):
    variables = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_RUN_ID"}
    variables |= {"TORCHELASTIC_RUN_ID": "a"} if of_torchrun else {}
    words = [sys.executable, "-c", TORCHRUN]
    killed = subprocess.run(words, env=variables, stdout=subprocess.PIPE, check=False)
    pid = int(killed.stdout)
    end = time.monotonic() + (30 if of_torchrun else 0.5)
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.01)
    if survived := lives(pid):
        os.kill(pid, signal.SIGKILL)
    assert survived is not of_torchrun
