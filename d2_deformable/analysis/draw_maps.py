"""Heat maps over an image, one for every layer."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from .draw import DPI, INK, WIDTH, YELLOW, add_box, set_title
from .figure import Figure, drawn_aspect
from .layer_map import LayerMap

COLUMNS = 4  # of layers; more would be too small
ALPHA = 0.6  # of the colours over the image, and in the colour bar


def draw_maps(image: np.ndarray, maps: dict[str, LayerMap], unit: str, boxes=None) -> Figure:
    """Draw the map of every layer over one image, all on the same colour scale.

    Args:
        image: RGB, (H, W, 3) uint8.
        maps: at least one, by the name of the layer.
        unit: text beside the colour bar.
        boxes: boxes to outline, in image pixels, if known.
    """
    height, width = image.shape[:2]
    columns = min(COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    bar_width = 0.9  # inches, with its label
    panel = (WIDTH / DPI - bar_width) / max(3, columns)
    # At least 3 inches high, for the text beside the colour bar.
    size = columns * panel + bar_width, max(3, rows * (panel * drawn_aspect(image) + 0.36))
    figure = Figure(size, DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    grey = image.mean(axis=2)  # the colours are those of the map
    highest = max(np.nanmax(layer.values.numpy()) for layer in maps.values())
    scale = ScalarMappable(Normalize(0, highest or 1), "viridis")
    for ax, (name, (values, cell)) in zip(axes.flat, maps.items()):
        set_title(ax, short_name(name))
        ax.imshow(grey, "gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        ax.imshow(
            np.ma.masked_invalid(values.numpy()),
            extent=(0, values.shape[1] * cell[1], values.shape[0] * cell[0], 0),
            cmap=scale.cmap,
            norm=scale.norm,
            alpha=ALPHA,
            interpolation="nearest",
        )
        for box in () if boxes is None else boxes:
            add_box(ax, box, YELLOW, 1.5)
        ax.set(xlim=(0, width), ylim=(height, 0))
    bar = figure.colorbar(scale, ax=axes, alpha=ALPHA, pad=0.01, aspect=18 * rows)
    bar.set_label(unit, size=13, color=INK)
    bar.ax.tick_params(labelsize=12)
    return figure


def short_name(layer: str) -> str:
    """Name of a backbone layer without the common prefix."""
    return layer.removeprefix("backbone.").removeprefix("bottom_up.")
