"""Pictures of effective dilation: the table as bars, and maps over an image."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .draw import DPI, INK, WIDTH, YELLOW, add_box, pale, panels, set_title
from .effective_dilation import COLUMNS

COLORS = dict(zip(COLUMNS, ("#f2a35e", "#d95f3b", "#8c2d3f", "#7a8794", "#3d4650")))


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
    axes.set(ylabel="effective dilation in cells", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=12)
    axes.yaxis.label.set_size(13)
    axes.legend(frameon=False, fontsize=12, ncols=len(shown) + 1, loc="lower left", mode="expand",
                bbox_to_anchor=(0, 1, 1, 0.1))  # fmt: skip
    return figure


def draw_maps(image: np.ndarray, maps: dict, boxes=()) -> Figure:
    """Draw the effective dilation of every layer over one image, all on the same colour scale.

    Args:
        image: RGB, (H, W, 3) uint8.
        maps: the result of `EffectiveDilation.add`.
        boxes: boxes of its objects, in image pixels.
    """
    height, width = image.shape[:2]
    background = pale(image)
    figure, (row,) = panels([[background] * len(maps)], WIDTH, ["cells"])
    highest = max(np.nanmax(values.numpy()) for values, _ in maps.values())
    scale = ScalarMappable(Normalize(0, highest), "magma")
    for axes, (name, (values, cell)) in zip(row, maps.items()):
        set_title(axes, short_name(name))
        axes.imshow(
            np.ma.masked_invalid(values.numpy()),
            extent=(0, values.shape[1] * cell[1], values.shape[0] * cell[0], 0),
            cmap=scale.cmap,
            norm=scale.norm,
            alpha=0.65,
            interpolation="nearest",
            aspect="auto",
        )
        for box in boxes:
            add_box(axes, box, YELLOW, 1.5)
        axes.set(xlim=(0, width), ylim=(height, 0))
    bar = row[-1].inset_axes((0.04, 0.06, 0.06, 0.5))
    figure.colorbar(scale, cax=bar)
    for label in bar.get_yticklabels():
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})
    return figure


def short_name(layer: str) -> str:
    """Name of a backbone layer without the common prefix."""
    return layer.removeprefix("backbone.").removeprefix("bottom_up.")
