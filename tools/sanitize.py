#!/usr/bin/env python
"""Compile the CPU operators with GCC's sanitizers and run random cases of their fuzz target.

python tools/sanitize.py address --cases 100000
python tools/sanitize.py thread --cases 10000

address: errors of memory and undefined behaviour (AddressSanitizer and UBSan).
thread: data races between the kernels' threads (ThreadSanitizer), with threads that it knows, see
tests/thread_sanitizer; a planted race must be found first.

Everything is written to build/sanitize; the installed operators stay unchanged.
"""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SHIM = ROOT / "tests" / "thread_sanitizer"
SANITIZERS = {"address": "address,undefined,float-cast-overflow", "thread": "thread"}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
# As without a sanitizer, more memory than there is ends in torch's error.
MEMORY = "allocator_may_return_null=1:max_allocation_size_mb=16000"
OPTIONS = {
    "ASAN_OPTIONS": f"{MEMORY}:detect_leaks=0",  # Python leaks at exit
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Torch's own libraries are not instrumented.
    "TSAN_OPTIONS": f"{MEMORY}:halt_on_error=1:ignore_noninstrumented_modules=1",
}


def build(kind: str) -> Path:
    """Build the package into build/sanitize/<kind>; return the folder to import it from."""
    folder = ROOT / "build" / "sanitize" / kind
    environment = {**os.environ, "FORCE_CUDA": "0", "SANITIZE": SANITIZERS[kind]}
    if kind == "thread":
        environment["CFLAGS"] = f"-I{SHIM}"
    folders = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    command = [sys.executable, "setup.py", "-q", "build", *folders]
    log = folder.with_suffix(".log")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"sanitize.py: compiling the operators with -fsanitize={SANITIZERS[kind]}", flush=True)
    with log.open("w") as file:
        if subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file).returncode:
            sys.exit(f"sanitize.py: the operators did not compile, see {log}")
    return folder / "lib"


def library(name: str) -> str:
    """Path of one of the compiler's libraries."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"sanitize.py: {compiler} has no {name}; install GCC with its sanitizers")
    return path


def run(kind: str, package: Path, cases: int, **more: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        **OPTIONS,
        **more,
        "PYTHONPATH": str(package),
        # The sanitizer comes first. It needs the C++ library at once, to intercept exceptions.
        "LD_PRELOAD": f"{library(LIBRARIES[kind])} {library('libstdc++.so.6')}",
        "OMP_NUM_THREADS": "1",
    }
    # Without address randomisation, which may use addresses that the thread sanitizer needs.
    command = ["setarch", platform.machine(), "-R", sys.executable, "tests/fuzz/run.py"]
    command += ["operators", "--cases", str(cases)]
    return subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=SANITIZERS)
    parser.add_argument("--cases", type=int, default=100_000)
    args = parser.parse_args()
    package = build(args.kind)
    if args.kind == "thread":
        planted = run(args.kind, package, 100, D2_PLANT_RACE="1")
        if "ThreadSanitizer: data race" not in planted.stderr:
            sys.exit(f"sanitize.py: a planted race was not found:\n{planted.stderr[-5000:]}")
        print("sanitize.py: a planted race is found", flush=True)
    result = run(args.kind, package, args.cases)
    print(result.stderr[-20_000:], file=sys.stderr)
    if result.returncode:
        sys.exit(f"sanitize.py: exit status {result.returncode} with -fsanitize={args.kind}")
    print(f"sanitize.py: no finding in {args.cases} cases, torch {torch.__version__}")


if __name__ == "__main__":
    main()
