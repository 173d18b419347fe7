"""Fuzz the targets in this folder.

    python tests/fuzz/run.py                           # all, guided by coverage, 600 s together
    python tests/fuzz/run.py operators --seconds 60    # one of them
    python tests/fuzz/run.py operators --cases 100000  # random, without coverage (make sanitize)
    python tests/fuzz/run.py operators --replay build/fuzz/findings/operators/<file>

A target is a file ``<name>.py`` with ``one_input(data: bytes)``, which runs one case and raises
only if something is wrong, and ``SEEDS``, a list of bytes to start from. A signal, a hang, and more
than 1 GB for one case are findings as well; their inputs are written to build/fuzz/findings. What
reached new code stays in build/fuzz/corpus, where the next run continues.
"""

import argparse
import faulthandler
import hashlib
import importlib
import logging
import os
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "fuzz"
CASE_SECONDS = 60  # a case that takes longer hangs
CASE_MB = 1000
PROCESS_MB = 2500  # torch and Detectron2 alone take about 600
RANDOM_BYTES = 256  # at most, of a random input


def targets() -> list[str]:
    files = {path.stem for path in HERE.glob("*.py")}
    return sorted(name for name in files if name != "run" and not name.startswith(("test_", "_")))


def load(name: str):
    return importlib.import_module(f"fuzz.{name}")


def folder(kind: str, name: str) -> Path:
    path = FOLDER / kind / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with libFuzzer's exit status."""
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit(
            "run.py: atheris is not installed (it has wheels for x86-64 alone); run "
            "`pip install -c constraints.txt atheris`, or use --cases"
        )
    with atheris.instrument_imports(include=["d2_deformable"]):
        target = load(name)
    corpus = folder("corpus", name)
    for seed in target.SEEDS:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    options = [
        f"-max_len={max(4096, *map(len, target.SEEDS))}",
        f"-max_total_time={seconds}",
        "-seed=1",  # a first run, as in CI, finds the same; later ones continue from the corpus
        f"-timeout={CASE_SECONDS}",
        f"-rss_limit_mb={PROCESS_MB}",
        f"-artifact_prefix={folder('findings', name)}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.one_input)
    atheris.Fuzz()


def fuzz_all(names: list[str], seconds: int) -> None:
    """Fuzz each target in a process of its own, because libFuzzer ends the process."""
    failed = []
    for name in names:
        share = max(seconds // len(names), 1)
        print(f"run.py: {name}, {share} s", flush=True)
        command = [sys.executable, __file__, name, "--seconds", str(share), "--here"]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"run.py: failed: {', '.join(failed)}; inputs are in {FOLDER / 'findings'}")


def inputs(name: str, cases: int):
    """Yield the seeds, the corpus, and random bytes, the same in every run."""
    stored = [path.read_bytes() for path in sorted(folder("corpus", name).iterdir())]
    yield from (load(name).SEEDS + stored)[:cases]
    source = random.Random(0)
    for _ in range(cases - len(stored) - len(load(name).SEEDS)):
        yield source.randbytes(source.randint(1, RANDOM_BYTES))


def megabytes() -> int:
    """The most memory that the process had so far."""
    status = Path("/proc/self/status").read_text()  # getrusage begins with what the parent had
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10


def run_cases(name: str, cases: int) -> None:
    """Run cases one by one. The input of a case that ends the process is in the file `current`."""
    target, current = load(name), folder("findings", name) / "current"
    begin, before = time.monotonic(), megabytes()
    for count, data in enumerate(inputs(name, cases), start=1):
        current.write_bytes(data)
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        target.one_input(data)
        faulthandler.cancel_dump_traceback_later()
        after = megabytes()
        if after > before + CASE_MB:
            sys.exit(f"run.py: {name}: a case took {after - before} MB, see {current}")
        before = after
        if count % 10_000 == 0 or count == cases:
            rate = count / (time.monotonic() - begin)
            print(f"run.py: {name}: {count} cases without a finding, {rate:.0f}/s", flush=True)
    current.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(targets())}")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--cases", type=int, help="run so many random cases of each target instead")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one finding again")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.names or targets()
    if unknown := set(names) - set(targets()):
        parser.error(f"unknown {', '.join(sorted(unknown))}; targets are {', '.join(targets())}")
    if args.replay and len(names) != 1:
        parser.error("--replay takes one NAME")
    if not args.replay:
        logging.disable(logging.WARNING)  # a config has a warning for almost every input
    # Sanitizers reserve terabytes of addresses.
    limit, most = resource.getrlimit(resource.RLIMIT_AS)
    if "san.so" not in os.environ.get("LD_PRELOAD", "") and limit == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, most))
    if args.replay:
        load(names[0]).one_input(args.replay.read_bytes())
    elif args.cases:
        for name in names:
            run_cases(name, args.cases)
    elif args.here:
        fuzz(names[0], args.seconds)
    else:
        fuzz_all(names, args.seconds)


if __name__ == "__main__":
    # Not this folder: its files would hide modules of the same name. The checkout comes last, so
    # that PYTHONPATH can name another build of the package.
    sys.path[0:1] = [str(ROOT / "tests")]
    sys.path.append(str(ROOT))
    main()
