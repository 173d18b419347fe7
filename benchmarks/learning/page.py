"""Write the tables and the forest plot of docs/RESULTS.md from the records.

    python -m benchmarks.learning.page

Each table is in a block between two comments; text around the blocks is kept.
"""

import re
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from d2_deformable.analysis.draw import DPI, INK, class_color

from .contrasts import Contrast, contrast, holm
from .records import read
from .study import PLAN, TASKS

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("docs/RESULTS.md")
FOREST = Path("docs/images/contrasts.png")
SIZES = ("small", "medium", "large", "background", "all")
# The pairs of arms named in docs/results/protocol.md, by task, and the twin task if there is one.
# Contrasts of a dictionary are corrected together: those of one network and kind of data.
CONTRASTS = [
    {
        "clothing_deeplab": [
            ("dconv3", "plain"),
            ("dconv3_rate01", "plain"),
            ("dilation4", "plain"),
            ("dilation6", "plain"),
            ("dconv3", "dilation4"),
            ("dconv3", "dilation6"),
        ]
    },
    {
        "clothing_deeplab_straight": [
            ("dconv3", "plain"),
            ("dconv3", "dilation4"),
            ("dilation4", "plain"),
        ]
    },
    {
        "shapes_deeplab_wide": [
            ("dconv3", "plain", "shapes_deeplab_rigid"),
            ("dconv3", "plain"),
            ("dconv3", "dilation4"),
        ],
        "shapes_deeplab_rigid": [("dconv3", "plain")],
    },
]
TITLES = {
    "clothing_deeplab": "DeepLab, clothing, from a trunk",
    "clothing_deeplab_straight": "DeepLab, clothing, from the backbone",
    "shapes_deeplab_wide": "DeepLab, shapes of many sizes",
    "shapes_deeplab_rigid": "DeepLab, rigid shapes",
}
ARMS = {
    "plain": "plain (dilation 2)",
    "dilation4": "dilation 4",
    "dilation6": "dilation 6",
    "dconv3": "3 deformable layers",
    "dconv3_rate01": "3 deformable layers, offsets at 0.1 of the rate",
    "dconv3_rate0": "3 deformable layers, offsets held at zero",
    "dconv6": "6 deformable layers",
}


def write_page(root) -> None:
    """Update the blocks of docs/RESULTS.md and the forest plot.

    Raises:
        ValueError: the page lacks the comments of a block.
    """
    root = Path(root)
    records = read_records(root)
    text = (root / PAGE).read_text()
    contrasts = all_contrasts(records)
    blocks = {"contrasts": contrast_table(contrasts)}
    for task in TASKS:
        blocks[f"{task} arms"] = arm_table(records, task)
        blocks[f"{task} dilation"] = dilation_table(records, task)
    for name, content in blocks.items():
        text = _with_block(text, name, content or "Not measured yet.")
    if any(c.interval for c in contrasts):
        forest_plot([c for c in contrasts if c.interval]).savefig(root / FOREST)
    (root / PAGE).write_text(text)


def read_records(root) -> list[dict]:
    """Read the records of the study's arms, if they were made by the current commands."""
    runs = dict.fromkeys(run for repetition in PLAN for run in repetition.branches)
    return [record for run in runs if (record := read(root, run))]


def all_contrasts(records) -> list[Contrast]:
    found = []
    for family in CONTRASTS:
        contrasts = [
            contrast(records, task, metric, *arms)
            for task, pairs in family.items()
            for metric in TASKS[task].metrics
            for arms in pairs
        ]
        found += holm([c for c in contrasts if c])
    return found


def contrast_table(contrasts) -> str:
    lines = [
        [
            _data_of(c),
            f"{ARMS[c.a]} over {ARMS[c.b]}",
            f"{c.mean:+.1f} {c.metric}",
            _interval(c.interval),
            _interval(c.bootstrap),
            "" if c.p is None else f"{c.p:.3f}",
            len(c.differences),
            c.verdict,
        ]
        for c in contrasts
    ]
    headers = ["network, data", "contrast", "difference", "95 % (t)", "95 % (bootstrap)"]
    return _table(lines, [*headers, "p (Holm)", "repetitions", "reading"])


def _data_of(c: Contrast) -> str:
    return f"{TITLES[c.task]}, minus the gain on {TITLES[c.twin]}" if c.twin else TITLES[c.task]


def _interval(interval) -> str:
    return "" if interval is None else "{:+.1f} to {:+.1f}".format(*interval)


def arm_table(records, task) -> str:
    metrics, lines = TASKS[task].metrics, []
    for arm, some in by_arm(records, task).items():
        values = [[record["test"][metric] for record in some] for metric in metrics]
        for changed in ("zero_offsets", "other_offsets"):
            values.append([record[changed][metrics[0]] for record in some if changed in record])
        numbers = [mean_and_spread(some) if some else "" for some in values]
        size = f"{some[0]['parameters'] / 1e6:.2f} M"
        lines.append([ARMS[arm], *numbers, size, len(some)])
    changed = [f"{metrics[0]}, offsets {how}" for how in ("set to zero", "of another image")]
    return _table(lines, ["arm", *metrics, *changed, "parameters", "repetitions"])


def dilation_table(records, task) -> str:
    lines = []
    for arm, some in by_arm(records, task).items():
        if not arm.startswith("dconv"):
            continue
        for layer in some[0]["dilation"]:
            columns = ([record["dilation"][layer][size][0] for record in some] for size in SIZES)
            known = ([value for value in values if value is not None] for values in columns)
            means = (f"{statistics.mean(values):.2f}" if values else "" for values in known)
            lines.append([ARMS[arm], layer, *means])
    return _table(lines, ["arm", "layer", *SIZES])


def by_arm(records, task) -> dict[str, list[dict]]:
    """Group records as {arm: its records}, in the order of the study."""
    groups = {arm: [] for arm in TASKS[task].arms}
    for record in records:
        if record["task"] == task:
            groups[record["arm"]].append(record)
    return {arm: some for arm, some in groups.items() if some}


def mean_and_spread(values) -> str:
    """Format mean and sample standard deviation, "41.3 ± 0.8", or a single value without it."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _table(lines, headers) -> str:
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True) if lines else ""


def _with_block(text, name, content):
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    found = re.search(f"{begin}.*?{end}", text, re.DOTALL)
    if not found:
        raise ValueError(f"{PAGE}: no block {begin} ... {end}; add one for the table")
    return f"{text[: found.start()]}{begin}\n{content}\n{end}{text[found.end() :]}"


def forest_plot(contrasts) -> Figure:
    """Plot a line per contrast: the difference of each repetition, their mean and its interval."""
    figure = Figure((10, 1.2 + 0.5 * len(contrasts)), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, c in enumerate(contrasts):
        color = class_color(list(TITLES).index(c.task))
        axes.plot(c.differences, [y] * len(c.differences), "o", color=color, alpha=0.35, ms=5)
        axes.plot(c.interval, [y, y], color=color, linewidth=2)
        axes.plot(c.mean, y, "D", color=color, ms=7)
    names = [f"{_data_of(c)}, {c.metric}:\n{ARMS[c.a]} over {ARMS[c.b]}" for c in contrasts]
    axes.set_yticks(range(len(contrasts)), names, fontsize=9)
    axes.set_ylim(len(contrasts) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlabel("difference in points (AP or mIoU); dots: repetitions, line: 95 % interval")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    write_page(ROOT)
