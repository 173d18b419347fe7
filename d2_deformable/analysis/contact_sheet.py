"""A contact sheet: sample images of a data set with their annotations."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from matplotlib.colors import to_rgb
from PIL import Image

from ..data import read_mask
from . import draw
from .figure import Figure

COLUMNS = 4
TILE = 300  # side in pixels
MARGIN = 4
MAX_NAMES = 12  # more objects than this are drawn without their class


def choose_records(dicts: list[dict], count: int) -> list[dict]:
    """Choose records at equal distances, among those with annotations if there are any."""
    dicts = [d for d in dicts if d.get("annotations") or "sem_seg_file_name" in d] or dicts
    n = len(dicts)
    return [dicts[n * (2 * i + 1) // (2 * count)] for i in range(count)] if count < n else dicts


def draw_contact_sheet(samples: dict[str, list[dict]], class_names) -> Figure:
    """Draw images with boxes and class names, or with the colours of their class masks.

    Args:
        samples: {data set: records in Detectron2's standard format}, whose images can be decoded.
            Each data set starts a new row.
        class_names: name of each class index.
    """
    names, rows = [], []
    for name, records in samples.items():
        for i in range(0, len(records), COLUMNS):
            names.append(name)
            rows.append([_tile(record) for record in records[i : i + COLUMNS]])
    blank = np.full((TILE, TILE, 3), 255, np.uint8)
    columns = max(map(len, rows))
    images = [[tile.image for tile in row] + [blank] * (columns - len(row)) for row in rows]
    figure, axes = draw.panels(images, draw.WIDTH * columns / COLUMNS, names)
    for row, row_axes in zip(rows, axes):
        for tile, ax in zip(row, row_axes):
            _draw_boxes(ax, tile, class_names)
    return figure


class _Tile(NamedTuple):
    """An image on a square tile.

    Args:
        image: RGB, (TILE, TILE, 3) uint8.
        boxes: (M, 4) in pixels of the tile.
        classes: (M,) class indices.
    """

    image: np.ndarray
    boxes: torch.Tensor
    classes: list[int]


def _draw_boxes(axes, tile: _Tile, class_names) -> None:
    for box, index in zip(tile.boxes, tile.classes):
        color = draw.class_color(index)
        draw.add_box(axes, box, color, 1.6)
        if len(tile.classes) <= MAX_NAMES:
            name = class_names[index] if index < len(class_names) else f"class {index}"
            _write(axes, name, box, color)


def _write(axes, text: str, box: torch.Tensor, color: str) -> None:
    x0, y0, x1, _ = box.tolist()
    to_right = (x0 + x1) / 2 > TILE / 2
    inside = y0 < 0.08 * TILE
    axes.annotate(
        text.replace("$", r"\$"),
        (x1 if to_right else x0, y0),
        ha="right" if to_right else "left",
        va="top" if inside else "bottom",
        fontsize=9,
        color="white",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1},
    )


def _tile(record: dict) -> _Tile:
    image = Image.fromarray(read_image(record["file_name"], "RGB"))
    scale = (TILE - 2 * MARGIN) / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    x, y = ((TILE - side) // 2 for side in size)
    pixels = np.array(image.resize(size, Image.Resampling.LANCZOS))
    if "sem_seg_file_name" in record:
        mask = Image.fromarray(read_mask(record["sem_seg_file_name"]))
        colors = np.array([to_rgb(draw.class_color(i)) for i in range(256)]) * 255
        overlay = colors[np.array(mask.resize(size, Image.Resampling.NEAREST))]
        pixels = (0.5 * pixels + 0.5 * overlay).astype(np.uint8)
    tile = np.full((TILE, TILE, 3), 235, np.uint8)
    tile[y : y + size[1], x : x + size[0]] = pixels
    annotations = record.get("annotations", ())
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = torch.tensor(boxes).reshape(-1, 4) * scale + torch.tensor([x, y, x, y])
    return _Tile(tile, boxes, [a["category_id"] for a in annotations])
