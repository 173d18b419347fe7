"""Pictures of detections and of sampling locations (paper figures 5 and 6).

Every picture is drawn on a figure of fixed width, independent of the size of the image, so that
lines and text stay readable. Boxes are (x0, y0, x1, y1) and points (y, x) in pixels of the image.
"""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from .figure import Figure, drawn_aspect
from .record import Inspection
from .sampling import conv_sampling_points, part_boxes

WIDTH = 1200  # pixels of every picture
DPI = 100
RED, YELLOW, GREEN, INK = "#e3181f", "#ffd60a", "#12d65a", "#23272e"
PALETTE = (
    *("#1769b5", "#c2570c", "#2e7d32", "#8e3bab", "#00838f"),
    *("#b0246f", "#6d6a00", "#3f4fb3", "#8d5524", "#4a5a66"),
)


def draw_detections(image: np.ndarray, instances: Instances, class_names) -> Figure:
    """Draw the boxes of `instances` on the image, with class and score.

    Args:
        image: RGB, (H, W, 3) uint8.
        instances: pred_boxes, scores and pred_classes.
        class_names: name of each class index.
    """
    height, width = image.shape[:2]
    # At full width, the picture of a tall image would be longer than a screen.
    figure, ((axes,),) = panels([[image]], WIDTH * min(1.0, 0.75 / drawn_aspect(image)))
    order = instances.scores.argsort()  # the best on top
    for box, score, index in zip(
        instances.pred_boxes.tensor[order],
        instances.scores[order].tolist(),
        instances.pred_classes[order].tolist(),
    ):
        color = class_color(index)
        add_box(axes, box, color, 3)
        x0, y0, x1, _ = box.tolist()
        to_right = (x0 + x1) / 2 > 0.75 * width
        inside = y0 < 0.05 * height
        axes.annotate(
            f"{class_names[index]} {score:.0%}",
            (min(x1, width) if to_right else max(x0, 0), max(y0, 0)),
            xytext=(0, -3 if inside else 3),
            textcoords="offset points",
            ha="right" if to_right else "left",
            va="top" if inside else "bottom",
            fontsize=14,
            color="white",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 2.5},
        )
    return figure


class Unit(NamedTuple):
    """A position to inspect: (y, x) in image pixels, and the box (4,) of its object or None."""

    title: str
    point: torch.Tensor
    box: torch.Tensor | None = None


def units_on(instances: Instances, image_size, class_names) -> list[Unit]:
    """Units on the background, if there is any, and on the centres of `instances`, smallest first.

    Args:
        instances: pred_boxes and pred_classes.
        image_size: (height, width).
        class_names: name of each class index.
    """
    units = [
        Unit(class_names[index], center.flip(0), box)
        for index, center, box in zip(
            instances.pred_classes.tolist(),
            instances.pred_boxes.get_centers(),
            instances.pred_boxes.tensor,
        )
    ]
    units.sort(key=lambda unit: Boxes(unit.box[None]).area().item())
    background = background_point(image_size, instances.pred_boxes.tensor)
    return units if background is None else [Unit("background", background), *units]


def draw_sampling_points(
    image: np.ndarray, inspection: Inspection, units: list[Unit], num_layers: int = 3
) -> Figure:
    """Draw the sampling points of units through the last deformable convolutions (paper figure 5).

    One column per unit (green). The upper row shows the fixed grid of the plain network, the lower
    row the learned one (red), of all offset groups. Points outside their feature map, which sample
    nothing, are left out.

    Args:
        image: RGB, (H, W, 3) uint8.
        units: at least one.
        num_layers: at most this many of the last deformable layers, see `conv_sampling_points`.
    """
    background = pale(image)
    width = WIDTH * len(units) / 3
    figure, rows = panels([[background] * len(units)] * 2, width, ["fixed grid", "learned offsets"])
    for row, deformed in zip(rows, (False, True)):
        for axes, unit in zip(row, units):
            if not deformed:
                set_title(axes, unit.title)
            if unit.box is not None:
                add_box(axes, unit.box, INK, 1.2)
            seen = conv_sampling_points(inspection, unit.point, num_layers, deformed)
            y, x = seen.points[seen.inside].T
            axes.scatter(x, y, s=9, color=RED, alpha=0.75, linewidths=0)
            axes.scatter(
                *seen.unit.flip(0)[:, None], s=70, color=GREEN, edgecolors="white", linewidths=1.6
            )
    return figure


def draw_parts(
    image: np.ndarray, inspection: Inspection, instances: Instances, class_names
) -> Figure:
    """Draw boxes (yellow) and the parts (red) that deformable RoI pooling samples (paper figure 6).

    One column per box. The upper row shows the fixed bins of plain pooling, the lower row the
    learned ones. Each panel shows the surroundings of its box, light grey beyond the image.

    Args:
        image: RGB, (H, W, 3) uint8.
        instances: pred_boxes and pred_classes of the RoIs, at least one.
        class_names: name of each class index.
    """
    boxes, classes = instances.pred_boxes.tensor, instances.pred_classes
    views = [square_around(box, image.shape[:2]) for box in boxes]
    crops = [crop(image, view) for view in views]
    width = WIDTH * len(boxes) / 3
    figure, rows = panels([crops] * 2, width, ["fixed bins", "learned offsets"])
    for row, deformed in zip(rows, (False, True)):
        parts = part_boxes(inspection, boxes, classes, deformed)
        for axes, index, box, view, of_box in zip(row, classes.tolist(), boxes, views, parts):
            if not deformed:
                set_title(axes, class_names[index])
            corner = view[:2].repeat(2)
            for part in of_box:
                add_box(axes, part - corner, RED, 1.6)
            add_box(axes, box - corner, YELLOW, 3.5)
    return figure


def background_point(image_size, boxes: torch.Tensor) -> torch.Tensor | None:
    """Find the point (y, x) farthest from all boxes (R, 4) and the image's border.

    Returns None if all points are too close to a box or the border.

    Args:
        image_size: (height, width).
    """
    size = torch.tensor(image_size)
    grid = torch.cartesian_prod(*((torch.arange(32) + 0.5) / 32 * n for n in image_size))
    free = torch.cat([grid, size - grid], dim=1).min(dim=1).values
    if len(boxes):
        low, high = boxes[:, [1, 0]], boxes[:, [3, 2]]
        outside = torch.maximum(low - grid[:, None], grid[:, None] - high).clamp(min=0)
        free = free.minimum(outside.norm(dim=2).min(dim=1).values)
    best = free.argmax()
    return grid[best] if free[best] > 0.02 * size.min() else None


def class_color(index: int) -> str:
    """Color of a class, dark enough for white text; repeats after ten classes."""
    return PALETTE[index % len(PALETTE)]


def panels(rows, width: float, labels=("",), bottom: int = 0):
    """Make a figure of images in rows and columns of equal size; return it with its axes.

    Axes are in image pixels.

    Args:
        rows: lists of images (H, W, 3), all with the same aspect ratio.
        width: width of the figure in pixels.
        labels: vertical text beside each row.
        bottom: free pixels below the rows, e.g. for a legend.
    """
    left, top = (26, 26) if any(labels) else (0, 0)
    gap = 6 if any(labels) or len(rows) > 1 else 0
    columns = len(rows[0])
    panel_w = round((width - left - gap * (columns - 1)) / columns)
    panel_h = round(panel_w * drawn_aspect(rows[0][0]))
    total_w = left + columns * panel_w + (columns - 1) * gap
    total_h = top + len(rows) * panel_h + (len(rows) - 1) * gap + bottom
    figure = Figure(figsize=(total_w / DPI, total_h / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = []
    for r, (images, label) in enumerate(zip(rows, labels)):
        y = total_h - top - (r + 1) * panel_h - r * gap
        figure.text(
            0.45 * left / total_w,
            (y + panel_h / 2) / total_h,
            label,
            rotation=90,
            ha="center",
            va="center",
            fontsize=13,
            color=INK,
        )
        axes.append([])
        for c, image in enumerate(images):
            x = left + c * (panel_w + gap)
            ax = figure.add_axes(
                (x / total_w, y / total_h, panel_w / total_w, panel_h / total_h),
                xticks=[],
                yticks=[],
                frame_on=False,
            )
            # Resized here, since matplotlib would blur or alias it.
            resized = Image.fromarray(image).resize((panel_w, panel_h), Image.Resampling.LANCZOS)
            ax.imshow(resized, extent=(0, image.shape[1], image.shape[0], 0), aspect="auto")
            ax.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
            axes[-1].append(ax)
    return figure, axes


def set_title(axes, text):
    """Set a title in the font size shared by all pictures."""
    axes.set_title(text, fontsize=13, color=INK, pad=5)


def add_box(axes, box, color, width):
    """Draw the outline of a box (4,) in image pixels, `width` points wide."""
    # A rim of the opposite brightness keeps the line visible on an image of its own color.
    rim = "#00000066" if color == YELLOW else "#ffffff88"
    x0, y0, x1, y1 = box.tolist()
    axes.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=color,
            linewidth=width,
            path_effects=[withStroke(linewidth=width + 1.2, foreground=rim)],
        )
    )


def pale(image):
    """Blend the image with grey and white, so that points stand out."""
    image = image.astype(np.float32)
    grey = image.mean(axis=2, keepdims=True)
    return (0.35 * image + 0.25 * grey + 0.40 * 255).astype(np.uint8)


def square_around(box, image_size, margin: float = 0.35):
    """Square (x0, y0, x1, y1) in whole pixels around a box, wider by `margin` on each side.

    It is shifted into the image if the image is large enough.
    """
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    side = max(8, int(size.max() * (1 + 2 * margin)))
    low = (center - side / 2).floor().long()
    room = torch.tensor(image_size).flip(0) - side
    low = torch.where(room >= 0, low.clamp(min=0).minimum(room), low)
    return torch.cat([low, low + side])


def crop(image, view):
    """Crop the square `view` from the image; light grey beyond the image."""
    x0, y0, x1, y1 = view.tolist()
    height, width = image.shape[:2]
    crop = np.full((y1 - y0, x1 - x0, 3), 235, np.uint8)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    if top < bottom and left < right:
        crop[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
    return crop


def draw_curves(history) -> Figure:
    """Plot losses and learning rate over the iterations.

    Args:
        history: one dict of scalars per logged iteration, as `FinishedRun.history`.
    """
    lines = [line for line in history if "total_loss" in line]
    names = sorted({key for line in lines for key in line if key.startswith("loss")})
    figure = Figure(figsize=(WIDTH / DPI, 0.5 * WIDTH / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for i, name in enumerate(["total_loss", *names]):
        x, y = zip(*((line["iteration"], line[name]) for line in lines if name in line))
        color = INK if name == "total_loss" else class_color(i - 1)
        losses.plot(x, y, color=color, label=name, linewidth=2.4 if i == 0 else 1.6, marker=".")
    losses.set(ylabel="loss", ylim=(0, None))
    losses.legend(frameon=False, fontsize=13, ncols=2)
    rates = [(line["iteration"], line["lr"]) for line in lines if "lr" in line]
    rate.plot(*zip(*rates), color=INK)
    rate.set(ylabel="learning rate", xlabel="iteration", ylim=(0, None))
    for axes in (losses, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=12)
        axes.xaxis.label.set_size(13)
        axes.yaxis.label.set_size(13)
    return figure
