"""COCO's metrics of boxes and masks, with the numbers of what they count."""

import io
import logging
from collections import Counter
from contextlib import redirect_stdout

import numpy as np
from detectron2.evaluation import COCOEvaluator

from ..compat import require_private
from .counts import report_counts

require_private(COCOEvaluator, "_derive_coco_results", "_eval_predictions")

MAX_DETS = 100  # COCO's
logger = logging.getLogger(__name__)


class CountingCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, which also says what it counted.

    COCO compares at most 100 detections of an image and a class with the ground truth. Where there
    are more, this evaluator compares `max_dets_per_image`, so that AP and the other metrics are
    those of Detectron2 main with this argument. Everywhere else the results are exactly COCO's.
    Keypoints keep COCO's limit of 20.

    Each result also holds the numbers that `report_counts` describes; "ignored" are crowds.

    Args:
        max_dets_per_image: TEST.DETECTIONS_PER_IMAGE; negative: all. At most 100 is COCO's 100.
        arguments, keywords: those of `COCOEvaluator`.
    """

    def __init__(self, *arguments, max_dets_per_image: int = MAX_DETS, **keywords):
        super().__init__(*arguments, **keywords)
        self._most = max_dets_per_image

    def _eval_predictions(self, predictions, img_ids=None):
        super()._eval_predictions(predictions, img_ids=img_ids)
        require_private(self, "_coco_api", "_do_evaluation", "_metadata", "_results")
        chosen = set(self._coco_api.getImgIds() if img_ids is None else img_ids)
        found = [p["instances"] for p in predictions if p["image_id"] in chosen]
        annotations = self._coco_api.dataset.get("annotations", [])
        crowd = [bool(a.get("iscrowd")) for a in annotations if a["image_id"] in chosen]
        counts = report_counts(
            f"COCO metrics of {self._metadata.name}",
            images=len(found),
            of_images=len(chosen),
            detections=sum(map(len, found)),
            objects=len(crowd) - sum(crowd),
            ignored=sum(crowd),
        )
        for results in self._results.values():
            results.update(counts)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is not None and iou_type != "keypoints":
            self._count_more(coco_eval, iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _count_more(self, coco_eval, iou_type):
        """Evaluate again with the limit of this evaluator where COCO's left detections out."""
        found = coco_eval.cocoDt.dataset["annotations"]
        most = max(Counter((d["image_id"], d["category_id"]) for d in found).values())
        limit = most if self._most < 0 else min(most, self._most)
        if limit <= MAX_DETS:
            return
        logger.info(
            "%s: an image has %d detections of one class, more than COCO's limit of %d; "
            "evaluating again with TEST.DETECTIONS_PER_IMAGE as the limit ...",
            iou_type,
            most,
            MAX_DETS,
        )
        coco_eval.params.maxDets = [*coco_eval.params.maxDets[:-1], limit]
        with redirect_stdout(io.StringIO()):
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        # Some versions of pycocotools look for the first number, AP, at 100 detections only.
        # Precisions: (IoU, recall, class, area, limit), -1 without ground truth.
        precision = coco_eval.eval["precision"][:, :, :, 0, -1]
        known = precision[precision > -1]
        coco_eval.stats[0] = np.mean(known) if known.size else -1
