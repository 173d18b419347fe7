"""The JSON file of a benchmark: its settings, and one row per case, pass and mode."""

import json
import shlex
import sys
import time
from pathlib import Path

import torch

from d2_deformable.utils.provenance import commit, machine, versions

KEY = ("case", "pass", "mode")
# Settings shared by all rows of a file.
SETTINGS = ("machine", "device", "threads", "dtype", "versions", "commit", "cpu_capability")


def settings(prog: str, argv, device="cpu", dtype: str = "float32") -> dict:
    """What a file says about its measurements.

    Args:
        prog, argv: the command and its arguments; None: those of this process.
    """
    argv = sys.argv[1:] if argv is None else map(str, argv)
    return {
        "machine": machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "versions": versions(),
        "commit": commit(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"{prog} {shlex.join(argv)}".strip(),
    }


class Results:
    """Rows that are written to a file as they are measured; rows in the file are continued.

    Raises:
        ValueError: the file was measured with other settings.
    """

    def __init__(self, file: Path | None, settings: dict):
        self.file = file
        self.data = settings | {"rows": []}
        if file is not None and file.exists():
            before = json.loads(file.read_text())
            for key in SETTINGS:
                if before[key] != settings[key]:
                    raise ValueError(
                        f"{file} was measured with {key} {before[key]}, now it is {settings[key]}: "
                        "give another file"
                    )
            self.data["rows"] = before["rows"]

    def row(self, key: tuple) -> dict | None:
        found = [row for row in self.data["rows"] if tuple(row[k] for k in KEY) == key]
        return found[0] if found else None

    def put(self, key: tuple, measured: dict) -> None:
        """Add a row, or replace the one with this key."""
        row = dict(zip(KEY, key, strict=True)) | measured
        before, rows = self.row(key), self.data["rows"]
        if before is None:
            rows.append(row)
        else:
            rows[rows.index(before)] = row
        self.write()

    def write(self) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(dumps(self.data))


def dumps(data: dict) -> str:
    """Format JSON with one line per row."""
    head = json.dumps({k: v for k, v in data.items() if k != "rows"}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in data["rows"])
    return f'{head[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'
