"""A contact sheet: sample images of a data set with their annotations."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import BoxMode
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from PIL import Image

from ..data import read_mask
from ..utils.pixels import read_image
from . import draw
from .figure import Figure

TILE = 300  # width in pixels
MARGIN = 4
MAX_NAMES = 12  # more objects than this are drawn without their class
MAX_CLASSES = 40  # in the legend
LINE = 26  # pixels of a line of the legend


def choose_records(dicts: list[dict], count: int) -> list[dict]:
    """Choose records at equal distances, among those with annotations if there are any."""
    dicts = [d for d in dicts if d.get("annotations") or "sem_seg_file_name" in d] or dicts
    n = len(dicts)
    return [dicts[n * (2 * i + 1) // (2 * count)] for i in range(count)] if count < n else dicts


def draw_contact_sheet(samples: dict[str, list[dict]], class_names) -> Figure:
    """Draw images with boxes and class names, or with the colours of their class masks.

    A legend below names the colours of the classes that occur. A box has no class name beside it
    where there is no room.

    Args:
        samples: {data set: records in Detectron2's standard format}, whose images can be decoded.
            Each data set starts a new row.
        class_names: name of each class index.
    """
    aspects = [r["height"] / r["width"] for records in samples.values() for r in records]
    size = TILE, round(TILE * float(np.clip(np.median(aspects), 0.5, 2)))
    columns = choose_columns([len(records) for records in samples.values()])
    names, rows = [], []
    for name, records in samples.items():
        for i in range(0, len(records), columns):
            names.append(name)
            rows.append([_tile(record, size) for record in records[i : i + columns]])
    blank = np.full((size[1], size[0], 3), 255, np.uint8)
    images = [[tile.image for tile in row] + [blank] * (columns - len(row)) for row in rows]
    indices = sorted({index for row in rows for tile in row for index in tile.classes})
    legend = {_name(index, class_names): draw.class_color(index) for index in indices[:MAX_CLASSES]}
    longest = max([0, *map(len, legend)])
    in_line = max(1, TILE * columns // (10 * longest + 60))
    lines = -(-len(legend) // in_line)
    figure, axes = draw.panels(images, TILE * columns, names, bottom=LINE * lines)
    figure.legend(
        handles=[
            Patch(color=color, label=name.replace("$", r"\$")) for name, color in legend.items()
        ],
        loc="lower center",
        ncols=min(in_line, max(1, len(legend))),
        frameon=False,
        fontsize=11,
        borderaxespad=0.2,
    )
    for row, row_axes in zip(rows, axes):
        for tile, ax in zip(row, row_axes):
            _draw_boxes(ax, tile, class_names)
    return figure


def choose_columns(counts: list[int]) -> int:
    """Choose the columns, at most 5, that leave the fewest tiles blank; then the nearest to 4.

    Args:
        counts: number of images of each data set, which starts a new row.
    """
    return min(
        range(1, min(5, max(counts)) + 1),
        key=lambda c: (sum(-n % c for n in counts) if c > 2 else max(counts), abs(c - 4)),
    )


class _Tile(NamedTuple):
    """An image on its tile.

    Args:
        image: RGB, (H, W, 3) uint8, of the size of all tiles.
        boxes: (M, 4) in pixels of the tile.
        classes: (M,) class indices of the boxes; or those that occur in the class mask.
    """

    image: np.ndarray
    boxes: torch.Tensor
    classes: list[int]


def _name(index: int, class_names) -> str:
    return class_names[index] if index < len(class_names) else f"class {index}"


def _draw_boxes(axes, tile: _Tile, class_names) -> None:
    for box, index in zip(tile.boxes, tile.classes):
        draw.add_box(axes, box, draw.class_color(index), 1.6)
    written = []
    for box, index in zip(tile.boxes, tile.classes):
        if len(tile.classes) <= MAX_NAMES:
            text = _write(axes, _name(index, class_names), box, draw.class_color(index))
            place = text.get_window_extent()
            if any(place.overlaps(other) for other in written):
                text.remove()
            else:
                written.append(place)


def _write(axes, text: str, box: torch.Tensor, color: str):
    x0, y0, x1, _ = box.tolist()
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    to_right = (x0 + x1) / 2 > width / 2
    inside = y0 < 0.08 * height
    return axes.annotate(
        text.replace("$", r"\$"),
        (x1 if to_right else x0, y0),
        ha="right" if to_right else "left",
        va="top" if inside else "bottom",
        fontsize=9,
        color="white",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1},
    )


def _tile(record: dict, tile_size: tuple[int, int]) -> _Tile:
    image = Image.fromarray(read_image(record["file_name"], "RGB"))
    scale = min((n - 2 * MARGIN) / side for n, side in zip(tile_size, image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    x, y = ((n - side) // 2 for n, side in zip(tile_size, size))
    annotations = record.get("annotations", ())
    classes = [a["category_id"] for a in annotations]
    pixels = np.array(image.resize(size, Image.Resampling.LANCZOS))
    if "sem_seg_file_name" in record:
        mask = Image.fromarray(read_mask(record["sem_seg_file_name"]))
        colors = np.array([to_rgb(draw.class_color(i)) for i in range(256)]) * 255
        labels = np.array(mask.resize(size, Image.Resampling.NEAREST))
        overlay = colors[labels]
        classes = np.unique(labels).tolist()
        pixels = (0.5 * pixels + 0.5 * overlay).astype(np.uint8)
    tile = np.full((tile_size[1], tile_size[0], 3), 235, np.uint8)
    tile[y : y + size[1], x : x + size[0]] = pixels
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = torch.tensor(boxes).reshape(-1, 4) * scale + torch.tensor([x, y, x, y])
    return _Tile(tile, boxes, classes)
