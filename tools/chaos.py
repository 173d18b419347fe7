"""Kill a training at random moments, resume it, and compare its end with one that was never killed.

Each trial starts the same small training, kills one of its processes with SIGKILL (the launcher, a
process of the training or of a data loader), at a random time or while a checkpoint is written,
starts it again with --resume, and so on. In the end weights, momentum and schedule must be equal
bit for bit, and so must metrics.json, but for the times.

    python tools/chaos.py --trials 50
    python tools/chaos.py --trials 10 --processes 2
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
OPTIONS = shlex.split("""
MODEL.DEVICE cpu MODEL.RESNETS.WIDTH_PER_GROUP 8 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 16
SOLVER.STEPS (12,) SOLVER.CHECKPOINT_PERIOD 2 SOLVER.CHECKPOINT_MAX_TO_KEEP 2
TEST.EVAL_PERIOD 5 TEST.BEST_METRIC bbox/AP INPUT.MIN_SIZE_TRAIN (48,64,80) INPUT.MIN_SIZE_TEST 48
DATALOADER.NUM_WORKERS 1 DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES 8
DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES 2 SEED 1
""")
TARGETS = ("launcher", "training", "data loader")
MAX_STARTS = 30
LONGEST_END = 15  # seconds; a data loader looks every 5 s whether its training still lives
# The config names the folder; scalars that are written are not kept.
OTHERS = (".trainer.config", ".trainer.scalars")
TIMES = ("time", "data_time", "eta_seconds", "images_per_second", "data_share")


def command(folder: Path, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [*(launcher if processes > 1 else []), str(ROOT / "train_net.py")]
    options = ["--resume", "--config-file", str(CONFIG), *OPTIONS, "OUTPUT_DIR", str(folder)]
    return [sys.executable, *program, *options]


def start(folder: Path, processes: int) -> subprocess.Popen:
    with open(folder / "output.txt", "a") as log:
        return subprocess.Popen(command(folder, processes), stdout=log, stderr=log)


def descendants(pid: int) -> list[tuple[int, int]]:
    """(depth, pid) of a process and all that it has started."""
    found = [(0, pid)]
    for depth, parent in found:  # grows
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [(depth + 1, int(child)) for child in task.read_text().split()]
            except OSError:  # it has ended
                continue
    return found


def kill_one(run: subprocess.Popen, processes: int, chooser: random.Random) -> str:
    """Kill a random process of a random kind; the name of the kind, "" if there is none."""
    of_kind = {}
    for depth, pid in descendants(run.pid):
        kind = TARGETS[min(depth + (processes == 1), 2)]
        of_kind.setdefault(kind, []).append(pid)
    kind = chooser.choice(sorted(of_kind))
    try:
        os.kill(chooser.choice(of_kind[kind]), signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return kind


def wait_for_moment(run, folder: Path, seconds: float, chooser: random.Random) -> str:
    """Wait for a random time or, half of the times, until a checkpoint is being written."""
    if chooser.random() < 0.5:
        end = time.monotonic() + chooser.uniform(0, seconds)
        while run.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return "at a random time"
    left = chooser.randint(1, 12)  # each checkpoint has three files
    seen = set(folder.glob(".*.part*"))
    while run.poll() is None:
        if new := set(folder.glob(".*.part*")) - seen:
            seen |= new
            left -= len(new)
            if left <= 0:
                break
        time.sleep(0.0005)
    return "while writing a checkpoint"


def processes_of(folder: Path) -> list[int]:
    """Processes, including forked ones, whose command names the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if os.fsencode(folder) in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def wait_for_all(run: subprocess.Popen, folder: Path) -> None:
    """Wait until no process of a training is left.

    Raises:
        RuntimeError: one outlives the process that has started it.
    """
    with suppress(subprocess.TimeoutExpired):
        run.wait(20)  # a training whose data loader was killed ends by itself
    run.kill()
    run.wait()
    end = time.monotonic() + LONGEST_END
    while left := processes_of(folder):
        if time.monotonic() > end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"the processes {left} have not ended, see {folder}/output.txt")
        time.sleep(0.1)


def leaves(value, name="") -> dict:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in leaves(item, f"{name}.{key}").items()}
    return {name: value}


def result(folder: Path) -> tuple[dict, list[dict]]:
    """All that model_final.pth holds but its config and scalars, and the lines of metrics.json."""
    content = leaves(torch.load(folder / "model_final.pth", weights_only=True))
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return (
        {k: v for k, v in content.items() if not k.startswith(OTHERS)},
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
    )


def differences(ours: tuple[dict, list[dict]], theirs: tuple[dict, list[dict]]) -> list[str]:
    found = sorted(ours[0].keys() ^ theirs[0].keys())
    for name, value in ours[0].items():
        other = theirs[0].get(name)
        tensors = torch.is_tensor(value) and torch.is_tensor(other)
        if not (torch.equal(value, other) if tensors else value == other):
            found.append(name)
    if repr(ours[1]) != repr(theirs[1]):  # NaN is not equal to NaN
        found.append("metrics.json")
    return found


def trial(folder: Path, processes: int, seconds: float, chooser: random.Random) -> Counter:
    """Train to the end with up to four kills.

    Raises:
        RuntimeError: the training did not end in MAX_STARTS starts, or a process has outlived it.
    """
    kills, planned = Counter(), chooser.randint(1, 4)
    for _ in range(MAX_STARTS):
        run = start(folder, processes)
        if kills.total() < planned:
            moment = wait_for_moment(run, folder, seconds, chooser)
            if run.poll() is None and (kind := kill_one(run, processes, chooser)):
                kills[f"{kind}, {moment}"] += 1
        else:
            run.wait()
        wait_for_all(run, folder)
        if run.returncode == 0:
            return kills
    raise RuntimeError(f"the training did not end, see {folder}/output.txt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1, help="of the training, by torchrun")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the targets")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    os.environ["DETECTRON2_DATASETS"] = str(root / "datasets")
    chooser, failed, kills = random.Random(args.seed), 0, Counter()

    (whole := root / "whole").mkdir()
    began = time.monotonic()
    if start(whole, args.processes).wait():
        sys.exit(f"the training fails without being killed, see {whole}/output.txt")
    seconds, expected = time.monotonic() - began, result(whole)
    print(f"one training takes {seconds:.0f} s", flush=True)
    for i in range(args.trials):
        (folder := root / f"trial{i}").mkdir()
        killed = trial(folder, args.processes, seconds, chooser)
        kills += killed
        found = differences(result(folder), expected)
        print(f"trial {i}: {dict(killed)}: {found[:5] or 'equal'}", flush=True)
        if found:
            failed += 1
        else:
            shutil.rmtree(folder)
    for kind, count in sorted(kills.items()):
        print(f"{count:4} kills of a process of the kind {kind}")
    if failed:
        sys.exit(f"{failed} of {args.trials} trials differ, see {root}")
    shutil.rmtree(root)
    print(f"all {args.trials} trials end as the training that was never killed")


if __name__ == "__main__":
    main()
