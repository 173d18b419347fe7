"""The metrics of the study, computed from the recorded counts for any multiset of test images.

Segmentation: {"pixels": (images, classes, 3)}, for each class the pixels that are right, predicted
and true. Detection: {"objects": (images, classes), the number of objects, "detections": (D, 4)
int}: image, class, score in 1/10000, and a bit for each IoU threshold at which it is right.
"""

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
AT_07 = 4  # index of IoU 0.7
RECALLS = np.linspace(0, 1, 101)


def value(metric: str, counts: dict[str, np.ndarray], weights=None) -> float:
    """ "mIoU", "AP" (COCO's, over 10 IoUs) or "AP70" (at IoU 0.7), in percent.

    Args:
        weights: how often each image counts, (images,) integers; None: once.
    """
    images = len(counts["pixels" if metric == "mIoU" else "objects"])
    weights = np.ones(images, int) if weights is None else weights
    if metric == "mIoU":
        return mean_iou(np.tensordot(weights, counts["pixels"], 1))
    return average_precision(counts, weights)[metric]


def mean_iou(pixels: np.ndarray) -> float:
    """mIoU in percent of (classes, 3) pixels, over the classes that occur."""
    right, predicted, true = pixels.astype(float).T
    union = predicted + true - right
    return float(100 * np.mean(right[union > 0] / union[union > 0]))


def average_precision(counts, weights) -> dict[str, float]:
    """{"AP": ..., "AP70": ...} in percent, over the classes that occur."""
    objects, detections = counts["objects"], counts["detections"]
    image, label, score, bits = detections.T
    order = np.argsort(-score, kind="stable")
    image, label, bits = image[order], label[order], bits[order]
    right = (bits[:, None] >> np.arange(len(IOUS))) & 1
    precisions = []
    for k in np.flatnonzero(weights @ objects):
        of_class = label == k
        weight = weights[image[of_class]]
        positives = np.cumsum(right[of_class] * weight[:, None], axis=0)
        total = np.cumsum(weight)[:, None]
        precisions.append(_mean_precision(positives, total, (weights @ objects)[k]))
    per_iou = np.mean(precisions, axis=0)
    return {"AP": 100 * float(per_iou.mean()), "AP70": 100 * float(per_iou[AT_07])}


def _mean_precision(positives, total, objects: int) -> np.ndarray:
    """Mean over 101 recalls of the precision, made monotone, per IoU: (IoUs,).

    Args:
        positives, total: cumulated numbers of right and of all detections, (D, IoUs) and (D, 1).
    """
    if not len(positives):
        return np.zeros(len(IOUS))
    precision = positives / np.maximum(total, 1)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = positives / objects
    means = []
    for column in range(recall.shape[1]):
        at = np.searchsorted(recall[:, column], RECALLS, side="left")
        reached = at[at < len(recall)]
        means.append(precision[reached, column].sum() / len(RECALLS))
    return np.array(means)
