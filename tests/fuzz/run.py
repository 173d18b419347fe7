"""Fuzz the targets in this folder, guided by coverage.

    python tests/fuzz/run.py                                  # all targets, 600 s together
    python tests/fuzz/run.py operators --seconds 60           # one of them
    python tests/fuzz/run.py operators --replay build/fuzz/findings/operators/crash-...

A target is a file ``<name>.py`` with ``one_input(data: bytes)``, which runs one case and raises only
if something is wrong, and ``SEEDS``, a list of bytes to start from. Findings are written to
build/fuzz/findings. What reached new code stays in build/fuzz/corpus, where the next run continues.
"""

import argparse
import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "fuzz"
CASE_SECONDS = 20  # a case that takes longer hangs
MEMORY_MB = 2500  # of the process; torch and Detectron2 alone take about 600


def targets() -> list[str]:
    files = {path.stem for path in HERE.glob("*.py")}
    return sorted(name for name in files if name != "run" and not name.startswith(("test_", "_")))


def load(name: str):
    return importlib.import_module(f"fuzz.{name}")


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with libFuzzer's exit status."""
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit(
            "run.py: atheris is missing; install it with pip install -c constraints.txt atheris"
        )
    corpus, findings = FOLDER / "corpus" / name, FOLDER / "findings" / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["d2_deformable"]):
        target = load(name)
    for seed in target.SEEDS:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={CASE_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
    ]
    options = [*limits, f"-artifact_prefix={findings}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.one_input)
    atheris.Fuzz()


def fuzz_all(names: list[str], seconds: int) -> int:
    """Fuzz each target in a process of its own; return how many have findings."""
    failed = []
    for name in names:
        share = max(seconds // len(names), 1)
        print(f"run.py: {name}, {share} s", flush=True)
        command = [sys.executable, __file__, name, "--seconds", str(share), "--here"]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    if failed:
        print(
            f"run.py: findings in {', '.join(failed)}: see {FOLDER / 'findings'}", file=sys.stderr
        )
    return len(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(targets())}")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one finding again")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.names or targets()
    if unknown := set(names) - set(targets()):
        parser.error(f"unknown {', '.join(sorted(unknown))}; targets are {', '.join(targets())}")
    if (args.replay or args.here) and len(names) != 1:
        parser.error("--replay takes one NAME")
    if args.replay:
        load(names[0]).one_input(args.replay.read_bytes())
    elif args.here:
        fuzz(names[0], args.seconds)
    else:
        sys.exit(min(fuzz_all(names, args.seconds), 1))


if __name__ == "__main__":
    # As in pytest. Not this folder: its files would hide modules of the same name.
    sys.path[0:1] = [str(ROOT), str(ROOT / "tests")]
    main()
