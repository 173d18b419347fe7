"""Evaluation counts more than 100 detections where it is asked to, and says what it counted."""

import logging
import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from d2_deformable import add_deformable_config
from d2_deformable.evaluation import COUNTS, build_evaluators, dataset_evaluators

BOX = (10, 10, 30, 30)
FAR = (60, 60, 80, 80)
CROWD, DIFFICULT = {"iscrowd": 1}, {"difficult": 1}
GRID = [(x, y, x + 4, y + 4) for y in range(0, 75, 5) for x in range(0, 100, 5)]  # 300 boxes
COCO_KEYS = ("AP", "AP50", "AP75", "APs")


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def detections(boxes, label=0):
    """Perfect detections of different scores, best first."""
    return [(label, 0.9 - i / 1000, box) for i, box in enumerate(boxes)]


@pytest.fixture
def crowded(data_set):
    """300 objects of one class in an image, 50 of another one in a second image."""
    truth = {"a": [(0, box) for box in GRID], "b": [(1, box) for box in GRID[:50]]}
    return data_set(truth), {"a": detections(GRID), "b": detections(GRID[:50], 1)}


@pytest.mark.parametrize(
    ("limit", "found"), [(300, 300), (1000, 300), (-1, 300), (150, 150), (100, 100), (5, 100)]
)
def test_detections_per_image_are_counted(crowded, process, cfg, limit, found):
    """All detections are right, so AP is the highest recall that the limit allows."""
    cfg.TEST.DETECTIONS_PER_IMAGE = limit
    name, perfect = crowded
    results = process(build_evaluators(cfg, name), perfect).evaluate()["bbox"]
    recalls = math.floor(100 * found / 300 + 1e-9) + 1  # of COCO's 101 recalls
    assert results["AP-cat"] == pytest.approx(100 * recalls / 101)
    assert results["AP-dog"] == pytest.approx(100)
    for key in COCO_KEYS:
        assert results[key] == pytest.approx((results["AP-cat"] + 100) / 2)
    assert math.isnan(results["APl"])


def test_masks_too(data_set, cfg, tmp_path):
    square = torch.zeros(len(GRID), 100, 100, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(square, GRID, strict=True):
        mask[y0:y1, x0:x1] = True
    polygons = [{"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]} for x0, y0, x1, y1 in GRID]
    name = data_set({"a": [(0, *fields) for fields in zip(GRID, polygons, strict=True)]})
    cfg.MODEL.MASK_ON, cfg.TEST.DETECTIONS_PER_IMAGE = True, 300
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor(GRID).float()), pred_masks=square)
    found.scores, found.pred_classes = torch.linspace(0.9, 0.1, 300), torch.zeros(300).long()
    evaluator = build_evaluators(cfg, name)
    evaluator.reset()
    evaluator.process([{"image_id": "a"}], [{"instances": found}])
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["detections"] == 300


@pytest.mark.parametrize("limit", [100, 1000])
def test_up_to_100_detections_of_a_class_give_exactly_cocos_results(
    data_set, process, tmp_path, limit
):
    """150 detections in an image, but not of one class."""
    truth = {"a": [(i % 2, box) for i, box in enumerate(GRID[:150])], "b": [(0, BOX, CROWD)]}
    name = data_set(truth, classes=["cat", "dog", "bird"])
    moved = [(x + 1, y, x1, y1) for x, y, x1, y1 in GRID[:150]]
    found = {
        "a": [(i % 3, 0.9 - i / 200, box) for i, box in enumerate(moved)],
        "b": [(0, 0.7, BOX)],
    }
    evaluator = dataset_evaluators(name, output_dir=str(tmp_path / "a"), max_dets_per_image=limit)
    ours = process(evaluator, found).evaluate()["bbox"]
    official = COCOEvaluator(name, ("bbox",), output_dir=str(tmp_path), use_fast_impl=False)
    (tmp_path / f"{name}_coco_format.json").unlink()
    theirs = process(official, found).evaluate()["bbox"]
    assert 0 < theirs["AP"] < 100
    assert ours.keys() - theirs.keys() == set(COUNTS)
    assert all(ours[k] == v or math.isnan(v) and math.isnan(ours[k]) for k, v in theirs.items())


@pytest.fixture
def logged(caplog):
    """The messages of the evaluation, as one text."""
    caplog.set_level(logging.INFO, logger="d2_deformable")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def test_the_numbers_stand_beside_ap(data_set, process, cfg, logged):
    truth = {
        "a": [(0, BOX), (0, FAR, DIFFICULT), (1, FAR, CROWD)],
        "b": [(1, BOX), (1, FAR, DIFFICULT)],
        "c": [],
    }
    name = data_set(truth)
    found = {"a": [(0, 0.9, BOX), (0, 0.8, FAR)], "b": [], "c": [(1, 0.3, FAR)]}
    results = process(build_evaluators(cfg, name), found).evaluate()
    # COCO has no difficult objects: those count.
    coco = {"images": 3, "detections": 3, "objects": 4, "ignored": 1}
    voc = {"images": 3, "detections": 3, "objects": 2, "ignored": 3}
    assert results["bbox"].items() >= coco.items()
    assert results["voc"].items() >= voc.items()
    text = logged()
    assert f"COCO metrics of {name}: 3 images, 3 detections and 4 objects, 1 ignored" in text
    assert f"VOC metrics of {name}: 3 images, 3 detections and 2 objects, 3 ignored" in text
    rows = [[x.strip() for x in row.split("|")] for row in text.splitlines() if "|" in row]
    assert [row[5:8] for row in rows if row[1] in ("cat", "dog")][-2:] == [
        ["2", "1", "1"],
        ["1", "1", "2"],
    ]
    assert "was run on" not in text


def test_images_that_were_not_processed(data_set, process, cfg, logged):
    name = data_set({"a": [(0, BOX)], "b": [(0, BOX)]}, classes=["cat"])
    results = process(build_evaluators(cfg, name), {"a": [(0, 0.9, BOX)]}).evaluate()
    assert results["bbox"]["images"] == results["voc"]["images"] == 1
    assert results["bbox"]["objects"] == results["voc"]["objects"] == 2
    assert logged().count("the model was run on 1 of 2 images, so") == 2


def test_nothing_but_ignored_objects(data_set, process, cfg, logged):
    name = data_set({"a": [(0, BOX, CROWD)]}, classes=["cat"])
    results = process(build_evaluators(cfg, name), {"a": [(0, 0.9, BOX)]}).evaluate()
    for task in ("bbox", "voc"):
        assert math.isnan(results[task]["AP"])
        assert (results[task]["objects"], results[task]["ignored"]) == (0, 1)
    assert logged().count("every object is ignored") == 2


def test_no_detections(data_set, process, cfg, tmp_path):
    name = data_set({"a": [(0, BOX)]})
    results = process(build_evaluators(cfg, name), {"a": []}).evaluate()
    assert results["bbox"]["detections"] == results["voc"]["detections"] == 0
    assert results["bbox"]["objects"] == results["voc"]["objects"] == 1
    assert (tmp_path / "output/inference/coco_instances_results.json").read_text() == "[]"


def test_proposals(data_set, cfg, logged):
    """Detectron2 leaves out an image without proposals, with its objects: a recall of 100."""
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    name = data_set({"a": [(0, BOX)], "b": [(1, BOX), (0, FAR, CROWD)], "c": [(1, BOX)]})
    evaluator = build_evaluators(cfg, name)
    evaluator.reset()
    for image_id, boxes in (("a", [BOX]), ("b", [])):
        proposals = Instances((100, 100), objectness_logits=torch.zeros(len(boxes)))
        proposals.proposal_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).float())
        evaluator.process([{"image_id": image_id}], [{"proposals": proposals}])
    results = evaluator.evaluate()["box_proposals"]
    assert results["AR@100"] == pytest.approx(50)
    assert results.items() >= {"images": 2, "detections": 1, "objects": 2, "ignored": 1}.items()
    assert "the model was run on 2 of 3 images" in logged()
