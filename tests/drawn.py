"""A tiny drawn data set in every label format: squares of two colours on grey."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bolt", "nut")
COLORS = ((200, 40, 40), (40, 80, 200))
WIDTH, HEIGHT = 96, 64


def draw(index: int):
    """Picture `index` and its objects: RGB (H, W, 3) uint8, [(class index, (x0, y0, x1, y1))]."""
    rng = random.Random(index)
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    objects = []
    for column in range(2):
        label, side = rng.randrange(2), rng.choice([16, 24, 32])
        x0, y0 = 48 * column + rng.randrange(48 - side), rng.randrange(HEIGHT - side)
        pixels[y0 : y0 + side, x0 : x0 + side] = COLORS[label]
        objects.append((label, (x0, y0, x0 + side, y0 + side)))
    return pixels, objects


def write_drawn(root: Path, kind: str, splits: dict[str, int]) -> Path:
    """Write a data set of a FORMAT, laid out as its tools do; return its folder.

    Args:
        splits: {split: number of images}; {"all": n} has no splits.
    """
    first = 0
    for split, count in splits.items():
        pictures = {f"{split}_{i}": draw(first + i) for i in range(count)}
        first += count
        WRITERS[kind](root, split, pictures)
    return root


def _save(folder: Path, pictures, suffix=".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, (pixels, _) in pictures.items():
        Image.fromarray(pixels).save(folder / f"{stem}{suffix}", quality=95)


def _list(root: Path, split: str, lines) -> None:
    if split != "all":
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{split}.txt").write_text("\n".join(lines))


def _voc(root, split, pictures):
    _save(root / "JPEGImages", pictures)
    _list(root / "ImageSets/Main", split, pictures)
    (root / "Annotations").mkdir(exist_ok=True)
    for stem, (_, objects) in pictures.items():
        text = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}"
            f"</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in objects
        )
        (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{text}</annotation>")


def _coco(root, split, pictures):
    folder = root / "images" if split == "all" else root / split
    _save(folder, pictures)
    images = [
        {"id": i, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT}
        for i, stem in enumerate(pictures)
    ]
    objects = [(i, *o) for i, (_, found) in enumerate(pictures.values()) for o in found]
    content = {
        "images": images,
        "annotations": [
            {
                "id": k,
                "image_id": i,
                "category_id": 5 + label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            for k, (i, label, (x0, y0, x1, y1)) in enumerate(objects)
        ],
        # Roboflow adds a category for the whole data set.
        "categories": [{"id": 0, "name": "parts"}]
        + [{"id": 5 + k, "name": name} for k, name in enumerate(CLASSES)],
    }
    file = root / "labels.json" if split == "all" else folder / "_annotations.coco.json"
    file.write_text(json.dumps(content))


def _yolo(root, split, pictures):
    _save(root / "images" / split, pictures)
    (root / "labels" / split).mkdir(parents=True)
    for stem, (_, objects) in pictures.items():
        lines = [
            f"{label} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} {(x1 - x0) / WIDTH} "
            f"{(y1 - y0) / HEIGHT}"
            for label, (x0, y0, x1, y1) in objects
        ]
        (root / f"labels/{split}/{stem}.txt").write_text("\n".join(lines))
    file = root / "data.yaml"
    text = file.read_text() if file.exists() else f"names: [{', '.join(CLASSES)}]\n"
    file.write_text(f"{text}{'train' if split == 'all' else split}: images/{split}\n")


def _csv(root, split, pictures):
    _save(root / "images", pictures)
    rows = [
        f"{stem}.jpg,{','.join(map(str, box))},{CLASSES[label]}"
        for stem, (_, objects) in pictures.items()
        for label, box in objects
    ]
    (root / f"{split}.csv").write_text("\n".join(["file,x0,y0,x1,y1,class", *rows]))


def _mask(root, split, pictures):
    _save(root / "images", pictures)
    (root / "masks").mkdir(exist_ok=True)
    _list(root, split, pictures)
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)))
    for stem, (_, objects) in pictures.items():
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for label, (x0, y0, x1, y1) in objects:
            mask[y0:y1, x0:x1] = 1 + label
        Image.fromarray(mask).save(root / f"masks/{stem}.png")


WRITERS = {"voc": _voc, "coco": _coco, "yolo": _yolo, "csv": _csv, "mask": _mask}
