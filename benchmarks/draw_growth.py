"""Draw the rows of `benchmarks.growth`: time and memory against each number, and their lines."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d2_deformable.analysis.draw import DPI, INK, WIDTH, class_color

COSTS = {"ms": "ms per step", "mib": "MiB"}


def draw(data: dict) -> Figure:
    """Draw a column per sweep, time above memory, on axes that start at zero."""
    rows = [row for row in data["rows"] if "sweep" in row]
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure = Figure((WIDTH / DPI, 4.4), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(COSTS), len(sweeps), squeeze=False, sharex="col")
    for column, sweep in enumerate(sweeps):
        points = [row for row in rows if row["sweep"] == sweep]
        sizes = np.array([row["size"] for row in points], float)
        scale = 1e-3 if sizes.max() > 1e4 else 1
        for index, cost in enumerate(COSTS):
            axes = panels[index][column]
            values = np.array([row[cost] for row in points])
            axes.plot(scale * sizes, values, "o-", color=class_color(index), markersize=4)
            axes.set_xlim(0)
            axes.set_ylim(0, 1.15 * values.max())
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            if column == 0:
                axes.set_ylabel(COSTS[cost], fontsize=9, color=INK)
        panels[-1][column].set_xlabel(f"thousand {sweep}" if scale < 1 else sweep, fontsize=9)
    return figure
