"""PASCAL VOC's average precision for every detection data set, at full precision.

Detectron2's evaluator reads VOC's own folders only, rounds scores to three digits and boxes to one,
and does not report AP70, the paper's second number.
"""

import json
import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from tabulate import tabulate

from ..data import load_flagged
from ..utils.text import count
from .counts import report_counts

METRICS = ("area", "07")
THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))
HEADLINES = ("AP", "AP50", "AP70")


class VOCEvaluator(DatasetEvaluator):
    """AP (mean over IoU .50:.05:.95), AP50 and AP70 by the rules of the VOC devkit.

    * Detections of a class are sorted by descending score over all images. Each is compared only
      with the ground truth of its image that it overlaps most. A match above the threshold is a
      true positive the first time and a false positive when repeated. It is not counted if that
      ground truth is `difficult` (or a crowd); such ground truth is no positive either.
    * A match needs an IoU above the threshold, as in the code released with the paper and in
      Detectron2; the devkit's Matlab code also accepts an IoU equal to it.
    * Boxes are continuous (x0, y0, x1, y1). The devkit's corners are inclusive pixels, hence its
      "+ 1". `FORMAT: voc`, like Detectron2, turns (xmin, ymin, xmax, ymax) into
      (xmin - 1, ymin - 1, xmax, ymax). This preserves every width and every IoU, so the numbers
      are comparable with published ones.
    * Classes without ground truth are NaN and left out of the means.

    The result also holds the numbers that `report_counts` describes; "ignored" are difficult
    objects and crowds. The table in the log has the numbers of each class.

    Args:
        dataset_name: a registered data set. Detectron2's own voc_* are read again from their XML,
            since its loader drops `difficult`.
        metric: "area" under the precision envelope (VOC 2010 and later) or "07" (11 points).
        output_dir: where to write voc_results_<dataset_name>.json; None writes nothing.
        distributed: gather from all processes; the main process returns the results.
    """

    def __init__(
        self,
        dataset_name: str,
        metric: str = "area",
        output_dir: str | None = None,
        distributed: bool = True,
    ):
        if metric not in METRICS:
            raise ValueError(f"the VOC metric must be one of {', '.join(METRICS)}; got {metric!r}")
        self._logger = logging.getLogger(__name__)
        self._name, self._metric = dataset_name, metric
        self._output_dir, self._distributed = output_dir, distributed
        self._dicts = load_flagged(dataset_name)
        self._classes = list(MetadataCatalog.get(dataset_name).thing_classes)
        self.reset()

    def reset(self):
        self._predictions = {}  # image_id -> (boxes (R, 4), scores (R,), classes (R,))

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            self._predictions[image["image_id"]] = (
                instances.pred_boxes.tensor.double().cpu().numpy(),
                instances.scores.double().cpu().numpy(),
                instances.pred_classes.cpu().numpy(),
            )

    def evaluate(self) -> dict:
        """Compute {"voc": {"AP", "AP50", "AP70", "AP50-<class>", ...}} in percent, with counts.

        The result is {} without predictions, or without ground truth (COCO's test-dev, for one,
        does not publish any).

        Raises:
            ValueError: the data set lacks an image_id or a class of the predictions.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = {key: value for part in gathered for key, value in part.items()}
        if not predictions:
            self._logger.warning("VOCEvaluator received no image of %s.", self._name)
            return {}
        if not any(record.get("annotations") for record in self._dicts):
            self._logger.warning(
                "No object is annotated in %s, so there is no VOC AP. If it should have "
                "annotations, check its annotation files.",
                self._name,
            )
            return {}

        table = 100 * _ap_table(self._dicts, predictions, len(self._classes), self._metric)
        at = [THRESHOLDS.index(0.5), THRESHOLDS.index(0.7)]
        rows = np.column_stack([_nan_mean(table, axis=1), table[:, at]])  # AP, AP50, AP70
        means = _nan_mean(rows, axis=0)
        numbers = _numbers(self._dicts, predictions, len(self._classes))
        self._logger.info(
            "VOC AP of %s (metric %s):\n%s",
            self._name,
            self._metric,
            tabulate(
                [
                    ("mean", *means, *numbers.sum(0)),
                    *(
                        (c, *row, *n)
                        for c, row, n in zip(self._classes, rows, numbers, strict=True)
                    ),
                ],
                headers=("class", *HEADLINES, "detections", "objects", "ignored"),
                tablefmt="pipe",
                floatfmt=".2f",
            ),
        )
        detections, objects, ignored = numbers.sum(0).tolist()
        counts = report_counts(
            f"VOC metrics of {self._name}",
            images=len(predictions),
            of_images=len(self._dicts),
            detections=detections,
            objects=objects,
            ignored=ignored,
        )
        if self._output_dir:
            self._write(table)
        results = OrderedDict(zip(HEADLINES, means.tolist(), strict=True))
        for label, ap50 in zip(self._classes, table[:, at[0]].tolist(), strict=True):
            results[f"AP50-{label}"] = ap50
        results.update(counts)
        return {"voc": results}

    def _write(self, table: np.ndarray) -> None:
        rows = [[None if np.isnan(ap) else ap for ap in row] for row in table.tolist()]
        content = {
            "metric": self._metric,
            "iou_thresholds": THRESHOLDS,
            "ap": dict(zip(self._classes, rows, strict=True)),
        }
        folder = Path(self._output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"voc_results_{self._name}.json").write_text(json.dumps(content, indent=1))


def _numbers(dicts, predictions: dict, num_classes: int) -> np.ndarray:
    """Numbers of detections, objects that count, and ignored objects of each class, (K, 3)."""
    truth = [_ground_truth(record) for record in dicts]
    classes = np.concatenate([classes for _, classes, _ in truth])
    ignored = np.concatenate([ignored for _, _, ignored in truth])
    found = np.concatenate([classes for _, _, classes in predictions.values()])
    parts = (found, classes[~ignored], classes[ignored])
    return np.stack([np.bincount(part, minlength=num_classes) for part in parts], axis=1)


def average_precision(true: np.ndarray, positives: int, metric: str) -> float:
    """Average precision in [0, 1] of one class at one IoU threshold.

    Args:
        true: (R,) bool, True for true positives, in the order of descending score.
        positives: number of ground-truth objects, at least 1.
        metric: "area" under the precision envelope, the best precision at a recall or beyond; or
            "07", its mean at the recalls 0, .1, ..., 1 on the devkit's float grid (where 0.3 is
            0.30000000000000004, so that a recall of 3/10 does not reach it).
    """
    found = np.cumsum(true)
    precision = found / np.arange(1, len(true) + 1)
    if metric == "07":
        reached = [precision[found / positives >= t] for t in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean([p.max(initial=0.0) for p in reached]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[true].sum() / positives)


def _ap_table(dicts, predictions: dict, num_classes: int, metric: str) -> np.ndarray:
    """Compute AP (K, len(THRESHOLDS)) in [0, 1]; rows of classes without ground truth are NaN."""
    unknown = predictions.keys() - {record["image_id"] for record in dicts}
    if unknown:
        raise ValueError(f"predictions for image_id {unknown.pop()!r}, which the data set lacks")
    # Images are in the order of the data set, so that ties in the score do not depend on which
    # process saw which image.
    matches = [[(np.zeros(0), np.zeros(0), np.zeros(0, int))] for _ in range(num_classes)]
    ignored = [[] for _ in range(num_classes)]
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    for record in dicts:
        gt_boxes, gt_classes, gt_ignored = _ground_truth(record)
        boxes, scores, classes = predictions.get(record["image_id"], nothing)
        if classes.max(initial=0) >= num_classes:
            raise ValueError(
                f"class {classes.max()} was predicted, but the data set has "
                f"{count(num_classes, 'class')}: "
                "set MODEL.ROI_HEADS.NUM_CLASSES to that number"
            )
        for c in {*gt_classes.tolist(), *classes.tolist()}:
            mine, truth = classes == c, gt_classes == c
            # A column of -1 stands for "no ground truth", so that argmax always has a column.
            ious = pairwise_iou(boxes[mine], gt_boxes[truth])
            ious = np.pad(ious, ((0, 0), (0, 1)), constant_values=-1)
            first = len(ignored[c])  # ground truth is numbered over all images of the class
            matches[c].append((scores[mine], ious.max(1), first + ious.argmax(1)))
            ignored[c].extend(gt_ignored[truth].tolist())
    return np.array(
        [
            _class_aps(match, np.array(skip, bool), metric)
            for match, skip in zip(matches, ignored, strict=True)
        ]
    )


def _class_aps(matches, ignored: np.ndarray, metric: str) -> list[float]:
    """AP of one class at each of THRESHOLDS.

    Args:
        matches: for each image, the scores of its detections, their highest IoUs, and the indices
            of the ground truth with these IoUs.
        ignored: (G,) bool, True for ground truth that does not count.
    """
    positives = int((~ignored).sum())
    if positives == 0:
        return [np.nan] * len(THRESHOLDS)
    scores, ious, truths = (np.concatenate(part) for part in zip(*matches, strict=True))
    order = np.argsort(-scores, kind="stable")
    ious, truths = ious[order], truths[order]
    aps = []
    for threshold in THRESHOLDS:
        hit = np.flatnonzero(ious > threshold)
        first = hit[np.unique(truths[hit], return_index=True)[1]]
        true = np.zeros(len(ious), bool)
        true[first] = True
        counted = np.ones(len(ious), bool)
        counted[hit] = ~ignored[truths[hit]]
        aps.append(average_precision(true[counted], positives, metric))
    return aps


def _ground_truth(record: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (G, 4) as (x0, y0, x1, y1), class indices (G,), and ignore flags (G,) of a record."""
    annotations = record.get("annotations", [])
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations
    ]
    ignored = [bool(a.get("difficult") or a.get("iscrowd")) for a in annotations]
    return (
        np.array(boxes, float).reshape(-1, 4),
        np.array([a["category_id"] for a in annotations], int),
        np.array(ignored, bool),
    )


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (R, G) of boxes (R, 4) and (G, 4), (x0, y0, x1, y1) in float64; 0 for empty unions.

    Detectron2's is float32, which can flip a match at the threshold.
    """
    corner = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    inter = np.clip(corner, 0, None).prod(2)
    union = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _nan_mean(values: np.ndarray, axis=None):
    """`np.nanmean` without its warning for slices that are all NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)
