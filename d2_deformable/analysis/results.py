"""Proof that it learns: a resumable queue of trainings on real photographs, one JSON per training.

Every row of a data set gets the same iterations, so many that the slowest needs at most 10 minutes
of one CPU core, evaluation included. CPU seconds are measured, not those of a clock: they hold on
a machine that does other work too.
"""

import fcntl
import json
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engine.run import read_run
from ..utils.files import replacing
from ..utils.provenance import commit, machine, versions

RESULTS, OUTPUTS = Path("docs/results"), Path("output/results")
CURVE_POINTS = 50
ABLATION = ("", "atrous4", "dconv3", "dpool", "dconv3_dpool")


@dataclass(frozen=True)
class Row:
    """A YAML of configs/quick, or a control experiment with it.

    variant: what sets the YAML off from its plain twin; "" is that one.
    control: name of the experiment, which is the YAML with `overrides` (KEY VALUE ...).
    """

    dataset: str
    network: str
    variant: str
    control: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def yaml(self) -> str:
        return "_".join(filter(None, (self.dataset, self.network, "R_18", self.variant)))

    @property
    def name(self) -> str:
        return "_".join(filter(None, (self.yaml, self.control)))


# Deformable RoI pooling differs from its plain twin also with offsets of zero: it interpolates,
# and averages where Faster R-CNN's takes the maximum. Held at zero, they tell the two apart.
RFCN_ZERO = ("SOLVER.LR_MULTIPLIERS", "[['score_maps', 10.0], ['offset_maps', 0.0]]")
FASTER_ZERO = ("SOLVER.LR_MULTIPLIERS", "[['offset_fc', 0.0]]")
# The YAMLs' factor is 0.1.
FAST_OFFSETS = ("SOLVER.LR_MULTIPLIERS", "[['score_maps', 10.0], ['conv_offset', 1.0]]")
# Of the paper's 256 anchors about 5 lie on objects here, so the others' losses drown theirs.
FEW_ANCHORS = ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32")

ROWS = [
    *(Row("cards", "rfcn", variant) for variant in ABLATION),
    *(Row("cards", "faster_rcnn", variant) for variant in ABLATION),
    *(Row("cards", "class_aware_rpn", variant) for variant in ABLATION[:3]),
    *(Row("dubai_seg", "deeplab", variant) for variant in ABLATION[:3]),
    Row("cards", "rfcn", "dpool", "zero_offsets", RFCN_ZERO),
    Row("cards", "faster_rcnn", "dpool", "zero_offsets", FASTER_ZERO),
    Row("cards", "rfcn", "dconv3", "fast_offsets", FAST_OFFSETS),
    *(Row("cards", "class_aware_rpn", v, "few_anchors", FEW_ANCHORS) for v in ABLATION[:3]),
]
# The budget, as KEY VALUE ...: the YAMLs' own schedules, made shorter.
BUDGETS = {
    "cards": ("SOLVER.MAX_ITER", "600", "SOLVER.STEPS", "(480, 560)"),
    "dubai_seg": ("SOLVER.MAX_ITER", "600", "SOLVER.STEPS", "(480, 560)"),
}


def run_queue(root, rows=ROWS, seeds=(1, 2, 3), jobs=1, seconds_between_looks=1.0):
    """Train what has no JSON in docs/results yet, seed by seed, `jobs` at a time.

    A training that was interrupted goes on from its checkpoint; one that fails does not keep the
    others from theirs. Their OUTPUT_DIR is output/results/<row>_seed<k>.

    Args:
        root: the checkout, which holds train_net.py and configs/.

    Yields:
        (title, problem) of each training that ends; problem is "" where its JSON was written.
    """
    root = Path(root)
    waiting = [_Training(root, row, seed) for seed in seeds for row in rows]
    waiting = [training for training in waiting if not training.is_recorded()]
    running = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                training = waiting.pop(0)
                if problem := training.start():
                    yield training.title, problem
                else:
                    running.append(training)
            time.sleep(seconds_between_looks)
            for training in [t for t in running if t.has_ended()]:
                running.remove(training)
                yield training.title, training.record()
    finally:
        for training in running:
            training.stop()


class _Training:
    """One row with one seed."""

    def __init__(self, root, row, seed):
        self.root, self.row, self.seed = root, row, seed
        self.title = f"{row.name}_seed{seed}"
        self.output = OUTPUTS / self.title
        self.json = root / RESULTS / f"{self.title}.json"
        self.arguments = ["train_net.py", "--config-file", f"configs/quick/{row.yaml}.yaml"]
        self.arguments += ["SEED", str(seed), *BUDGETS[row.dataset], *row.overrides]
        self.arguments += ["SOLVER.CHECKPOINT_PERIOD", "100", "OUTPUT_DIR", str(self.output)]
        self.command = f"OMP_NUM_THREADS=1 python {shlex.join(self.arguments)}"

    def is_recorded(self):
        return self.json.is_file() and json.loads(self.json.read_text())["command"] == self.command

    def start(self) -> str:
        """Start it, or say what keeps it from starting."""
        folder = self.root / self.output
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process trains it"
        # What each process of this training took: it has several if it was interrupted.
        self.log = folder / "processes.json"
        self.processes = json.loads(self.log.read_text()) if self.log.is_file() else []
        if any(process["command"] != self.command for process in self.processes):
            return f"{self.output} holds a training of another command: remove it"
        self.processes.append({"command": self.command, "commit": commit(), "cpu_seconds": 0.0})
        with (folder / "stdout.txt").open("w") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments[:3], "--resume", *self.arguments[3:]],
                cwd=self.root,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=stdout,
                stderr=subprocess.STDOUT,
                # The lock is held as long as either process lives: of a queue that was killed,
                # a training may be left.
                pass_fds=[self.lock.fileno()],
            )
        return ""

    def has_ended(self, wait=False) -> bool:
        """Also writes down the CPU seconds so far: those of a queue that is killed count too."""
        pid, status, usage = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
        if pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)
            seconds = usage.ru_utime + usage.ru_stime
        else:
            seconds = _cpu_seconds(self.process.pid)
        self.processes[-1]["cpu_seconds"] = seconds
        _write_json(self.log, self.processes)
        if pid:
            self.lock.close()
        return bool(pid)

    def stop(self):
        self.process.terminate()
        self.has_ended(wait=True)

    def record(self) -> str:
        """Write the JSON of the training that ended, or say why there is none."""
        folder = self.root / self.output
        if self.process.returncode:
            lines = (folder / "stdout.txt").read_text().split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
            return f"exit status {self.process.returncode}: {last.strip()}"
        run = read_run(folder)
        if not run.results:
            return "it ended without an evaluation"
        _write_json(
            self.json,
            {
                "dataset": self.row.dataset,
                "network": self.row.network,
                "variant": self.row.variant,
                "control": self.row.control,
                "seed": self.seed,
                "command": self.command,
                "iterations": run.iterations,
                "cpu_seconds": round(sum(p["cpu_seconds"] for p in self.processes), 1),
                "processes": len(self.processes),
                "machine": machine(),
                "versions": versions(),
                "commit": ", ".join(dict.fromkeys(p["commit"] for p in self.processes)),
                "date": time.strftime("%Y-%m-%d"),
                "results": run.results,
                "loss": _thinned([line for line in run.history if "total_loss" in line]),
                "offsets": _offsets(run.history),
            },
        )
        return ""


def _thinned(history):
    """[[iterations done, total_loss], ...], about CURVE_POINTS of them, the last one included."""
    last = len(history) - 1
    at = np.unique(np.linspace(last, 0, CURVE_POINTS).round().astype(int)) if history else []
    return [[history[i]["iteration"] + 1, round(history[i]["total_loss"], 4)] for i in at]


def _offsets(history):
    """The last logged value of each statistic of the offsets."""
    scalars = {key: value for line in history for key, value in line.items()}
    return {key: value for key, value in scalars.items() if key.startswith("offset")}


def _cpu_seconds(pid) -> float:
    """User and system seconds of a running process; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _write_json(file, content):
    """NaN, which JSON does not know, becomes null. A reader sees the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_text(json.dumps(_finite(content), indent=1) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
