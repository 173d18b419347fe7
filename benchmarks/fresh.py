"""Functions that run in a process of their own, and the memory of processes (Linux)."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CALL = (
    "import importlib, json, sys; module, name, arguments = sys.argv[1:]; "
    "function = getattr(importlib.import_module(module), name); "
    "print(json.dumps(function(*json.loads(arguments))))"
)


def in_fresh_process(function: Callable, *arguments):
    """Call a function of a module in a new Python process, whose memory holds nothing else.

    Args:
        function, arguments: arguments and result can be written as JSON.

    Raises:
        RuntimeError: the call failed; the message is the end of its traceback.
    """
    module = sys.modules[function.__module__].__spec__.name  # of `python -m` it is not __main__
    words = [sys.executable, "-c", CALL, module, function.__name__]
    done = subprocess.run([*words, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function.__name__}{arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def private_mib(pid="self") -> float:
    """MiB that only this process has: what it would free by ending ("USS")."""
    values = _kib(f"/proc/{pid}/smaps_rollup")
    return (values["Private_Clean"] + values["Private_Dirty"]) / 1024


def shared_mib(pid="self") -> float:
    """MiB of a process, in which pages of several processes are shared out equally ("PSS")."""
    return _kib(f"/proc/{pid}/smaps_rollup")["Pss"] / 1024


def resident_mib() -> float:
    return _kib("/proc/self/status")["VmRSS"] / 1024


def peak_mib() -> float:
    """The most that this process has had in memory so far."""
    return _kib("/proc/self/status")["VmHWM"] / 1024


def _kib(file: str) -> dict[str, int]:
    rows = (line.split() for line in Path(file).read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[-1] == "kB"}
