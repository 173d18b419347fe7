"""Code shared by `benchmarks.ops` and `benchmarks.models`: options, rows, tables."""

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .clock import clock_of
from .plot import draw
from .protocol import Guard, Rounds, interleave
from .results import Results, settings
from .table import terminal

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Bench:
    """The tools and settings that a row is measured with."""

    clock: object
    guard: Guard | None
    dtype: torch.dtype
    rounds: int
    deadline: float
    earlier: dict | None = None  # the row as saved by an earlier call

    def interleave(self, runs: dict, draw: Callable) -> Rounds:
        earlier = None
        if self.earlier and list(self.earlier["ms"]) == list(runs):
            earlier = Rounds(*(self.earlier[key] for key in ("ms", "discarded", "busy")))
        return interleave(runs, draw, self.rounds, self.guard, earlier, self.deadline)


@dataclass(frozen=True)
class Row:
    """A row to measure: its key, and a function from a Bench to the content of the row."""

    case: str
    pass_name: str
    mode: str
    measure: Callable

    def key(self) -> tuple[str, str, str]:
        """The key that identifies the row in a file."""
        return self.case, self.pass_name, self.mode


def parser(name: str, doc: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of feature maps (float32)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds per row ({rounds})")
    parser.add_argument("--only", default="", help="rows whose case, pass and mode contain this")
    parser.add_argument(
        "--seconds", type=float, help="stop after about this time; rerun to continue"
    )
    parser.add_argument("--json", type=Path, help="save rows here; rows of the file are continued")
    parser.add_argument("--plot", type=Path, help="draw the rows to this picture")
    parser.add_argument(
        "--smoke", action="store_true", help="small tensors, to see whether it works"
    )
    return parser


def run(parser, rows: Callable[..., Iterable[Row]], argv=None) -> int:
    """Measure the rows that `rows(args)` yields, except for rounds that are in the file.

    Returns:
        2 if --seconds left rounds for the next call, else 0.
    """
    start = time.monotonic()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.smoke:
        args.rounds = 2
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        results = Results(args.json, settings(parser.prog, argv, args.device, args.dtype))
    except ValueError as error:
        parser.error(str(error))
    selected = [row for row in rows(args) if args.only in ", ".join(row.key())]
    if not selected:
        parser.error(f"--only {args.only!r} matches no row")
    clock = clock_of(args.device)
    guard = None if args.smoke else Guard(clock)
    deadline = start + args.seconds if args.seconds else math.inf
    bench = Bench(clock, guard, getattr(torch, args.dtype), args.rounds, deadline)
    gc.freeze()  # exempt imported modules, so that collections between timed calls are short
    for index, row in enumerate(selected, start=1):
        earlier = results.row(row.key())
        if rounds_of(earlier) < args.rounds and time.monotonic() < deadline:
            torch.manual_seed(rounds_of(earlier))
            measured = row.measure(replace(bench, earlier=earlier))
            results.put(row.key(), measured)
            name = ", ".join(filter(None, row.key()))
            print(f"[{index}/{len(selected)}] {name}: {rounds_of(measured)} rounds", flush=True)
    print(terminal(results.data))
    if args.plot:
        draw(results.data).savefig(args.plot)
    left = sum(rounds_of(results.row(row.key())) < args.rounds for row in selected)
    if left:
        print(f"{left} rows lack rounds: run the same command again to continue")
    return 2 if left else 0


def rounds_of(row: dict | None) -> int:
    return len(row["ms"]["ours"]) if row else 0
