"""Pictures of semantic segmentation: prediction beside ground truth."""

import numpy as np
from detectron2.utils.colormap import colormap
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch

from .draw import DPI, INK, WIDTH
from .figure import Figure, drawn_aspect


def class_colors(classes: int) -> np.ndarray:
    """RGB of each class, (classes, 3) between 0 and 255; repeats after 74 classes."""
    return colormap(rgb=True)[np.arange(classes) % 74]


def draw_segmentation(image: np.ndarray, labels, truth, class_names) -> Figure:
    """Draw the image, and with colours on top of it the predicted and the true classes.

    Args:
        image: RGB, (H, W, 3) uint8.
        labels, truth: class indices (H, W); other values, e.g. of ignored pixels, are not coloured.
        class_names: name of each class index.
    """
    colors = class_colors(len(class_names))
    panels = {"image": image}
    for title, indices in (("predicted", labels), ("ground truth", truth)):
        indices = np.asarray(indices)
        known = indices < len(class_names)
        panels[title] = image.copy()
        panels[title][known] = 0.4 * image[known] + 0.6 * colors[indices[known]]
    rows = -(-len(class_names) // 8)  # of the legend
    size = (WIDTH / DPI, WIDTH / DPI / 3 * drawn_aspect(image) + 0.45 + 0.3 * rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, panel) in zip(figure.subplots(1, 3), panels.items()):
        axes.imshow(panel)
        axes.set_axis_off()
        axes.set_title(title, fontsize=13, color=INK)
    handles = [Patch(color=color / 255, label=name) for color, name in zip(colors, class_names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=11)
    return figure
