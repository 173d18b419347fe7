"""Train one run of the study, measure it, and write OUTPUT_DIR/result.json.

    python -m benchmarks.learning.run clothing_deeplab_trunk1_branch1_dconv3

An interrupted trunk continues from its last checkpoint. An arm always starts anew, since its folder
may hold a training from another trunk. The queue adds the CPU time of the processes and moves the
result to docs/results/.
"""

import argparse
import time
from pathlib import Path

import train_net
from d2_deformable.engine.finished_run import read_run
from d2_deformable.utils.files import sha256
from d2_deformable.utils.provenance import commit, machine, versions

from . import measure
from .records import write_json
from .study import TASKS, parse

CURVE_POINTS = 25


def train_and_measure(name: str) -> dict:
    """Train and measure the run called `name`; return its record without the CPU time."""
    run, task = parse(name), TASKS[parse(name).task]
    started_from = commit()  # the checkout may change in the meantime
    start = {"start_sha256": sha256(run.start)}
    resume = [] if run.arm else ["--resume"]
    train_net.main(train_net.parse_args([*resume, *run.arguments]))
    trained = read_run(run.output)
    result = {
        "task": run.task,
        "trunk": run.seed,
        "branch": run.branch,
        "arm": run.arm,
        "command": run.command,
        "iterations": trained.iterations,
        "machine": machine(),
        "versions": versions(),
        "commit": started_from,
        "date": time.strftime("%Y-%m-%d"),
        "loss": _curve(trained.history, "total_loss", CURVE_POINTS),
        "valid": _curve(trained.history, task.curve, CURVE_POINTS),
        "offsets": {
            key: value
            for line in trained.history
            for key, value in line.items()
            if key.startswith("offsets/")
        },
    }
    if not run.arm:  # only arms are compared; settings are chosen on `valid`
        return result | start | {"sha256": sha256(run.checkpoint)}
    return result | start | measure.measure(trained.cfg, run.checkpoint, task.test, task.metrics)


def _curve(history, key: str, points: int) -> list[list[float]]:
    """Sample at most `points` logged [iteration, value] pairs, including the last one."""
    found = [[line["iteration"], round(line[key], 4)] for line in history if key in line]
    step = max(1, -(-len(found) // points))
    return found[::-1][::step][::-1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the run, see benchmarks/learning/study.py")
    name = parser.parse_args(argv).name
    write_json(Path(parse(name).output) / "result.json", train_and_measure(name))


if __name__ == "__main__":
    main()
