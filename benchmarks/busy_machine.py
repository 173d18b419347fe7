"""A short training alone and beside one busy process, by threads and wait policy of OpenMP.

    python -m benchmarks.busy_machine --json benchmarks/results/busy-machine.json

A thread that waits for the others of its team spins before it sleeps. If another process has taken
the core of one thread, the others spin for nothing. The policies are libgomp's: "spin" is what it
does if nothing is set, about 3 ms of spinning; "active" spins for minutes; "passive" sleeps at
once; "brief" spins for some microseconds. Run it on an otherwise quiet machine. With --json,
finished runs are kept and the same command continues. Training and busy process share --cores
cores.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .results import Results, settings

CONFIG = "configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
THREADS = (1, 2)
POLICIES = {
    "spin": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default, given, so that ours is not used
    "active": {"OMP_WAIT_POLICY": "active"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "brief": {"GOMP_SPINCOUNT": "1000"},  # what our commands set
}
ALONE, BESIDE = "alone", "beside one busy process"


def training(folder: Path, steps: int) -> list[str]:
    """The command line of a training whose OUTPUT_DIR is `folder`."""
    keys = {
        "OUTPUT_DIR": folder,
        "MODEL.DEVICE": "cpu",
        "SOLVER.MAX_ITER": steps,
        "SOLVER.WARMUP_ITERS": 1,
        "TEST.EVAL_PERIOD": 0,
        "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": 64,
        "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES": 2,
    }
    overrides = [str(part) for pair in keys.items() for part in pair]
    return [sys.executable, "-m", "d2_deformable", "train", "--config-file", CONFIG, *overrides]


def seconds_per_step(data: Path, steps: int, threads: int, policy: str) -> float:
    """Train, and return the median time of the last (at most 20) steps.

    Args:
        data: folder of the drawn images, which all runs share.

    Raises:
        subprocess.CalledProcessError: the training failed.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": str(threads), **POLICIES[policy]}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(training(Path(folder), steps), check=True, env=env, capture_output=True)
        lines = (Path(folder) / "metrics.json").read_text().splitlines()
    return [line["time"] for line in map(json.loads, lines) if "time" in line][-1]


@contextmanager
def busy_process():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def table(rows: list[dict]) -> str:
    """Format the medians, and their ratios to the same training alone and to the first row."""
    seconds = {(row["case"], row["pass"]): statistics.median(row["seconds"]) for row in rows}
    lines = [["training", "s alone", "s beside", "beside/alone", "alone/first", "beside/first"]]
    first = next(iter(seconds.values()))
    for case in dict.fromkeys(row["case"] for row in rows):
        alone, beside = seconds[case, ALONE], seconds[case, BESIDE]
        ratios = (beside / alone, alone / first, beside / first)
        lines.append([case, f"{alone:.3f}", f"{beside:.3f}", *(f"{r:.2f}" for r in ratios)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.busy_machine", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=40, help="of each training, at least 5 (40)")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind (3)")
    parser.add_argument("--cores", type=int, default=2, help="for all processes together (2)")
    parser.add_argument("--json", type=Path, help="save rows here; rows of the file are continued")
    args = parser.parse_args(argv)
    if args.steps < 5 or args.rounds < 1 or args.cores < 1:
        parser.error("--steps is at least 5, --rounds and --cores are at least 1")
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    about = settings(parser.prog, argv, f"{len(cores)} core{'s' * (len(cores) > 1)}")
    about |= {"threads": list(THREADS), "steps": args.steps}
    try:
        results = Results(args.json, about)
    except ValueError as error:
        parser.error(str(error))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # inherited by the processes
    try:
        with tempfile.TemporaryDirectory() as data:
            measure(results, Path(data), args.steps, args.rounds)
    finally:
        os.sched_setaffinity(0, allowed)
    print(table(results.data["rows"]))


def measure(results: Results, data: Path, steps: int, rounds: int) -> None:
    """Train in rounds: every kind once, then every kind again."""
    kinds = list(itertools.product(THREADS, POLICIES, (ALONE, BESIDE)))
    for done in range(rounds):
        for threads, policy, company in kinds:
            key = (f"{threads} thread{'s' * (threads > 1)}, {policy}", company, "")
            row = results.row(key) or {"seconds": []}
            if len(row["seconds"]) > done:
                continue
            if company == BESIDE:
                with busy_process():
                    seconds = seconds_per_step(data, steps, threads, policy)
            else:
                seconds = seconds_per_step(data, steps, threads, policy)
            results.put(key, {"seconds": [*row["seconds"], round(seconds, 4)]})
            print(f"round {done + 1}: {key[0]}, {company}: {seconds:.3f} s per step", flush=True)


if __name__ == "__main__":
    main()
