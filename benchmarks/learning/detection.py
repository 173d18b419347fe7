"""Detections on the test images, matched to objects by pycocotools as in COCO's evaluation."""

import contextlib
import io

import numpy as np
import torch
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .endpoints import IOUS

MIN_SCORE = 0.01  # lower scores hardly affect AP, but would make up most of the record


@torch.no_grad()
def detection_counts(model, inputs, records) -> dict[str, np.ndarray]:
    """Collect the counts from which AP is computed, see endpoints.py."""
    found = []
    for index, one in enumerate(inputs):
        instances = model([one])[0]["instances"].to("cpu")
        boxes = BoxMode.convert(
            instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
        ).tolist()
        scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
        for box, score, label in zip(boxes, scores, classes, strict=True):
            if score >= MIN_SCORE:
                entry = {"image_id": index, "category_id": label, "bbox": box, "score": score}
                found.append(entry)
    num_classes = 1 + max(a["category_id"] for record in records for a in record["annotations"])
    return match_detections(found, [record["annotations"] for record in records], num_classes)


def match_detections(found, truth, num_classes: int) -> dict[str, np.ndarray]:
    """Match detections to annotations at each of IOUS.

    Args:
        found: detections in COCO's result format.
        truth: the annotations of each image.

    Returns:
        "objects" (images, classes), their numbers, and "detections", rows of (image, class, 10000 *
        score, bit mask of matched IoUs).
    """
    annotations = []
    objects = np.zeros((len(truth), num_classes), int)
    for image, some in enumerate(truth):
        for annotation in some:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            label = annotation["category_id"]
            objects[image, label] += 1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box}
                | {"area": box[2] * box[3], "iscrowd": 0}
            )
    rows = []
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        if found:
            evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.evaluate()
            rows = evaluation.evalImgs
    bits = 1 << np.arange(len(IOUS))
    detections = [
        [image["image_id"], image["category_id"], round(10000 * score), bits @ (match > 0)]
        for image in rows
        if image
        for score, match in zip(image["dtScores"], image["dtMatches"].T, strict=True)
    ]
    return {"objects": objects, "detections": np.array(detections, int).reshape(-1, 4)}
