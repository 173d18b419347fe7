"""Bar charts of the costs of networks side by side."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from .draw import DPI, INK, WIDTH, class_color
from .figure import Figure


def draw_complexity(networks: list[dict]) -> Figure:
    """Plot parameters, FLOPs and, if measured, seconds.

    Args:
        networks: {"config_file", "parameters", "flops" and optionally "seconds"} of each network,
            see `d2_deformable.analysis.complexity`.
    """
    timed = all("seconds" in network for network in networks)
    size = WIDTH / DPI, 1.2 + 0.5 * len(networks)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3 if timed else 2, sharey=True)
    panels[0].set_yticks(range(len(networks)), [Path(n["config_file"]).stem for n in networks])

    parameters = [n["parameters"] for n in networks]
    offsets = [p["offsets"] / 1e6 for p in parameters]
    _bars(panels[0], [p["total"] / 1e6 for p in parameters], offsets, "offsets")
    panels[0].set_xlabel("million parameters")

    deformable = [
        sum(count for kind, count in n["flops"].items() if kind.startswith("deformable")) / 1e9
        for n in networks
    ]
    totals = [n["flops"]["total"] / 1e9 for n in networks]
    _bars(panels[1], totals, deformable, "deformable operators")
    panels[1].set_xlabel("GFLOPs (multiply-adds)")

    if timed:
        seconds = [n["seconds"] for n in networks]
        whole = [s["whole"]["median"] for s in seconds]
        after = [w - s["forward"]["median"] for w, s in zip(whole, seconds)]
        _bars(panels[2], whole, after, "post-processing")
        for y, s in enumerate(seconds):
            panels[2].plot(s["whole"]["quartiles"], [y, y], color=INK, linewidth=2)
        panels[2].set_xlabel("seconds (median, quartiles)")
    panels[0].invert_yaxis()
    return figure


def _bars(axes, totals, parts, label):
    """Draw bars of `totals`, whose ends show the part called `label`."""
    rest = [total - part for total, part in zip(totals, parts)]
    axes.barh(range(len(rest)), rest, color=class_color(0), height=0.6)
    axes.barh(range(len(rest)), parts, left=rest, color=class_color(1), height=0.6, label=label)
    if any(parts):
        axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
