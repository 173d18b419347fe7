"""What a command sets for its process before it imports torch."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2)


def let_threads_sleep() -> None:
    """Let libgomp's threads sleep soon, unless the user has set how long they wait.

    By default they spin for 300,000 rounds first: for nothing, if the thread that they wait for has
    to share its core (docs/speed.md). libgomp reads this when torch is imported.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def end_with_torchrun() -> None:
    """On Linux, end this process when the torchrun that has started it is killed.

    Otherwise it would keep training, and keep OUTPUT_DIR locked. The kernel takes the thread that
    started a process for its parent.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
