"""Pictures of a detector's errors: curves, a confusion matrix, and crops around boxes."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ..utils.pixels import read_image
from .draw import DPI, INK, WIDTH, add_box, class_color, crop, panels, square_around
from .errors import Found, Matches, precision_and_recall
from .figure import Figure

MOST_CLASSES = 20  # in one picture; more would not be legible
COLUMNS = 4  # of crops


def draw_precision_recall(matches: Matches, class_names) -> Figure:
    """Plot a curve per class, of at most MOST_CLASSES classes with the most objects."""
    objects = matches.objects
    counts = np.bincount(objects.classes[~objects.ignored], minlength=len(class_names))
    figure, axes = _figure(0.55)
    lines, names = [], []
    for label in np.argsort(-counts, kind="stable")[:MOST_CLASSES]:
        precision, recall = precision_and_recall(matches, label)
        if len(recall):
            style = ("-", "--")[label // 10 % 2]  # colours repeat after ten classes
            lines += axes.step(recall, precision, style, color=class_color(label), where="post")
            names.append(f"{class_names[label]} ({counts[label]})")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    # Given as arguments: a label that starts with "_" would be left out.
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(lines, names, frameon=False, fontsize=11, **place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure


def draw_confusion(counts: np.ndarray, class_names) -> Figure:
    """Draw a confusion matrix, see `errors.confusion`; colours are shares of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(0.12 + 0.04 * len(counts))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.55 else INK
        axes.text(
            column, row, counts[row, column], ha="center", va="center", color=color, fontsize=10
        )
    axes.set_yticks(range(len(counts)), [*class_names, "background"])
    axes.set_xticks(range(len(counts)), [*class_names, "missed"], rotation=45, ha="right")
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def draw_crops(records, found: Found, indices, class_names, color: str) -> Figure:
    """Draw the surroundings of boxes of `found`, each with its class and score.

    Args:
        indices: of the boxes, at least one.
    """
    crops, boxes = [], []
    for index in indices:
        image = read_image(records[found.images[index]]["file_name"], "RGB")
        box = torch.from_numpy(found.boxes[index])
        view = square_around(box, image.shape[:2])
        crops.append(crop(image, view))
        boxes.append(box - view[:2].repeat(2))
    blank = np.full((8, 8, 3), 255, np.uint8)
    crops += [blank] * (-len(crops) % COLUMNS)
    rows = [crops[i : i + COLUMNS] for i in range(0, len(crops), COLUMNS)]
    figure, axes = panels(rows, WIDTH, [""] * len(rows))
    for ax, index, box in zip(sum(axes, []), indices, boxes):
        add_box(ax, box, color, 3)
        score, name = found.scores[index], class_names[found.classes[index]]
        ax.text(
            *(0.03, 0.96, name if score == 1 else f"{name} {score:.0%}"),
            transform=ax.transAxes,
            va="top",
            fontsize=13,
            color="white",
            bbox={"facecolor": INK, "edgecolor": "none", "pad": 2.5},
        )
    return figure


def _figure(aspect: float):
    figure = Figure((WIDTH / DPI, aspect * WIDTH / DPI), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(labelsize=11)
    axes.xaxis.label.set_size(13)
    axes.yaxis.label.set_size(13)
    return figure, axes
