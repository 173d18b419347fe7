"""Results as bars: how many times the time of the plain operator each implementation takes."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from d2_deformable.analysis.draw import DPI, INK, WIDTH, class_color

from .table import grouped, name_of


def draw(data: dict) -> Figure:
    """A panel per thing compared with, a group of bars per row, an implementation per colour.

    Bars begin at 1, the time of what is compared with; whiskers are quartiles.
    """
    groups = grouped(data)
    names = list(dict.fromkeys(n for row in data["rows"] for n in ("ours", *row["ratio"])))
    heights = [len(rows) for rows in groups]
    size = WIDTH / DPI, 1.5 + 0.16 * len(names) * sum(heights)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, rows in zip(panels, groups, strict=True):
        _bars(axes, rows, names)
    handles, labels = {}, []
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = [name for name in names if name in handles]
    figure.legend(
        [handles[name] for name in labels],
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
    )
    figure.suptitle
    return figure


def _bars(axes, rows, names):
    here = [name for name in names if any(name in row["ratio"] for row in rows)]
    thick = 0.8 / len(here)
    for index, name in enumerate(here):
        taken = [(y, row["ratio"][name]) for y, row in enumerate(rows) if name in row["ratio"]]
        places = [y + (index - (len(here) - 1) / 2) * thick for y, _ in taken]
        widths = [middle - 1 for _, (_, middle, _) in taken]
        axes.barh(
            places, widths, thick, left=1, color=class_color(names.index(name)), label=name
        )
        for place, (_, (low, middle, high)) in zip(places, taken, strict=True):
            axes.plot([low, high], [place, place], color=INK, linewidth=1)
            axes.annotate(
                f"{middle:.2f}",
                (max(middle, high, 1), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=INK,
            )
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows], fontsize=8)
    axes.set_xlabel(f"times the time of {rows[0]['base']}")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
