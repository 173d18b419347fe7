"""The loaders on real photographs, if $DETECTRON2_DATASETS has them."""

import os
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from d2_deformable import add_deformable_config
from d2_deformable.data import DatasetMapper
from d2_deformable.data.coco import COCOFormat
from d2_deformable.data.voc import VOCFormat

CARDS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "cards"
pytestmark = pytest.mark.skipif(
    not CARDS.is_dir(), reason="needs the cards data set under $DETECTRON2_DATASETS"
)
CLASSES = ("nine", "ten", "jack", "queen", "king", "ace")


def test_both_formats_agree():
    for split, images, boxes in (("train", 296, 527), ("val", 67, 143)):
        voc = VOCFormat(CARDS, split=split, classes=CLASSES).load(f"cards_voc_{split}")
        coco = COCOFormat(CARDS, "JPEGImages", f"instances_{split}.json").load(
            f"cards_coco_{split}"
        )
        coco = {record["file_name"]: record for record in coco}
        assert len(voc) == len(coco) == images
        assert sum(len(record["annotations"]) for record in voc) == boxes
        for record in voc:
            twin = coco[record["file_name"]]
            assert (record["width"], record["height"]) == (twin["width"], twin["height"])
            assert _boxes(record) == _boxes(twin)


def _boxes(record):
    return sorted(
        (a["category_id"], *BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))
        for a in record["annotations"]
    )


def test_sizes_are_those_of_the_images():
    cfg = get_cfg()
    add_deformable_config(cfg)
    mapper = DatasetMapper(cfg, False)
    for record in VOCFormat(CARDS, split="val", classes=CLASSES).load("cards_sizes")[:10]:
        mapper(record)  # raises where the size in the annotation is wrong
    assert "cards_sizes" not in DatasetCatalog
