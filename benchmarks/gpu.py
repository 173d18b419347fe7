#!/usr/bin/env python
"""All checks that need a real GPU: build, tests, sanitizer, timings, trainings.

python benchmarks/gpu.py OUT                              # everything
python benchmarks/gpu.py OUT build tests sanitize         # these steps
python benchmarks/gpu.py OUT train --minutes 9            # time limit of each command of a step

Writes OUT/<step>.log and, after every command, OUT/gpu.json with machine, versions, commit and one
entry per step; keep this file as benchmarks/results/<machine>-<date>.json. Timings are in
OUT/ops-<dtype>.json and OUT/models-<dtype>.json; keep them as well. A command that fails is
recorded, and the next one runs. Results are added to those of earlier calls, and timings continue
where an earlier call of the same commit stopped. Needs the environment of `make setup`, and
compute-sanitizer (of a CUDA toolkit, or pip's nvidia-cuda-sanitizer-api) on the PATH.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from d2_deformable.utils.provenance import commit, machine, versions

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider")
# Operator tests run many small kernels. Those of streams, opcheck and torch.compile are left out.
SANITIZED = ("tests/ops", "-k", "cuda and not stream and not opcheck and not compiles")
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no")
QUICK = [
    "warped_shapes_faster_rcnn_R_18",
    "warped_shapes_faster_rcnn_R_18_dconv3_dpool",
    "warped_shapes_rfcn_R_18",
    "warped_shapes_rfcn_R_18_dconv3_dpool",
]


class Run:
    """Runs the commands of one step and writes their output to its log."""

    def __init__(self, out: Path, step: str, seconds: float):
        self.log = out / f"{step}.log"
        self.seconds = seconds

    def __call__(self, *command, **env) -> str:
        """Run a command and return its output.

        Raises:
            RuntimeError: the command failed; the message holds its last lines.
            subprocess.TimeoutExpired: the command took too long.
        """
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            start = self.log.stat().st_size
            done = subprocess.run(
                [str(part) for part in command],
                cwd=ROOT,
                env={**os.environ, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=self.seconds,
            )
        output = self.log.read_bytes()[start:].decode(errors="replace")
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: ...{output[-600:]}")
        return output


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


# Each step yields (name, function that runs one command and returns the result to record). All have
# the same signature, whether or not they write files to `out`.


def build(run, out):
    """Yield ("library", function that compiles the CUDA library and returns a summary)."""

    def compile_library():
        architecture = "{}.{}".format(*torch.cuda.get_device_capability())
        summary = last_line(run(PYTHON, "tools/build_cuda.py", architecture))
        built = ROOT / "build" / "cuda" / "lib" / "d2_deformable" / "_C.so"
        shutil.copy(built, ROOT / "d2_deformable" / "_C.so")
        return summary

    yield "library", compile_library


def tests(run, out):
    """Yield ("all", function that runs all tests and returns pytest's last line)."""
    yield "all", lambda: last_line(run(*PYTEST, "tests"))


def sanitize(run, out):
    """Yield (tool, function that runs the operator tests under it and returns its summaries)."""

    def checked(tool, **env):
        # Only our kernels: those of cuBLAS are not ours to fix.
        ours = ("--tool", tool, "--kernel-name", "kns=d2_deformable")
        output = run(*SANITIZER, *ours, *PYTEST, *SANITIZED, **env)
        return [line.strip("= ") for line in output.splitlines() if " SUMMARY: " in line]

    # PyTorch's allocator would hide accesses beyond a tensor within its large blocks.
    yield "memcheck", lambda: checked("memcheck", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    yield "initcheck", lambda: checked("initcheck", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    # Races in shared memory, which holds the planes of RoI pooling.
    yield "racecheck", lambda: checked("racecheck")


def ops(run, out):
    """Yield (dtype, function that times the operators and returns the file and its rows)."""
    for dtype in ("float32", "float16", "bfloat16"):
        yield dtype, lambda dtype=dtype: timed(run, out, "ops", dtype, "--rounds", "51")


def models(run, out):
    """Yield (dtype, function that times the networks and returns the file and its rows)."""
    for dtype in ("float32", "float16"):
        yield dtype, lambda dtype=dtype: timed(run, out, "models", dtype, "--rounds", "21")


def timed(run, out, benchmark, dtype, *options):
    """Run a benchmark; return the name of its file and the number of rows in it."""
    file = out / f"{benchmark}-{dtype}.json"
    command = (PYTHON, "-m", f"benchmarks.{benchmark}", "--device", "cuda", "--dtype", dtype)
    run(*command, *options, "--json", file)
    return {"file": file.name, "rows": len(json.loads(file.read_text())["rows"])}


def train(run, out):
    """Yield (config name, function that trains it and returns seconds and AP)."""

    def trained(name):
        start = time.monotonic()
        folder = out / name
        yaml = ROOT / "configs" / "quick" / f"{name}.yaml"
        options = ("MODEL.DEVICE", "cuda", "OUTPUT_DIR", folder)
        output = run(PYTHON, "train_net.py", "--config-file", yaml, *options)
        if "Running on the CPU" in output:
            raise RuntimeError("train_net.py ran on the CPU")
        metrics = json.loads(last_line((folder / "metrics.json").read_text()))
        for checkpoint in folder.glob("*.pth"):
            checkpoint.unlink()
        seconds = round(time.monotonic() - start)
        return {"seconds": seconds} | {k: v for k, v in metrics.items() if "/AP" in k}

    for name in QUICK:
        yield name, lambda name=name: trained(name)


STEPS = {step.__name__: step for step in (build, tests, sanitize, ops, models, train)}


def needs_kernels(run) -> None:
    """Check that the installed library holds CUDA kernels.

    Without them every step would pass, by running on the CPU or by skipping.

    Raises:
        RuntimeError: it holds none.
    """
    run(PYTHON, "-c", "from d2_deformable.ops import has_cuda; assert has_cuda(), 'no kernels'")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for results and logs")
    parser.add_argument("steps", nargs="*", metavar="step", help=f"any of {', '.join(STEPS)} (all)")
    parser.add_argument("--minutes", type=float, default=60, help="limit of each command (60)")
    args = parser.parse_args(argv)
    unknown = set(args.steps) - set(STEPS)
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    if not torch.cuda.is_available():
        sys.exit("gpu.py: torch finds no GPU on this machine; `make build-cuda` needs none")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "gpu.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results |= {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    failed = False
    for step in args.steps or STEPS:
        run = Run(args.out, step, 60 * args.minutes)
        for name, command in STEPS[step](run, args.out):
            start = time.monotonic()
            try:
                if step != "build":
                    needs_kernels(run)
                entry = {"result": command()}
            except Exception as error:  # every failure is recorded
                entry = {"failed": f"{type(error).__name__}: {error}"}
                failed = True
            entry["wall_seconds"] = round(time.monotonic() - start)
            results.setdefault(step, {})[name] = entry
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(step, name, json.dumps(entry)[:400], flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
