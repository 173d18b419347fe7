"""Train every run of the study that has no record yet; continue where it was stopped or killed.

    DETECTRON2_DATASETS=... python -m benchmarks.learning.queue --workers 1
    python -m benchmarks.learning.queue --list

Each run is a process with one thread and the lowest priority, so that it does not slow down other
work. When a run ends, its record is written and docs/RESULTS.md is updated; nothing is committed.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from d2_deformable.utils.files import sha256

from . import backbone, records
from .page import write_page
from .study import BACKBONE, PLAN, Repetition, Run

ROOT = Path(__file__).resolve().parents[2]


class Training:
    """A process that trains one run."""

    def __init__(self, root: Path, run: Run):
        self.root, self.run = root, run
        self.folder = root / run.output

    def start(self) -> str:
        """Start the process; return "", or the reason why it cannot start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process is training it"
        # CPU time of each process of this run; an interrupted run has several.
        self.log = self.folder / "processes.json"
        self.processes = json.loads(self.log.read_text()) if self.log.is_file() else []
        if any(process["command"] != self.run.command for process in self.processes):
            return f"{self.run.output} holds a training of another command: remove it"
        self.processes.append({"command": self.run.command, "cpu_seconds": 0.0})
        records.write_json(self.log, self.processes)
        with (self.folder / "stdout.txt").open("a") as stdout:
            self.process = subprocess.Popen(
                ["nice", "-n", "19", sys.executable, "-m", "benchmarks.learning.run"]
                + [self.run.name],
                cwd=self.root,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=stdout,
                stderr=subprocess.STDOUT,
                # The lock is held while either process lives: a killed queue may leave a training.
                pass_fds=[self.lock.fileno()],
            )
        return ""

    def has_ended(self, wait=False) -> bool:
        """Check whether the training has ended, and record its CPU seconds so far.

        They are recorded each time, so that the time of a killed queue is counted as well.
        """
        pid, status, usage = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
        if pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)
            seconds = usage.ru_utime + usage.ru_stime
        else:
            seconds = _cpu_seconds(self.process.pid)
        self.processes[-1]["cpu_seconds"] = seconds
        records.write_json(self.log, self.processes)
        if pid:
            self.lock.close()
        return bool(pid)

    def stop(self):
        self.process.terminate()
        self.has_ended(wait=True)

    def record(self) -> str:
        """Write the record of the finished run; return "", or the reason why there is none."""
        if self.process.returncode:
            lines = (self.folder / "stdout.txt").read_text().split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            return f"exit status {self.process.returncode}: {last.strip()}"
        result = json.loads((self.folder / "result.json").read_text())
        result["cpu_seconds"] = round(sum(p["cpu_seconds"] for p in self.processes), 1)
        result["processes"] = len(self.processes)
        records.write_json(records.path_of(self.root, self.run), result)
        return ""


def missing(root: Path, repetition: Repetition) -> list[Run]:
    """List the runs to train, the trunk before its arms.

    Arms are comparable only if they start from the same trunk file. If a checkpoint of a trunk was
    lost and training it again on another machine gave different bits, recorded arms belong to
    another trunk than new ones. In this case all arms of the repetition are trained again.
    """
    found = {run: records.read(root, run) for run in repetition.branches}
    starts = {record["start_sha256"] for record in found.values() if record}
    if all(found.values()) and len(starts) == 1:
        return []
    start = root / repetition.branches[0].start
    trunk = repetition.trunk
    if trunk and not (start.is_file() and records.read(root, trunk)):
        return [trunk]  # its arms follow once it is trained
    current = _sha256_at(start, start.stat().st_mtime_ns)
    return [run for run, record in found.items() if not record or record["start_sha256"] != current]


@cache
def _sha256_at(file: Path, modified: int) -> str:
    """Hash a file once; the queue looks every two seconds."""
    return sha256(file)


def run_queue(root, plan=PLAN, workers=1, seconds_between_looks=2.0):
    """Train the missing runs in the order of `plan`, `workers` at a time.

    Yields:
        (run, problem) of each training that ends; problem is "" if its record was written. A run
        with a problem is not tried again, nor are the runs that depend on it.
    """
    root = Path(root)
    running, failed = [], set()
    try:
        while True:
            todo = [run for repetition in plan for run in missing(root, repetition)]
            busy = {training.run for training in running} | failed
            todo = [run for run in dict.fromkeys(todo) if run not in busy]
            if not todo and not running:
                return
            for run in todo[: workers - len(running)]:
                training = Training(root, run)
                if problem := training.start():
                    failed.add(run)
                    yield run, problem
                else:
                    running.append(training)
            time.sleep(seconds_between_looks)
            for training in [t for t in running if t.has_ended()]:
                running.remove(training)
                if problem := training.record():
                    failed.add(training.run)
                yield training.run, problem
    finally:
        for training in running:
            training.stop()


def progress(root, plan=PLAN) -> str:
    """Format a line for each run, and the estimated time of the remaining runs."""
    lines, left, known = [], [], {}
    for run in dict.fromkeys(run for repetition in plan for run in repetition.runs):
        record = records.read(root, run)
        if record:
            known.setdefault((run.task, bool(run.arm)), []).append(record["cpu_seconds"])
        else:
            left.append((run.task, bool(run.arm)))
        lines.append(f"{'done' if record else '    '} {run.name}")
    costs = {kind: sum(seconds) / len(seconds) for kind, seconds in known.items()}
    hours = sum(costs.get(kind, 0.0) for kind in left) / 3600
    unknown = sum(kind not in costs for kind in left)
    note = f", and {unknown} of a kind without a record yet" if unknown else ""
    return "\n".join([*lines, f"{len(left)} runs left, about {hours:.1f} CPU hours{note}"])


def _cpu_seconds(pid) -> float:
    """User and system seconds of a running process; 0 on systems without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="parallel trainings, one core each")
    parser.add_argument("--list", action="store_true", help="show progress and exit")
    args = parser.parse_args(argv)
    print(progress(ROOT), flush=True)
    if args.list:
        return
    if not (ROOT / BACKBONE).is_file():
        backbone.main([str(ROOT / BACKBONE)])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = 0
    for run, problem in run_queue(ROOT, workers=args.workers):
        left = progress(ROOT).splitlines()[-1]
        print(f"{run.name}: {problem or 'done'}; {left}", flush=True)
        failed += bool(problem)
        write_page(ROOT)
    if failed:
        sys.exit(f"queue: {failed} trainings failed; run the queue again to retry them")


if __name__ == "__main__":
    main()
