"""Errors of a detector on a data set: precision and recall, confusions, misses, false positives.

They are computed from the predictions that COCO evaluation leaves in OUTPUT_DIR/inference.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from ..utils.text import one_line

PREDICTIONS = Path("inference/coco_instances_results.json")
IOU = 0.5


@dataclass(frozen=True)
class Found:
    """Boxes of a data set, of D detections or M objects.

    images: index of the image of each, (D,).
    boxes: x0, y0, x1, y1 in pixels of the image, (D, 4).
    classes: index of the class, (D,).
    scores: of detections, (D,); of objects, 1.
    ignored: objects that count neither as found nor as missed (crowds, `difficult`), and detections
        on them, (D,) bool.
    """

    images: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Matches:
    """Detections, objects, and which belong together at an IoU of 0.5.

    object_of: index of the object that each detection found, (D,); -1 for none.
    detection_of: index of the detection that found each object, (M,); -1 for none.
    """

    detections: Found
    objects: Found
    object_of: np.ndarray
    detection_of: np.ndarray


def read_predictions(file, records, dataset_name: str, num_classes: int = 100_000) -> Found:
    """Read COCO's results file of a data set.

    Args:
        records: of the data set.
        num_classes: of the network.

    Raises:
        ValueError: the file is damaged, or of other images or classes.
    """
    ids = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    ids = ids or {index: index for index in range(num_classes)}
    index_of = {record["image_id"]: index for index, record in enumerate(records)}
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
        columns = [[row[key] for row in rows] for key in ("image_id", "category_id")]
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(len(rows), 4)
        scores = np.array([row["score"] for row in rows], np.float32).reshape(len(rows))
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("a number is not finite")
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not COCO's list of results ({type(error).__name__}: {one_line(error)}). "
            "Evaluate again"
        ) from error
    try:
        images = [index_of[i] for i in columns[0]]
        classes = [ids[i] for i in columns[1]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} holds predictions of another data set than {dataset_name}: it has no "
            f"{one_line(error)}"
        ) from error
    boxes[:, 2:] += boxes[:, :2]
    return Found(
        np.array(images, int), boxes, np.array(classes, int), scores, np.zeros(len(rows), bool)
    )


def annotated_objects(records) -> Found:
    """Collect the objects of a data set."""
    images, boxes, classes, ignored = [], [], [], []
    for index, record in enumerate(records):
        for one in record.get("annotations", ()):
            images.append(index)
            boxes.append(BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS))
            classes.append(one["category_id"])
            ignored.append(bool(one.get("iscrowd") or one.get("difficult")))
    return Found(
        np.array(images, int),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, int),
        np.ones(len(images), np.float32),
        np.array(ignored, bool),
    )


def match(detections: Found, objects: Found, same_class: bool = True) -> Matches:
    """Give each object the detection with the highest score that overlaps it by an IoU of 0.5.

    As in VOC, a detection is compared only with the object that it overlaps most; of several
    detections of one object, those with lower scores are false positives.

    Args:
        same_class: compare boxes of one class only.
    """
    object_of = np.full(len(detections), -1)
    detection_of = np.full(len(objects), -1)
    ignored = np.zeros(len(detections), bool)
    order = np.argsort(-detections.scores, kind="stable")
    key_of = (lambda f: f.images * 100_000 + f.classes) if same_class else (lambda f: f.images)
    groups = _groups(np.arange(len(objects)), key_of(objects))
    for key, rows in _groups(order, key_of(detections)[order]).items():
        if key not in groups:
            continue
        columns = groups[key]
        boxes = (torch.from_numpy(f.boxes[i]) for f, i in ((detections, rows), (objects, columns)))
        best = pairwise_iou(*map(Boxes, boxes)).max(dim=1)
        for row, iou, column in zip(rows, best.values.tolist(), columns[best.indices.numpy()]):
            if iou < IOU:
                continue
            if objects.ignored[column]:
                ignored[row] = True
            elif detection_of[column] < 0:
                detection_of[column], object_of[row] = row, column
    counted = Found(
        detections.images, detections.boxes, detections.classes, detections.scores, ignored
    )
    return Matches(counted, objects, object_of, detection_of)


def _groups(indices: np.ndarray, keys: np.ndarray) -> dict[int, np.ndarray]:
    """{key: the `indices` (n,) that have it in `keys` (n,), in the same order}."""
    by_key = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[by_key], return_index=True)
    return dict(zip(found.tolist(), np.split(indices[by_key], starts[1:])))


def precision_and_recall(matches: Matches, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of a class over falling scores, two arrays between 0 and 1.

    Precision is made monotone, as for average precision. Both are empty without detections or
    objects of the class.
    """
    detections, objects = matches.detections, matches.objects
    mine = (detections.classes == label) & ~detections.ignored
    total = int(((objects.classes == label) & ~objects.ignored).sum())
    order = np.argsort(-detections.scores[mine], kind="stable")
    right = (matches.object_of[mine] >= 0)[order]
    if not (total and len(right)):
        return np.zeros(0), np.zeros(0)
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1], hits / total


def confusion(detections: Found, objects: Found, classes: int, threshold: float) -> np.ndarray:
    """Count (classes + 1, classes + 1): rows true classes, columns predicted ones.

    The last row holds detections of the background, the last column objects that were missed.
    Detections below `threshold` do not count; boxes are matched whatever their class.
    """
    keep = detections.scores >= threshold
    kept = Found(*(getattr(detections, name)[keep] for name in Found.__annotations__))
    matches = match(kept, objects, same_class=False)
    counts = np.zeros((classes + 1, classes + 1), int)
    for row, column in enumerate(matches.object_of):
        if column >= 0:
            counts[objects.classes[column], kept.classes[row]] += 1
        elif not matches.detections.ignored[row]:
            counts[classes, kept.classes[row]] += 1
    missed = (matches.detection_of < 0) & ~objects.ignored
    np.add.at(counts[:, classes], objects.classes[missed], 1)
    return counts


def worst_misses(matches: Matches, threshold: float, n: int) -> list[int]:
    """The `n` largest objects that no detection of at least `threshold` found; indices."""
    objects = matches.objects
    # The appended score is that of objects without a detection, whose index is -1.
    scores = np.append(matches.detections.scores, -1.0)[matches.detection_of]
    missed = np.flatnonzero((scores < threshold) & ~objects.ignored)
    width, height = (objects.boxes[missed, 2:] - objects.boxes[missed, :2]).T
    return missed[np.argsort(-width * height, kind="stable")][:n].tolist()


def worst_false_positives(matches: Matches, n: int) -> list[int]:
    """The `n` detections with the highest scores that found no object; indices."""
    detections = matches.detections
    wrong = np.flatnonzero((matches.object_of < 0) & ~detections.ignored)
    return wrong[np.argsort(-detections.scores[wrong], kind="stable")][:n].tolist()
