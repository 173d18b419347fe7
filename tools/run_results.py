#!/usr/bin/env python
"""Train every row of docs/RESULTS.md that has no result yet, and bring its tables up to date.

DETECTRON2_DATASETS=... python tools/run_results.py
python tools/run_results.py --jobs 2 --seeds 1 --only 'rfcn_R_18(_dconv3_dpool)?$'

It can be stopped at any time and started again: it continues where it stopped.
"""

import argparse
import re
import signal
import sys
from pathlib import Path

from d2_deformable.analysis.results import ROWS, run_queue
from d2_deformable.analysis.results_page import write_page

ROOT = Path(__file__).resolve().parents[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a core each (1)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each row (3)")
    parser.add_argument("--only", default="", help="regex found in the names of the rows to train")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = [row for row in ROWS if re.search(args.only, row.name)]
    failed = 0
    write_page(ROOT)
    for title, problem in run_queue(ROOT, rows, range(1, args.seeds + 1), args.jobs):
        print(f"{title}: {problem or 'done'}", flush=True)
        failed += bool(problem)
        write_page(ROOT)
    if failed:
        sys.exit(f"run_results: {failed} trainings failed; start again to try them again")


if __name__ == "__main__":
    main()
