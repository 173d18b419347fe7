"""Testing at several scales, and iterative bounding-box average (paper sec. 4.3, table 5).

`DetectorWithTTA` serves every network with `predict_raw`: DeformRCNN and ClassAwareRPN.
"""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data.detection_utils import read_image
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, detector_postprocess
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.parallel import DistributedDataParallel

from ._checks import check_images


class DetectorWithTTA(nn.Module):
    """A detector that merges what it finds at several scales, mirrored or not, in several passes.

    Detections of all scales above the score threshold, mapped to the original image, are put
    together per class; then come one NMS and the `max_detections` best (as the released
    fpn/core/tester.py, there with soft-NMS). Detectron2's GeneralizedRCNNWithTTA merges what is
    left after an NMS at each scale, and knows no second pass.

    Iterative bounding-box average is "[14]" in the paper, Gidaris and Komodakis 2015, and is not in
    the released code; what follows is inferred:

    1. Pass n + 1 scores and regresses the boxes that pass n found, each for the class that it was
       found for. All of them, not those after NMS: He et al. 2016 (appendix B) do so with 300
       boxes, neighbours that NMS would remove have a say in 3, and with class-agnostic boxes a pass
       has as many RoIs as the first. Every pass computes the features of the image again.
    2. NMS over the detections of all scales and passes.
    3. A box that is kept becomes the mean, weighted by score, of the boxes of its class in that
       union whose IoU with it is at least `vote_iou`. Its score stays.

    Its call takes and gives what the detector's does. An image is resized from "image", or from the
    file "file_name" where there is none: give it images at their original size.

    Args:
        model: a detector with `predict_raw`.
        augment: gives the scales of one image, as Detectron2's `DatasetMapperTTA`.
        image_format: of `read_image`.
        score_thresh, nms_thresh: as in ordinary inference.
        max_detections: per image, over all classes; negative: all.
        iterations: passes over each image, 1 for one.
        vote_iou: at least this IoU gives a vote; None: boxes are not averaged.

    Raises:
        ValueError: `model` has no `predict_raw`.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        augment,
        image_format: str,
        score_thresh: float,
        nms_thresh: float,
        max_detections: int,
        iterations: int = 1,
        vote_iou: float | None = None,
    ):
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not hasattr(model, "predict_raw"):
            raise ValueError(
                f"{type(model).__name__} has no predict_raw, which tests at several scales and "
                "TEST.BOX_AVERAGE need: set MODEL.META_ARCHITECTURE to DeformRCNN (in place of "
                "GeneralizedRCNN) or ClassAwareRPN"
            )
        self.model = model
        self.augment = augment
        self.image_format = image_format
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.iterations = iterations
        self.vote_iou = vote_iou

    @classmethod
    def from_config(cls, cfg, model):
        """Without TEST.AUG.ENABLED there is one scale, that of ordinary inference."""
        average = cfg.TEST.BOX_AVERAGE
        one_scale = {
            "min_sizes": [cfg.INPUT.MIN_SIZE_TEST],
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "flip": False,
        }
        return {
            "model": model,
            "augment": DatasetMapperTTA(cfg)
            if cfg.TEST.AUG.ENABLED
            else DatasetMapperTTA(**one_scale),
            "image_format": cfg.INPUT.FORMAT,
            "score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "iterations": average.ITERATIONS if average.ENABLED else 1,
            "vote_iou": average.VOTE_IOU if average.ENABLED else None,
        }

    def forward(self, batched_inputs) -> list[dict]:
        check_images(self.model, batched_inputs)
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, x: dict) -> Instances:
        x = self._with_image(x)
        size = x["height"], x["width"]
        given = None
        if "proposals" in x:  # in pixels of the image, which is about to be resized
            given = x.pop("proposals").proposal_boxes.tensor
            factors = [new / old for new, old in zip(size, x["image"].shape[1:], strict=True)]
            given = given * given.new_tensor(factors[::-1] * 2)
        found = [
            detections
            for augmented in self.augment(x)
            for detections in self._passes(augmented, given)
        ]
        boxes, scores, classes = (torch.cat(part) for part in zip(*found, strict=True))
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)
        if self.max_detections >= 0:
            keep = keep[: self.max_detections]
        averaged = boxes[keep]
        if self.vote_iou is not None:
            averaged = average_boxes(keep, boxes, scores, classes, self.vote_iou)
        result = Instances(
            size, pred_boxes=Boxes(averaged), scores=scores[keep], pred_classes=classes[keep]
        )
        return detector_postprocess(result, *size)

    def _with_image(self, x: dict) -> dict:
        x = dict(x)
        if "image" not in x:
            pixels = read_image(x["file_name"], self.image_format)
            x["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        x.setdefault("height", x["image"].shape[1])
        x.setdefault("width", x["image"].shape[2])
        return x

    def _passes(self, x: dict, boxes):
        """Detections of every pass over one augmented image, above the score threshold.

        Args:
            x: of `augment`; "transforms" lead from the original image to this one.
            boxes: (R, 4) proposals in pixels of the original image, or None.

        Yields:
            boxes (D, 4) in pixels of the original image, scores (D,), classes (D,).
        """
        transforms = x.pop("transforms")
        del x["height"], x["width"]  # predictions are to be in pixels of the augmented image
        counted = True
        for _ in range(self.iterations):
            given = None if boxes is None else [_apply(transforms, boxes)]
            ((raw, probabilities),) = self.model.predict_raw([x], given)
            raw = _apply(transforms.inverse(), raw)
            finite = raw.flatten(1).isfinite().all(1) & probabilities.isfinite().all(1)
            found = (probabilities[:, :-1] > self.score_thresh) & finite[:, None] & counted
            rows, classes = found.nonzero(as_tuple=True)
            agnostic = raw.shape[1] == 1
            detections = raw[rows, 0 if agnostic else classes]
            yield detections, probabilities[rows, classes], classes
            if not len(rows):
                return
            if agnostic:  # a box is scored once, however many classes it was found for
                some = found.any(dim=1)
                boxes, counted = raw[some, 0], found[some]
            else:
                boxes, counted = detections, one_hot(classes, found.shape[1]).bool()


def average_boxes(keep, boxes, scores, classes, vote_iou: float) -> torch.Tensor:
    """(M, 4): the kept boxes, each averaged with those of its class that overlap it, by score.

    Args:
        keep: (M,) indices of what NMS kept among D detections.
        boxes, scores, classes: (D, 4), (D,) positive, (D,).
        vote_iou: the IoU from which on a box has a vote.
    """
    votes = pairwise_iou(Boxes(boxes[keep]), Boxes(boxes)) >= vote_iou
    votes &= classes[keep, None] == classes
    votes[torch.arange(len(keep)), keep] = True  # a box without area has no IoU with itself
    weights = votes * scores
    return (weights / weights.sum(dim=1, keepdim=True)) @ boxes


def _apply(transforms, boxes: torch.Tensor) -> torch.Tensor:
    """Boxes of any shape (..., 4) through Detectron2's transforms, which take NumPy's arrays."""
    moved = transforms.apply_box(boxes.reshape(-1, 4).cpu().numpy())
    return torch.as_tensor(moved, dtype=boxes.dtype, device=boxes.device).reshape(boxes.shape)
