#!/usr/bin/env python
"""All that has to be seen on a real GPU, in one go: build, tests, sanitizer, timings, trainings.

python benchmarks/gpu.py OUT                    # everything
python benchmarks/gpu.py OUT build tests        # these steps; results join those of earlier calls

Writes OUT/gpu.json (machine, versions, commit, one entry per step; the file to keep under
benchmarks/results/<machine>-<date>.json) after every step, and OUT/<step>.log. A step that fails is
recorded, and the next one is run. Needs an environment as `make setup` leaves it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from d2_deformable.analysis.origin import commit, machine, versions

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "warped_shapes_faster_rcnn_R_18",
    "warped_shapes_faster_rcnn_R_18_dconv3_dpool",
    "warped_shapes_rfcn_R_18",
    "warped_shapes_rfcn_R_18_dconv3_dpool",
]
# One process of many small kernels; whole networks take hours under the sanitizer.
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
SANITIZED = ["tests/ops/test_types.py", "-k", "cuda and not stream"]


class Run:
    """Runs commands of one step, output to its log."""

    def __init__(self, out: Path, step: str):
        self.log = out / f"{step}.log"
        self.log.write_text("")

    def __call__(self, *command, **env) -> str:
        """The command's output.

        Raises:
            RuntimeError: it failed; the message holds its last lines.
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
            )
        output = self.log.read_bytes()[start:].decode(errors="replace")
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: ...{output[-600:]}")
        return output


def build(run, out) -> dict:
    architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    run(*command, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=architecture)
    return {"architecture": architecture}


def tests(run, out) -> dict:
    output = run(*PYTEST, "tests")
    return {"summary": output.strip().splitlines()[-1]}


def sanitize(run, out) -> dict:
    """Both tools, whatever the first one finds.

    Raises:
        RuntimeError: one of them found something.
    """
    found, failures = {}, []
    for tool in ("memcheck", "racecheck"):
        sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        try:
            output = run(*sanitizer, *PYTEST, *SANITIZED)
        except RuntimeError as error:
            output = str(error)
            failures.append(f"{tool}: {error}")
        found[tool] = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY.*)", output)
    if failures:
        raise RuntimeError("\n".join(failures))
    return found


def ops(run, out) -> dict:
    results = {}
    for dtype in ("float32", "float16"):
        file = out / f"ops-{dtype}.json"
        command = (sys.executable, "benchmarks/ops.py", "--device", "cuda", "--dtype", dtype)
        run(*command, "--images", "2", "--rounds", "21", "--json", file)
        results[dtype] = json.loads(file.read_text())
    return results


def train(run, out) -> dict:
    results = {}
    for name in QUICK:
        start = time.monotonic()
        folder = out / name
        yaml = ROOT / "configs" / "quick" / f"{name}.yaml"
        options = ("MODEL.DEVICE", "cuda", "OUTPUT_DIR", folder)
        run(sys.executable, "train_net.py", "--config-file", yaml, *options)
        lines = (folder / "metrics.json").read_text().splitlines()
        metrics = json.loads(lines[-1])
        results[name] = {
            "seconds": round(time.monotonic() - start),
            **{key: value for key, value in metrics.items() if "/AP" in key},
        }
    return results


STEPS = {step.__name__: step for step in (build, tests, sanitize, ops, train)}


def environment() -> dict:
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for results and logs")
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(STEPS)} (all)")
    args = parser.parse_args(argv)
    unknown = set(args.steps) - set(STEPS)
    if unknown:
        parser.error(
            f"no step is called {', '.join(sorted(unknown))}: choose of {', '.join(STEPS)}"
        )
    if not torch.cuda.is_available():
        sys.exit("gpu.py: this machine shows no GPU to torch; `make build-cuda` needs none")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "gpu.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results.update(environment())
    failed = 0
    for step in args.steps or STEPS:
        start = time.monotonic()
        try:
            results[step] = STEPS[step](Run(args.out, step), args.out)
        except (RuntimeError, OSError, ValueError, LookupError) as error:
            results[step] = {"failed": f"{type(error).__name__}: {error}"}
            failed += 1
        results[step]["wall_seconds"] = round(time.monotonic() - start)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(step, json.dumps(results[step])[:400], flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
