"""Soft-NMS: a detection lowers the scores of those that it overlaps instead of removing them.

Source: Bodla et al. 2017, "Soft-NMS: improving object detection with one line of code". The
multi-scale tests of the released FPN use the Gaussian one with sigma 0.6, lib/nms/nms.py.
"""

from dataclasses import dataclass

import torch
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import Instances
from torch import Tensor

METHODS = ("linear", "gaussian")


@dataclass(frozen=True)
class SoftNMS:
    """The keys of TEST.SOFT_NMS, as a function of detections.

    A detection with score s and IoU o with a selected one of its class and a higher score gets

    - "linear": s * (1 - o) where o > `iou_thresh`, as large as NMS_THRESH_TEST;
    - "gaussian": s * exp(-o * o / sigma), for every o.

    Args:
        method: one of METHODS.
        sigma: above 0; "linear" does not use it.
        min_score: at least 0. Detections whose score is not above it are dropped at the end.

    Raises:
        ValueError: one of them has another value.
    """

    method: str = "linear"
    sigma: float = 0.5
    min_score: float = 1e-4

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"TEST.SOFT_NMS.METHOD is {self.method!r}; expected {' or '.join(METHODS)}"
            )
        if not self.sigma > 0:
            raise ValueError(f"TEST.SOFT_NMS.SIGMA is {self.sigma}; expected a number above 0")
        if not self.min_score >= 0:
            raise ValueError(
                f"TEST.SOFT_NMS.MIN_SCORE is {self.min_score}; expected 0 or a higher number"
            )

    @classmethod
    def from_config(cls, cfg) -> "SoftNMS | None":
        """Read TEST.SOFT_NMS; None where it is not enabled, or the cfg has no such keys."""
        keys = cfg.TEST.get("SOFT_NMS")
        if keys is None or not keys.ENABLED:
            return None
        return cls(keys.METHOD, keys.SIGMA, keys.MIN_SCORE)

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float, most=-1):
        """Select detections; those of different classes do not affect each other.

        Args:
            boxes: (R, 4) as (x0, y0, x1, y1).
            scores: (R,), at least 0.
            classes: (R,) int64.
            iou_thresh: see "linear".
            most: number of detections to select at most; negative: all.

        Returns:
            indices (D,) of the selected detections and their new scores (D,), highest first; of
            equal scores, the first in the input comes first.
        """
        linear = self.method == "linear"
        return select(
            boxes, scores, classes, linear, iou_thresh, self.sigma, self.min_score, int(most)
        )

    def detect(
        self, boxes, scores, image_sizes, score_thresh: float, iou_thresh: float, most: int
    ) -> list[Instances]:
        """Detect as Detectron2's `fast_rcnn_inference`, whose arguments these are, with soft-NMS.

        The score threshold applies to the scores before soft-NMS, and MIN_SCORE to those after it.
        """
        candidates, _ = fast_rcnn.fast_rcnn_inference(
            boxes, scores, image_sizes, score_thresh, nms_thresh=1.0, topk_per_image=-1
        )
        return [self.among(found, iou_thresh, most) for found in candidates]

    def among(self, found: Instances, iou_thresh: float, most: int) -> Instances:
        """Select among the detections of an image; arguments are those of `__call__`."""
        boxes = found.pred_boxes.tensor
        keep, scores = self(boxes, found.scores, found.pred_classes, iou_thresh, most)
        found = found[keep]
        found.scores = scores
        return found


def select(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    linear: bool,
    iou_thresh: float,
    sigma: float,
    min_score: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """`SoftNMS.__call__` as a function that TorchScript compiles.

    Scores only decrease, so the first `most` selected ones are the best. Each selection takes all
    classes together.
    """
    areas = box_areas(boxes)
    order = classes[:0]
    kept = scores[:0]
    left = scores
    count = scores.shape[0] if most < 0 else min(most, scores.shape[0])
    for _ in range(count):
        best, at = left.max(0, keepdim=True)
        # A loop with a break cannot be translated to ONNX.
        if not torch.jit.is_scripting() and bool(best <= min_score):
            break
        order = torch.cat([order, at])
        kept = torch.cat([kept, best])
        left = lowered(boxes, areas, classes, left, at, linear, iou_thresh, sigma)
    some = kept > min_score
    return order[some], kept[some]


def box_areas(boxes: Tensor) -> Tensor:
    """Areas (R,) of boxes (R, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def lowered(
    boxes: Tensor,
    areas: Tensor,
    classes: Tensor,
    scores: Tensor,
    at: Tensor,
    linear: bool,
    iou_thresh: float,
    sigma: float,
) -> Tensor:
    """Scores (R,) after the selection of box `at`, (1,), whose own score becomes -1."""
    box = boxes.index_select(0, at)
    sides = torch.minimum(boxes[:, 2:], box[:, 2:]) - torch.maximum(boxes[:, :2], box[:, :2])
    inter = sides[:, 0].clamp(min=0) * sides[:, 1].clamp(min=0)
    iou = inter / torch.where(inter > 0, areas + areas.index_select(0, at) - inter, 1.0)
    if linear:
        weight = torch.where(iou > iou_thresh, 1 - iou, 1.0)
    else:
        weight = torch.exp(-(iou * iou) / sigma)
    scores = torch.where(classes == classes.index_select(0, at), scores * weight, scores)
    rows = torch.arange(scores.shape[0], device=scores.device)
    return torch.where(rows == at, -1.0, scores)
