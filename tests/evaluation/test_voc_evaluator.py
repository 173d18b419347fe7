import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

from d2_deformable.evaluation import COUNTS, VOCEvaluator
from d2_deformable.evaluation.voc import THRESHOLDS, average_precision, pairwise_iou

BOX = (10, 10, 30, 30)
FAR = (60, 60, 80, 80)


def evaluate(process, name, detections, metric="area", **kwargs):
    results = process(VOCEvaluator(name, metric, **kwargs), detections).evaluate()["voc"]
    return {key: value for key, value in results.items() if key not in COUNTS}


@pytest.mark.parametrize(
    ("true", "positives", "area", "eleven"),
    [
        ([True], 1, 1, 1),
        ([], 2, 0, 0),
        ([False, False], 2, 0, 0),
        # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: envelope 1 to .5, then 2/3
        ([True, False, True], 2, 5 / 6, (6 + 5 * 2 / 3) / 11),
        # never complete: recall ends at 1/4
        ([True, False], 4, 1 / 4, 3 / 11),
        # the envelope lifts the first precision of 1/2 to 2/3
        ([False, True, True], 2, 2 / 3, 2 / 3),
        # recall 3/10 does not reach the devkit's 0.30000000000000004
        ([True] * 3, 10, 3 / 10, 3 / 11),
    ],
)
def test_average_precision(true, positives, area, eleven):
    true = np.array(true, bool)
    assert average_precision(true, positives, "area") == pytest.approx(area, abs=1e-15)
    assert average_precision(true, positives, "07") == pytest.approx(eleven, abs=1e-15)


def test_pairwise_iou():
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 5], [20, 20, 30, 40.0]])
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 30, 30, 50], [5, 5, 5, 5.0]])
    expected = [[1, 1 / 3, 0, 0], [0, 0, 0, 0], [0, 0, 1 / 3, 0]]
    np.testing.assert_allclose(pairwise_iou(a, b), expected, rtol=1e-15)
    assert pairwise_iou(np.zeros((0, 4)), b).shape == (0, 4)


def test_hand_made_case(data_set, process):
    name = data_set({"a": [(0, BOX), (0, FAR), (1, BOX)], "b": [(0, BOX)]})
    near = (10, 10, 30, 25)  # IoU .75
    detections = {
        "a": [
            (0, 0.9, near),
            (0, 0.8, BOX),  # a duplicate, although it fits better
            (0, 0.4, FAR),
            (1, 0.3, FAR),  # the other class's object
        ],
        "b": [(0, 0.7, (12, 10, 30, 30))],  # IoU .9
    }
    results = evaluate(process, name, detections)
    # cat at .5 and .7: true, false, true, true of 3
    cat = (1 + 3 / 4 + 3 / 4) / 3 * 100
    # cat at .75 and .8 to .9: the first two swap roles, since IoU must exceed the threshold. At .9
    # the hit of IoU .9 is lost. Two hits are left, also at .95: false, true, false, true
    at_75, at_95 = (3 / 4 * 3) / 3 * 100, (1 / 2 + 1 / 2) / 3 * 100
    mean = (5 * cat + 3 * at_75 + 2 * at_95) / 10
    assert results == {
        "AP": pytest.approx(mean / 2),
        "AP50": pytest.approx(cat / 2),
        "AP70": pytest.approx(cat / 2),
        "AP50-cat": pytest.approx(cat),
        "AP50-dog": 0,
    }
    assert list(results)[:3] == ["AP", "AP50", "AP70"]


def test_each_detection_is_compared_with_its_best_ground_truth_only(data_set, process):
    shifted = (14, 10, 34, 30)  # IoU with BOX 2/3
    name = data_set({"a": [(0, BOX), (0, shifted)]})
    # Both overlap BOX most; the second also overlaps `shifted` by .6 but is a duplicate.
    detections = {"a": [(0, 0.9, BOX), (0, 0.8, (11, 10, 31, 30))]}
    results = evaluate(process, name, detections)
    assert results["AP50"] == pytest.approx(50)


@pytest.mark.parametrize("flag", ["difficult", "iscrowd"])
def test_ignored_ground_truth(data_set, process, flag):
    name = data_set({"a": [(0, BOX), (0, FAR, {flag: 1})]}, classes=["cat"])
    both = {"a": [(0, 0.9, FAR), (0, 0.85, FAR), (0, 0.8, BOX)]}
    assert evaluate(process, name, both)["AP50"] == 100
    assert evaluate(process, name, {"a": [(0, 0.9, FAR)]})["AP50"] == 0


def test_iou_equal_to_the_threshold_is_no_match(data_set, process):
    name = data_set({"a": [(0, (0, 0, 10, 10))]}, classes=["cat"])
    assert evaluate(process, name, {"a": [(0, 0.9, (0, 0, 10, 5))]})["AP50"] == 0
    assert evaluate(process, name, {"a": [(0, 0.9, (0, 0, 10, 5.001))]})["AP50"] == 100


def test_scores_are_compared_at_full_precision(data_set, process):
    name = data_set({"a": [(0, BOX)]}, classes=["cat"])
    detections = {"a": [(0, 0.50001, FAR), (0, 0.50002, BOX)]}
    assert evaluate(process, name, detections)["AP50"] == 100


def test_classes_without_ground_truth_are_left_out(data_set, process, tmp_path):
    name = data_set({"a": [(0, BOX)]})
    detections = {"a": [(0, 0.9, BOX), (1, 0.9, BOX)]}
    results = evaluate(process, name, detections, output_dir=str(tmp_path / "new"))
    assert math.isnan(results.pop("AP50-dog"))
    assert results == {"AP": 100, "AP50": 100, "AP70": 100, "AP50-cat": 100}
    content = json.loads((tmp_path / f"new/voc_results_{name}.json").read_text())
    assert content["metric"] == "area"
    assert content["iou_thresholds"] == list(THRESHOLDS)
    assert content["ap"] == {"cat": [100] * 10, "dog": [None] * 10}


@pytest.mark.parametrize("metric", ["area", "07"])
def test_images_without_detections_count(data_set, process, metric):
    name = data_set({"a": [(0, BOX)], "b": [(0, BOX)], "c": []}, classes=["cat"])
    results = evaluate(process, name, {"b": [], "c": []}, metric)
    assert results == {"AP": 0, "AP50": 0, "AP70": 0, "AP50-cat": 0}
    results = evaluate(process, name, {"b": [(0, 0.9, BOX)]}, metric)
    assert results["AP50"] == pytest.approx({"area": 50, "07": 600 / 11}[metric])


def test_no_input_gives_no_results(data_set, process):
    evaluator = VOCEvaluator(data_set({"a": [(0, BOX)]}))
    assert evaluator.evaluate() == {}
    process(evaluator, {"a": [(0, 0.9, BOX)]}).reset()
    assert evaluator.evaluate() == {}


def test_empty_ground_truth(data_set, process):
    evaluator = process(VOCEvaluator(data_set({"a": []})), {"a": [(0, 0.9, BOX)]})
    assert evaluator.evaluate() == {}


def test_errors(data_set, process):
    name = data_set({"a": [(0, BOX)]})
    with pytest.raises(ValueError, match="one of area, 07; got '2007'"):
        VOCEvaluator(name, "2007")
    with pytest.raises(ValueError, match="image_id 'z', which the data set lacks"):
        evaluate(process, name, {"z": []})
    message = "class 2 was predicted, but the data set has 2 classes: set MODEL.ROI_HEADS.NUM_CLASS"
    with pytest.raises(ValueError, match=message):
        evaluate(process, name, {"a": [(2, 0.5, BOX)]})


def test_processes_are_gathered(data_set, process, monkeypatch):
    """Equal scores are ranked in the order of the data set, whichever process saw which image."""
    name = data_set({"a": [(0, BOX)], "b": [(0, BOX)]}, classes=["cat"])
    detections = {"a": [(0, 0.5, FAR)], "b": [(0, 0.5, BOX)]}
    alone = evaluate(process, name, detections)
    assert alone["AP50"] == 25
    evaluator = process(VOCEvaluator(name), {"b": detections["b"]})
    other = process(VOCEvaluator(name), {"a": detections["a"]})._predictions
    monkeypatch.setattr(comm, "gather", lambda mine, dst: [mine, other])
    gathered = evaluator.evaluate()["voc"]
    assert gathered.pop("images") == gathered.pop("detections") == 2
    assert gathered.items() >= alone.items()
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def random_case(seed, classes=3, images=12):
    """Integer ground truth, as in VOC, a fifth of it difficult; noisy and false detections."""
    rng = np.random.default_rng(seed)
    truth, detections = {}, {}
    for i in range(images):
        corner = rng.integers(0, 50, (rng.integers(0, 6), 2))
        boxes = np.hstack([corner, corner + rng.integers(5, 50, corner.shape)])
        labels = rng.integers(0, classes, len(boxes))
        truth[f"im{i}"] = [
            (int(c), box.tolist(), {"difficult": int(rng.random() < 0.2)})
            for c, box in zip(labels, boxes, strict=True)
        ]
        found = [
            (
                int(c),
                float(np.float32(rng.random())),
                (box + rng.normal(0, 2.5, 4)).astype(np.float32),
            )
            for c, box in zip(labels, boxes, strict=True)
            for _ in range(rng.integers(0, 4))
        ]
        false = [
            (
                int(rng.integers(classes)),
                float(np.float32(rng.random())),
                np.float32([5, 5, 40, 40]),
            )
            for _ in range(rng.integers(0, 3))
        ]
        detections[f"im{i}"] = [(c, s, box.tolist()) for c, s, box in found + false]
    return truth, detections


def brute_force(truth, detections, c, threshold, metric):
    """The devkit's loop over single detections, in exact fractions where that matters."""
    found = sorted(
        ((s, i, box) for i, items in detections.items() for k, s, box in items if k == c),
        key=lambda item: -item[0],
    )
    objects = {i: [o for o in items if o[0] == c] for i, items in truth.items()}
    positives = sum(not o[2]["difficult"] for items in objects.values() for o in items)
    taken, outcome = set(), []
    for _, image, (x0, y0, x1, y1) in found:
        best, best_iou = None, threshold
        for j, (_, (a0, b0, a1, b1), _) in enumerate(objects[image]):
            w, h = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
            inter = w * h if w > 0 and h > 0 else 0
            iou = inter / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - inter)
            if iou > best_iou:
                best, best_iou = j, iou
        if best is None or (image, best) in taken:
            outcome.append(False)
        elif not objects[image][best][2]["difficult"]:
            taken.add((image, best))
            outcome.append(True)
    curve = []
    for n in range(1, len(outcome) + 1):
        curve.append((sum(outcome[:n]) / positives, sum(outcome[:n]) / n))
    if metric == "07":
        best = [max([p for r, p in curve if r >= t], default=0) for t in np.arange(0, 1.1, 0.1)]
        return sum(best) / 11
    area, last = 0, 0
    for recall, _ in curve:
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return area


@pytest.mark.parametrize("metric", ["area", "07"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force(data_set, process, seed, metric):
    truth, detections = random_case(seed)
    name = data_set(truth, classes=["a", "b", "c"])
    results = evaluate(process, name, detections, metric)
    expected = np.array(
        [[brute_force(truth, detections, c, t, metric) for t in THRESHOLDS] for c in range(3)]
    )
    assert 0.05 < expected[:, 0].min() < expected[:, 0].max() < 0.95, "a case worth comparing"
    assert results["AP"] == pytest.approx(100 * expected.mean())
    assert results["AP50"] == pytest.approx(100 * expected[:, 0].mean())
    assert results["AP70"] == pytest.approx(100 * expected[:, 4].mean())
    assert results["AP50-b"] == pytest.approx(100 * expected[1, 0])


def write_voc_folder(root, truth, classes):
    """Write the data set in VOC's layout, with inclusive 1-based corners."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text("\n".join(truth))
    for image_id, objects in truth.items():
        (root / f"JPEGImages/{image_id}.jpg").touch()
        xml = "<size><width>100</width><height>100</height></size>"
        for c, (x0, y0, x1, y1), flags in objects:
            xml += (
                f"<object><name>{classes[c]}</name><pose>x</pose><truncated>0</truncated>"
                f"<difficult>{flags['difficult']}</difficult><bndbox><xmin>{x0 + 1}</xmin>"
                f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            )
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{xml}</annotation>")


@pytest.mark.parametrize(("year", "metric"), [(2007, "07"), (2012, "area")])
def test_equals_detectron2_on_a_voc_folder(process, tmp_path, year, metric):
    """Detectron2 has inclusive boxes with "+ 1", and reads files that hold every digit."""
    classes = ["a", "b", "c"]
    truth, detections = random_case(seed=7)
    write_voc_folder(tmp_path, truth, classes)
    name = f"evaluated_voc_{year}"
    register_pascal_voc(name, str(tmp_path), "test", year, classes)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"  # like Detectron2's own data sets
    try:
        results = evaluate(process, name, detections, metric)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    for c, label in enumerate(classes):
        lines = [
            f"{image_id} {s!r} {x0 + 1!r} {y0 + 1!r} {x1!r} {y1!r}"
            for image_id, items in detections.items()
            for k, s, (x0, y0, x1, y1) in items
            if k == c
        ]
        (tmp_path / f"{label}.txt").write_text("\n".join(lines))

    def voc_ap(label, threshold):
        return voc_eval(
            str(tmp_path / "{}.txt"),
            str(tmp_path / "Annotations/{}.xml"),
            str(tmp_path / "ImageSets/Main/test.txt"),
            label,
            threshold,
            use_07_metric=year == 2007,
        )[2]

    expected = np.array([[voc_ap(label, t) for t in THRESHOLDS] for label in classes])
    assert results["AP"] == pytest.approx(100 * expected.mean())
    assert results["AP50"] == pytest.approx(100 * expected[:, 0].mean())
    assert results["AP70"] == pytest.approx(100 * expected[:, 4].mean())
