"""AP from the counts in a record, against pycocotools on the same detections."""

import contextlib
import io

import numpy as np
import pytest
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.learning.detection import match_detections
from benchmarks.learning.endpoints import value

CLASSES, IMAGES = 4, 30


@pytest.fixture
def drawn():
    """Detections in COCO's result format, and the annotations of each image."""
    rng = np.random.default_rng(0)
    found, truth = [], []
    for image in range(IMAGES):
        truth.append([])
        for _ in range(rng.integers(4)):
            box = np.concatenate([rng.uniform(0, 60, 2), rng.uniform(10, 40, 2)])
            label = int(rng.integers(CLASSES - 1))  # the last class has only detections
            truth[-1].append(
                {"bbox": box.tolist(), "bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
            )
            for _ in range(rng.integers(3)):
                moved = (box + rng.normal(0, 3, 4)).clip(1).tolist()
                label = label if rng.random() < 0.8 else int(rng.integers(CLASSES))
                score = round(float(rng.random()), 4)
                found.append(
                    {"image_id": image, "category_id": label, "bbox": moved, "score": score}
                )
    return found, truth


def by_pycocotools(found, truth, images) -> list[float]:
    """[AP, AP at IoU 0.7] where the k-th image is images[k]."""
    annotations, results = [], []
    for k, image in enumerate(images):
        for one in truth[image]:
            width, height = one["bbox"][2:]
            annotations.append(
                one | {"id": len(annotations) + 1, "image_id": k, "iscrowd": 0}
                | {"area": width * height}
            )  # fmt: skip
        results += [one | {"image_id": k} for one in found if one["image_id"] == image]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": k} for k in range(len(images))],
            "categories": [{"id": k} for k in range(CLASSES)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = precision[..., [(p > -1).all() for p in precision.transpose(2, 0, 1)]]
    return [100 * precision.mean(), 100 * precision[4].mean()]


def test_average_precision_is_that_of_coco(drawn):
    counts = match_detections(*drawn, CLASSES)
    expected = by_pycocotools(*drawn, range(IMAGES))
    assert [value("AP", counts), value("AP70", counts)] == pytest.approx(expected)
    assert 5 < expected[1] < 95


def test_images_may_be_drawn_several_times(drawn):
    rng = np.random.default_rng(1)
    images = np.sort(rng.integers(IMAGES, size=IMAGES))
    weights = np.bincount(images, minlength=IMAGES)
    counts = match_detections(*drawn, CLASSES)
    expected = by_pycocotools(*drawn, images.tolist())
    found = [value("AP", counts, weights), value("AP70", counts, weights)]
    # Detections of equal score, such as those of an image drawn twice, have no defined order.
    assert found == pytest.approx(expected, abs=0.5)


def test_without_detections(drawn):
    assert value("AP", match_detections([], drawn[1], CLASSES)) == 0
