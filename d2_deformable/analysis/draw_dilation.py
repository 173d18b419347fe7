"""Bars of effective dilation by layer and object size: table 2 of the paper as a picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg

from .draw import DPI, INK, WIDTH
from .draw_maps import short_name
from .effective_dilation import COLUMNS
from .figure import Figure

COLORS = dict(zip(COLUMNS, ("#f2a35e", "#d95f3b", "#8c2d3f", "#7a8794", "#b4bcc5")))


def draw_bars(layers: dict) -> Figure:
    """Plot mean (bar) and standard deviation (line) by layer and object size.

    Args:
        layers: see `EffectiveDilation.as_dict`.
    """
    figure = Figure(figsize=(WIDTH / DPI, 0.5 * WIDTH / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [c for c in COLUMNS if any(row[c]["count"] for row in layers.values())]
    width = 0.8 / len(shown)
    for i, column in enumerate(shown):
        known = [(n, row[column]) for n, row in enumerate(layers.values()) if row[column]["count"]]
        axes.bar(
            [n - 0.4 + (i + 0.5) * width for n, _ in known],
            [value["mean"] for _, value in known],
            0.9 * width,
            yerr=[value["std"] for _, value in known],
            color=COLORS[column],
            error_kw={"ecolor": INK, "elinewidth": 1.2},
            label=column,
        )
    for n, row in enumerate(layers.values()):
        fixed = sum(row["dilation"]) / 2
        axes.plot([n - 0.42, n + 0.42], [fixed, fixed], "--", color=INK, linewidth=1.2)
    axes.plot([], [], "--", color=INK, linewidth=1.2, label="without offsets")
    axes.set_xticks(range(len(layers)), [short_name(name) for name in layers])
    if len(layers) > 9:  # their names would overlap
        axes.tick_params(axis="x", labelrotation=45)
    axes.set(ylabel="effective dilation in cells", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=12)
    axes.yaxis.label.set_size(13)
    axes.legend(frameon=False, fontsize=12, ncols=len(shown) + 1, loc="lower left", mode="expand",
                bbox_to_anchor=(0, 1, 1, 0.1))  # fmt: skip
    return figure
