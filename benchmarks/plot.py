"""Draw results as bars: the time of each implementation relative to the plain operator.

python -m benchmarks.plot RESULTS.json PICTURE.png ["offsets 2 px"]
"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from d2_deformable.analysis.draw import DPI, INK, WIDTH, class_color

from .table import grouped

# The order of the bars; each name always has the same colour.
NAMES = (
    *("ours", "plain channels_last", "torchvision", "ours without offsets"),
    *("Detectron2", "mmcv", "ONNX Runtime"),
)
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
BAR = 0.17  # inches


def draw(data: dict, only: str = "") -> Figure:
    """Draw a column per pass, a panel per baseline, and a group of bars per case.

    Bars begin at 1, the time of the baseline; whiskers are quartiles. Only rows whose names contain
    `only` are drawn.
    """
    groups = grouped(data, only)
    passes = list(dict.fromkeys(row["pass"] for rows in groups for row in rows))
    heights = [len(_cases(rows)) * (1 + len(_names(rows))) for rows in groups]
    figure = Figure(
        (WIDTH / DPI, 1 + sum(BAR * h + 0.6 for h in heights)), DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    shape = len(groups), len(passes)
    panels = figure.subplots(*shape, squeeze=False, sharey="row", height_ratios=heights)
    for row, rows in enumerate(groups):
        for column, pass_name in enumerate(passes):
            axes = panels[row][column]
            _bars(axes, rows, pass_name)
            if row == 0:
                axes.set_title(pass_name, fontsize=11)
    handles = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = [name for name in NAMES if name in handles]
    figure.legend(
        [handles[name] for name in labels],
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
    )
    return figure


def _case(row) -> str:
    return ", ".join(filter(None, (row["case"], row["mode"])))


def _cases(rows) -> list[str]:
    return list(dict.fromkeys(map(_case, rows)))


def _names(rows) -> list[str]:
    return [name for name in NAMES if any(name in row["ratio"] for row in rows)]


def _bars(axes, rows, pass_name):
    cases, here = _cases(rows), _names(rows)
    thick = 1 / (1 + len(here))
    for index, name in enumerate(here):
        for row in rows:
            if row["pass"] != pass_name or name not in row["ratio"]:
                continue
            low, middle, high = row["ratio"][name]
            y = cases.index(_case(row)) + (index - (len(here) - 1) / 2) * thick
            color = class_color(NAMES.index(name))
            axes.barh(y, middle - 1, 0.9 * thick, left=1, color=color, label=name)
            axes.plot([low, high], [y, y], color=INK, linewidth=1)
            axes.annotate(
                f"{middle:.2f}",
                (max(high, 1), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.set_xscale("log")
    axes.set_xticks(TICKS)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    ratios = [q for row in rows for quartiles in row["ratio"].values() for q in quartiles]
    axes.set_xlim(min(0.9, 0.9 * min(ratios)), max(2, 1.4 * max(ratios)))
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_yticks(range(len(cases)), cases, fontsize=9)
    axes.set_xlabel(f"times the time of {rows[0]['base']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    results, picture, *only = sys.argv[1:]
    draw(json.loads(Path(results).read_text()), *only).savefig(picture)
