"""Errors of a detector, counted by hand."""

import json
import time

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from d2_deformable.analysis import draw_errors, errors
from d2_deformable.analysis.errors import Found

LEFT, RIGHT, SHIFTED = [0, 0, 10, 10], [20, 0, 40, 20], [2, 0, 12, 10]  # IoU of first and last: 2/3
NAMES = ["disc", "star"]


def boxes(*rows):
    """Rows (image, box, class, score[, ignored])."""
    images, corners, classes, scores, *ignored = zip(*rows)
    return Found(
        np.array(images),
        np.array(corners, np.float32),
        np.array(classes),
        np.array(scores, np.float32),
        np.array(ignored[0] if ignored else [False] * len(rows)),
    )


OBJECTS = boxes(
    (0, LEFT, 0, 1, False),
    (0, RIGHT, 1, 1, False),
    (1, LEFT, 0, 1, False),
    (1, RIGHT, 1, 1, True),
)
DETECTIONS = boxes(
    (0, SHIFTED, 0, 0.6),  # the second of one object
    (0, LEFT, 0, 0.9),
    (0, RIGHT, 0, 0.8),  # a star taken for a disc
    (1, RIGHT, 1, 0.7),  # on an ignored object
    (1, [60, 60, 70, 70], 1, 0.3),
)


def test_matching():
    matches = errors.match(DETECTIONS, OBJECTS)
    assert matches.object_of.tolist() == [-1, 0, -1, -1, -1]
    assert matches.detection_of.tolist() == [1, -1, -1, -1]
    assert matches.detections.ignored.tolist() == [False, False, False, True, False]


def test_precision_and_recall():
    matches = errors.match(DETECTIONS, OBJECTS)
    precision, recall = errors.precision_and_recall(matches, 0)
    assert precision == pytest.approx([1, 1 / 2, 1 / 3]) and recall == pytest.approx([0.5] * 3)
    assert len(errors.precision_and_recall(matches, 2)[0]) == 0


def test_confusion():
    counts = errors.confusion(DETECTIONS, OBJECTS, 2, threshold=0.5)
    # discs: one found, one missed; the star was called a disc; a second box of the first disc.
    assert counts.tolist() == [[1, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert errors.confusion(DETECTIONS, OBJECTS, 2, threshold=0.2)[2].tolist() == [1, 1, 0]


def test_the_worst():
    matches = errors.match(DETECTIONS, OBJECTS)
    assert errors.worst_misses(matches, 0.5, 5) == [1, 2]  # the larger first
    assert errors.worst_misses(matches, 0.95, 5) == [1, 0, 2]
    assert errors.worst_false_positives(matches, 2) == [2, 0]


def test_without_detections_every_object_is_missed():
    nothing = Found(*(getattr(DETECTIONS, name)[:0] for name in Found.__annotations__))
    matches = errors.match(nothing, OBJECTS)
    assert errors.worst_misses(matches, 0.5, 5) == [1, 0, 2]
    assert errors.confusion(nothing, OBJECTS, 2, 0.5)[:, 2].tolist() == [2, 1, 0]


@pytest.fixture
def records(tmp_path):
    for i in range(2):
        Image.new("RGB", (80, 80), (200, 90, 60)).save(tmp_path / f"{i}.png")
    annotation = {"bbox": LEFT, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "difficult": 1}
    return [
        {"file_name": str(tmp_path / "0.png"), "image_id": 7, "annotations": [annotation]},
        {"file_name": str(tmp_path / "1.png"), "image_id": 9, "annotations": []},
    ]


def test_reading(records, tmp_path):
    MetadataCatalog.get("errors_test").thing_dataset_id_to_contiguous_id = {5: 1}
    try:
        row = {"image_id": 9, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}
        file = tmp_path / "results.json"
        file.write_text(json.dumps([row]))
        found = errors.read_predictions(file, records, "errors_test")
        assert found.images.tolist() == [1] and found.classes.tolist() == [1]
        assert found.boxes.tolist() == [[1, 2, 4, 6]]
        file.write_text(json.dumps([row | {"image_id": 8}]))
        with pytest.raises(ValueError, match="predictions of another data set than errors_test"):
            errors.read_predictions(file, records, "errors_test")
    finally:
        MetadataCatalog.pop("errors_test")
    objects = errors.annotated_objects(records)
    assert objects.ignored.tolist() == [True] and objects.classes.tolist() == [1]


def test_pictures(records):
    matches = errors.match(DETECTIONS, OBJECTS)
    counts = errors.confusion(DETECTIONS, OBJECTS, 2, 0.5)
    curves = draw_errors.draw_precision_recall(matches, NAMES)
    legend = curves.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["disc (2)", "star (1)"]
    matrix = draw_errors.draw_confusion(counts, NAMES)
    assert sorted(text.get_text() for text in matrix.axes[0].texts) == ["1"] * 4
    crops = draw_errors.draw_crops(records, DETECTIONS, [0, 2, 1, 4, 3], NAMES, "red")
    shown = [ax.texts[0].get_text() for ax in crops.axes if ax.texts]
    assert shown == ["disc 60%", "disc 80%", "disc 90%", "star 30%", "star 70%"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}{",
        "5",
        "[5]",
        "[[]]",
        '[{"image_id": 1}]',
        '[{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3], "score": 0.5}]',
        '[{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, NaN], "score": 0.5}]',
        '[{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 1' + "0" * 400 + "}]",
        '[{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": [1, 2]}]',
        '[{"image_id": {}, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[{"image_id": 1, "category_id": -1, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_of_results(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="results.json (is not COCO's list|holds predict)"):
        errors.read_predictions(file, [{"image_id": 1}], "errors_test", 2)


def test_matching_takes_linear_time():
    """Many images; each was searched for among all boxes."""
    number = 20_000
    images = np.arange(number)
    boxes = np.tile(np.float32(LEFT), (number, 1))
    zeros = np.zeros(number, int)
    found = Found(images, boxes, zeros, np.ones(number, np.float32), zeros.astype(bool))
    start = time.process_time()
    matches = errors.match(found, found)
    assert time.process_time() - start < 25
    assert matches.object_of.tolist() == images.tolist()
