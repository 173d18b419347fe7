"""What `benchmarks.ops` and `benchmarks.models` have in common: options, rows, tables."""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .clock import clock_of
from .plot import draw
from .protocol import Guard
from .results import Results, settings
from .table import terminal

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Bench:
    """What a row is measured with."""

    clock: object
    guard: Guard | None
    dtype: torch.dtype
    rounds: int


@dataclass(frozen=True)
class Row:
    """A row to measure: its key, and the function of a Bench that gives what it holds."""

    case: str
    of_pass: str
    mode: str
    measure: Callable

    def key(self) -> tuple[str, str, str]:
        return self.case, self.of_pass, self.mode


def parser(name: str, doc: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of maps (float32)")
    parser.add_argument("--threads", type=int, help="CPU threads (as PyTorch chooses)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds of a row ({rounds})")
    parser.add_argument("--only", default="", help="rows whose case, pass and mode contain this")
    parser.add_argument("--seconds", type=float, help="begin no row after this many seconds")
    parser.add_argument("--json", type=Path, help="keep rows here; those that stand there are done")
    parser.add_argument("--plot", type=Path, help="draw the rows into this picture")
    parser.add_argument("--smoke", action="store_true", help="few numbers: only whether it works")
    return parser


def run(parser, rows: Callable[..., Iterable[Row]], argv=None) -> int:
    """Measure the rows that `rows(args)` gives and that are not there yet.

    Returns:
        2 if --seconds left some to the next call, else 0.
    """
    start = time.monotonic()
    gc.freeze()  # what imported modules hold: collections between timed calls are short then
    args = parser.parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else [str(part) for part in argv]
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.smoke:
        args.rounds = 2
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    try:
        results = Results(args.json, settings(parser.prog, args))
    except ValueError as error:
        parser.error(str(error))
    clock = clock_of(args.device)
    guard = None if args.smoke else Guard(clock)
    bench = Bench(clock, guard, getattr(torch, args.dtype), args.rounds)
    wanted = [row for row in rows(args) if args.only in ", ".join(row.key())]
    if not wanted:
        parser.error(f"--only {args.only!r} leaves no row")
    wanted = [row for row in wanted if not results.has(*row.key())]
    for index, row in enumerate(wanted):
        if args.seconds and time.monotonic() - start > args.seconds:
            print(f"{len(wanted) - index} rows are left: the same command goes on with them")
            return 2
        torch.manual_seed(0)
        results.add(dict(zip(("case", "pass", "mode"), row.key())) | row.measure(bench))
        print(f"[{index + 1}/{len(wanted)}] {', '.join(filter(None, row.key()))}", flush=True)
    print(terminal(results.data))
    if args.plot:
        draw(results.data).savefig(args.plot)
    return 0
