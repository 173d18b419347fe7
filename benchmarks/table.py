"""Tables of results, for the terminal and as Markdown between the markers of a page.

python -m benchmarks.table docs/speed.md    # rewrites the tables of the page
"""

import json
import re
import statistics
import sys
from pathlib import Path

# <!-- results/NAME.json: words that select rows --> table <!-- end -->, file relative to the page
BLOCK = re.compile(r"(<!-- (\S+\.json)(?:: (.+?))? -->\n).*?(<!-- end -->)", flags=re.S)


def name_of(row: dict) -> str:
    return ", ".join(row[key] for key in ("case", "pass", "mode") if row[key])


def cells(rows: list[dict]) -> list[list[str]]:
    """Make the header row, followed by the cells of every row.

    Rows that compare nothing have "cells", {head: number or text}.
    """
    if "cells" in rows[0]:
        lines = [[name_of(row), *map(str, row["cells"].values())] for row in rows]
        return [["case", *rows[0]["cells"]], *lines]
    others = list(dict.fromkeys(name for row in rows for name in row["times_faster"]))
    bases = [name for name in others if name.startswith(("plain", "ours"))]
    peers = [name for name in others if name not in bases]
    remembered = ["ours", *bases[:1], *peers]
    optional = {
        "paper": lambda row: row.get("paper", ""),
        "MiB " + ", ".join(remembered): lambda row: _memory(row, remembered),
        "error": lambda row: row["error"].get("ours", "") if "error" in row else "",
        "discarded": lambda row: _discarded(row) if row["discarded"] or row["busy"] else "",
    }
    optional = {head: text for head, text in optional.items() if any(map(text, rows))}
    head = ["case", "ms", *(f"ours / {n}" for n in bases), *(f"{n} / ours" for n in peers)]
    lines = [
        [
            name_of(row),
            f"{statistics.median(row['ms']['ours']):.4g}",
            *(_spread(row["ours_to"].get(n)) for n in bases),
            *(_spread(row["times_faster"].get(n)) for n in peers),
            *(str(text(row)) for text in optional.values()),
        ]
        for row in rows
    ]
    return [[*head, *optional], *lines]


def _spread(quartiles) -> str:
    if quartiles is None:
        return ""
    low, middle, high = (f"{q:.2f}" for q in quartiles)
    return f"{middle} ({low}-{high})"


def _memory(row, names) -> str:
    known = [row["memory_mib"].get(name) for name in names]
    return ", ".join("-" if m is None else f"{m:.0f}" for m in known) if any(known) else ""


def _discarded(row) -> str:
    return f"{row['discarded']}" + (f", {row['busy']} busy kept" if row["busy"] else "")


def grouped(data: dict, only: str = "") -> list[list[dict]]:
    """Group the rows whose names contain `only` by baseline, or by the heads of their cells."""
    rows = [row for row in data["rows"] if only in name_of(row)]
    groups = {}
    for row in rows:
        key = row.get("base"), tuple(row.get("cells", ()))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def terminal(data: dict) -> str:
    lines = [f"{data['command']}: {data['machine']}, {data['threads']} threads, {data['dtype']}"]
    missing = {}  # as a set, in order
    for rows in grouped(data):
        table = cells(rows)
        widths = [max(map(len, column)) for column in zip(*table)]
        lines.append("")
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in table
        ]
        missing |= {
            f"not compared: {n}: {r}": 0 for row in rows for n, r in row.get("missing", {}).items()
        }
    lines += ["", *missing]
    return "\n".join(lines)


def markdown(data: dict, only: str = "") -> str:
    blocks = []
    for rows in grouped(data, only):
        head, *lines = cells(rows)
        table = [head, ["---"] * len(head), *lines]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in table))
    busy = [row["discarded"] for row in data["rows"] if "discarded" in row]
    blocks.append(
        f"{data['machine']}; threads: {data['threads']}; {data['dtype']}; "
        f"{data['cpu_capability']}; {data['versions']}; commit {data['commit']}; {data['date']}; "
        + (f"{sum(busy)} rounds drawn again. " if busy else "")
        + f"`{data['command']}`"
    )
    return "\n\n".join(blocks) + "\n"


def filled(page: Path) -> str:
    """Return the text of a page with its tables updated."""

    def table(match):
        data = json.loads((page.parent / match[2]).read_text())
        return match[1] + markdown(data, match[3] or "") + match[4]

    return BLOCK.sub(table, page.read_text())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(filled(Path(name)))
