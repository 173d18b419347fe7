"""The costs of networks side by side as bars."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .draw import DPI, INK, WIDTH, class_color


def draw_complexity(networks: dict) -> Figure:
    """Parameters, multiply-adds and, where measured, seconds.

    Args:
        networks: {name: {"parameters": ..., "macs": ..., "seconds": ... or missing}}.
    """
    names = list(networks)
    timed = all("seconds" in network for network in networks.values())
    figure = Figure(figsize=(WIDTH / DPI, (1.2 + 0.5 * len(names))), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3 if timed else 2, sharey=True)
    of_offsets = [network["parameters"]["offsets"] / 1e6 for network in networks.values()]
    totals = [network["parameters"]["total"] / 1e6 for network in networks.values()]
    _bars(panels[0], names, [t - o for t, o in zip(totals, of_offsets)], of_offsets, "offsets")
    panels[0].set_xlabel("million parameters")
    of_ops = [
        sum(n for kind, n in network["macs"].items() if kind.startswith("deformable")) / 1e9
        for network in networks.values()
    ]
    totals = [network["macs"]["total"] / 1e9 for network in networks.values()]
    _bars(panels[1], names, [t - o for t, o in zip(totals, of_ops)], of_ops, "deformable operators")
    panels[1].set_xlabel("billion multiply-adds")
    if timed:
        seconds = [network["seconds"] for network in networks.values()]
        forward = [s["forward"]["median"] for s in seconds]
        whole = [s["whole"]["median"] for s in seconds]
        _bars(panels[2], names, forward, [w - f for w, f in zip(whole, forward)], "post-processing")
        for y, s in enumerate(seconds):
            panels[2].plot(s["whole"]["quartiles"], [y, y], color=INK, linewidth=2)
        panels[2].set_xlabel("seconds (median, quartiles)")
    panels[0].invert_yaxis()
    return figure


def _bars(axes, names, first, second, label):
    axes.barh(names, first, color=class_color(0), height=0.6)
    axes.barh(names, second, left=first, color=class_color(1), height=0.6, label=label)
    if any(second):
        axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
