"""Annotations of every format: a data set, whose images lie in its folder, or one sentence.

The first byte chooses the format, the rest is the file.
"""

import json
import math
import os

from d2_deformable.data.checks import AnnotationReport
from d2_deformable.data.coco import COCOFormat
from d2_deformable.data.masks import MaskFormat
from d2_deformable.data.table import CSVFormat
from d2_deformable.data.voc import VOCFormat
from d2_deformable.data.yolo import YOLOFormat

from ._files import FOLDER, SIZE, picture, refused_in_a_sentence

ROOT = FOLDER / "root"
picture(ROOT / "images/a.png")
picture(FOLDER / "outside.png")
(FOLDER / "outside.xml").write_text("<annotation/>")
(FOLDER / "outside.txt").write_text("images/a.png\n")
picture(ROOT / "labels/a.png").rename(ROOT / "labels/mask.png")

NAMES = ("bolt", "nut")
COCO = COCOFormat(ROOT, "images", "labels/all.json")
VOC = VOCFormat(ROOT, "images", "labels", "", NAMES)
LISTED = VOCFormat(ROOT, "images", "labels", "list.txt", NAMES)
YOLO = YOLOFormat(ROOT, "data.yaml", "train")
LABELS = YOLOFormat(ROOT, "", "images", NAMES)
CSV = CSVFormat(ROOT, "images", "labels/all.csv")
MASKS = MaskFormat(ROOT, "images", "labels", "list.txt", NAMES)
# (format, its file)
FORMATS = (
    (COCO, "labels/all.json"),
    (VOC, "labels/a.xml"),
    (LISTED, "list.txt"),
    (YOLO, "data.yaml"),
    (LABELS, "labels/a.txt"),
    (CSV, "labels/all.csv"),
    (MASKS, "list.txt"),
)


def one_input(data: bytes) -> None:
    if not data:
        return
    form, name = FORMATS[data[0] % len(FORMATS)]
    file = ROOT / name
    file.write_bytes(data[1:])
    try:
        with refused_in_a_sentence(file):
            for record in form.load("fuzzed", AnnotationReport()):
                _check(record)
    finally:
        file.unlink()


def _check(record: dict) -> None:
    for key in ("file_name", "sem_seg_file_name"):
        if key in record:
            path = os.path.realpath(record[key])
            assert path.startswith(os.path.realpath(ROOT) + os.sep), f"leads out: {record[key]}"
    assert record["width"] > 0 and record["height"] > 0
    for annotation in record.get("annotations", ()):
        assert all(map(math.isfinite, annotation["bbox"]))
        assert annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0


def _seed(number: int, text: str) -> bytes:
    return bytes([number]) + text.encode()


_IMAGE = {"id": 1, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1]}
_OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5.5, "3"], "iscrowd": 0}
_SHAPES = (
    [[1, 1, 5, 1, 5, 4]],
    {"size": [8, 16], "counts": [100, 28]},
    {"size": [8, 16], "counts": "T3l0"},
    {"size": 5, "counts": "0"},
    [[0, 0, 1e9, 1, 1, 1e9]],
)


def _coco(images=(_IMAGE,), annotations=(_OBJECT,), **others) -> bytes:
    content = {"images": list(images), "annotations": list(annotations)}
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    return _seed(0, json.dumps({**content, "categories": categories, **others}))


_XML = (
    "<annotation><filename>a.png</filename><size><width>16</width><height>8</height></size>{}"
    "<object><name>nut</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
    "<xmax>9</xmax><ymax>7</ymax></bndbox></object></annotation>"
)
_BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol" * 10}">' for i in range(10))

SEEDS = [
    _coco(),
    *(_coco(annotations=[{**_OBJECT, "segmentation": shape}]) for shape in _SHAPES),
    _coco(annotations=[{**_OBJECT, "keypoints": [1, 2, 2]}]),
    _coco(images=[{**_IMAGE, "file_name": "../../outside.png"}]),
    _coco(images=[{**_IMAGE, "file_name": str(FOLDER / "outside.png")}]),
    _coco(images=[{**_IMAGE, "file_name": "a" * 300 + ".png"}]),
    _coco(images=[{**_IMAGE, "width": 10**9, "height": 10**9}]),
    _coco(images=[{**_IMAGE, "id": 10**400}]),
    _seed(3, "path: /elsewhere\nnames: {0: bolt, 1: nut}"),
    _seed(0, "[" * 100_000),
    _seed(0, '{"images": ' + "9" * 5000 + "}"),
    _seed(1, _XML.format("")),
    _seed(1, f"<!DOCTYPE annotation [{_BOMB}]>" + _XML.format("<x>&e9;</x>")),
    _seed(1, "<a>" * 100_000),
    _seed(2, "a\n"),
    _seed(2, "../../outside\n"),
    _seed(2, "a/\n"),
    _seed(2, "a" * 300),
    _seed(3, "train: images\nnc: 2\nnames: [bolt, nut]\n"),
    _seed(3, "path: ..\ntrain: [outside.txt, outside.png]\nnames: {0: bolt, 1: nut}\n"),
    _seed(3, "a: &a [x, x]\nb: &b [*a, *a]\nnames: &c [*b, *b, *b, *b, *b, *b]\ntrain: *c\n"),
    _seed(3, "train: images\nnames: &a [*a]\n"),
    _seed(3, "train: 2001-99-99\nnames: !!int ''\n"),
    _seed(4, "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n"),
    _seed(4, "1e400 nan 0.5 0.2 0.2\n"),
    _seed(5, "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,9,7,nut\n"),
    _seed(5, "a.png,1,2,9,7,bolt\n../../outside.png,1,2,9,7,nut\n"),
    _seed(5, f"a.png,1,2,9,7,{'x' * 200_000}\n"),
    _seed(6, "mask\na\n"),
]
