"""Testing at several scales, and iterative bounding-box average (paper sec. 4.3, table 5).

`DetectorWithTTA` supports the same networks as `predict_raw`: every `GeneralizedRCNN` whose RoI
heads offer `predict_boxes` or are Detectron2's, and networks with a `predict_raw` of their own,
such as ClassAwareRPN.
"""

import math

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, detector_postprocess
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn
from torch.nn.functional import interpolate, one_hot
from torch.nn.parallel import DistributedDataParallel

from ..utils.pixels import read_image
from ._checks import check_images
from .roi_heads.predict_boxes import find_predict_boxes
from .soft_nms import SoftNMS


class AnyAspectMapperTTA(DatasetMapperTTA):
    """Detectron2's, for images of any aspect ratio: it would resize 3000 x 4 pixels to 300 x 0.

    The shorter side of such an image is stretched first, so that a pixel is left of it. Detectron2
    takes that into the "transforms", since "height" and "width" are those of the original image.
    """

    def __call__(self, dataset_dict: dict) -> list[dict]:
        image = dataset_dict["image"]
        size = image.shape[1:]
        least = math.ceil(max(size) / self.max_size)
        if min(size) < least:
            image = interpolate(image[None], [max(side, least) for side in size])[0]
        return super().__call__({**dataset_dict, "image": image})


class DetectorWithTTA(nn.Module):
    """Merges what a detector finds at several scales, mirrored or not, in several passes.

    Detections of all scales above the score threshold are mapped to the original image and merged
    per class by one NMS or soft-NMS; the `max_detections` best remain (as in the released
    fpn/core/tester.py, which uses soft-NMS). Detectron2's GeneralizedRCNNWithTTA merges what is
    left after an NMS at each scale, and has no second pass.

    Iterative bounding-box average is "[14]" in the paper, Gidaris and Komodakis 2015. It is not in
    the released code, so these steps are inferred:

    1. Pass n + 1 scores and regresses the boxes that pass n found, each for the class that it was
       found for. It takes all of them, not only those that survive NMS, for three reasons: He et
       al. 2016 (appendix B) do so with 300 boxes; neighbours that NMS would remove vote in step 3;
       and with class-agnostic boxes a pass has as many RoIs as the first. Every pass computes the
       features of the image again.
    2. NMS over the detections of all scales and passes.
    3. Each box that NMS keeps becomes the mean, weighted by score, of the boxes of its class, from
       all scales and passes, whose IoU with it is at least `vote_iou`. Its score stays. The weights
       are the scores before soft-NMS.

    Inputs and outputs are those of the detector. The image is resized from "image" or, where that
    is missing, from the file "file_name": give images at their original size.

    Args:
        model: a detector that `predict_raw` supports.
        augment: returns one image at all scales, like Detectron2's `DatasetMapperTTA`.
        image_format: of `read_image`.
        score_thresh, nms_thresh: as in ordinary inference.
        max_detections: per image, over all classes; negative: all.
        iterations: passes over each image, at least 1.
        vote_iou: minimum IoU for a vote; None: boxes are not averaged.
        soft_nms: replaces the NMS.

    Raises:
        ValueError: `predict_raw` does not support `model`.
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
        soft_nms: SoftNMS | None = None,
    ):
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not supports_predict_raw(model):
            raise ValueError(
                f"{type(model).__name__} has no predict_raw, which multi-scale testing and "
                "TEST.BOX_AVERAGE need: set MODEL.META_ARCHITECTURE to GeneralizedRCNN, with RoI "
                "heads that offer predict_boxes, or to ClassAwareRPN"
            )
        self.model = model
        self.augment = augment
        self.image_format = image_format
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.iterations = iterations
        self.vote_iou = vote_iou
        self.soft_nms = soft_nms

    @classmethod
    def from_config(cls, cfg, model):
        """Read the keys of TEST. Without TEST.AUG.ENABLED there is one scale, that of ordinary
        inference."""
        average = cfg.TEST.BOX_AVERAGE
        one_scale = {
            "min_sizes": [cfg.INPUT.MIN_SIZE_TEST],
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "flip": False,
        }
        return {
            "model": model,
            "augment": AnyAspectMapperTTA(cfg)
            if cfg.TEST.AUG.ENABLED
            else AnyAspectMapperTTA(**one_scale),
            "image_format": cfg.INPUT.FORMAT,
            "score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "iterations": average.ITERATIONS if average.ENABLED else 1,
            "vote_iou": average.VOTE_IOU if average.ENABLED else None,
            "soft_nms": SoftNMS.from_config(cfg),
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
        if self.soft_nms:
            keep, merged = self.soft_nms(
                boxes, scores, classes, self.nms_thresh, self.max_detections
            )
        else:
            keep = batched_nms(boxes, scores, classes, self.nms_thresh)
            if self.max_detections >= 0:
                keep = keep[: self.max_detections]
            merged = scores[keep]
        averaged = boxes[keep]
        if self.vote_iou is not None:
            averaged = average_boxes(keep, boxes, scores, classes, self.vote_iou)
        result = Instances(
            size, pred_boxes=Boxes(averaged), scores=merged, pred_classes=classes[keep]
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
        """Yield the detections above the score threshold of every pass over one augmented image.

        Args:
            x: from `augment`; its "transforms" map the original image to this one.
            boxes: (R, 4) proposals in pixels of the original image, or None.

        Yields:
            boxes (D, 4) in pixels of the original image, scores (D,), classes (D,).
        """
        transforms = x.pop("transforms")
        del x["height"], x["width"]  # so that predictions are in pixels of the augmented image
        counted = True  # from the second pass on: (R, K), the classes that each box counts for
        for _ in range(self.iterations):
            given = None if boxes is None else [_apply(transforms, boxes)]
            ((raw, probabilities),) = predict_raw(self.model, [x], given)
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
    """Average each kept box with the boxes of its class that overlap it, weighted by score.

    Args:
        keep: (M,) indices of the detections that NMS kept, out of D.
        boxes, scores, classes: (D, 4), (D,) positive, (D,).
        vote_iou: minimum IoU for a vote.

    Returns:
        (M, 4)
    """
    votes = pairwise_iou(Boxes(boxes[keep]), Boxes(boxes)) >= vote_iou
    votes &= classes[keep, None] == classes
    votes[torch.arange(len(keep)), keep] = True  # a box without area has no IoU with itself
    weights = votes * scores
    return (weights / weights.sum(dim=1, keepdim=True)) @ boxes


def _apply(transforms, boxes: torch.Tensor) -> torch.Tensor:
    """Transform boxes (..., 4) by Detectron2's transforms, which take NumPy arrays."""
    moved = transforms.apply_box(boxes.reshape(-1, 4).cpu().numpy())
    return torch.as_tensor(moved, dtype=boxes.dtype, device=boxes.device).reshape(boxes.shape)


# ---- Predictions before score threshold and NMS --------------------------------------------------


def supports_predict_raw(model) -> bool:
    """Whether `predict_raw` supports this network."""
    return hasattr(model, "predict_raw") or (
        isinstance(model, GeneralizedRCNN) and find_predict_boxes(type(model.roi_heads)) is not None
    )


@torch.no_grad()
def predict_raw(model, inputs, boxes=None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predict the boxes and probabilities of a detector before score threshold and NMS.

    Args:
        model: a `GeneralizedRCNN`, subclasses included, whose RoI heads offer
            `predict_boxes(features, proposals)` or predict as Detectron2's do; or a network with
            a method `predict_raw(inputs, boxes)`, which is called.
        inputs: those of its `forward`, N dicts.
        boxes: N Boxes or tensors (R, 4) in pixels of the original image, to score and regress
            instead of proposals. R may differ between images and may be 0.

    Returns:
        per image, boxes (R, 1, 4), or (R, K, 4) where each class has its own, as
        (x0, y0, x1, y1) in pixels of the original image ("height" and "width" of the input)
        and clipped to it; and probabilities (R, K + 1), background last.

    Raises:
        ValueError: no image; a number of `boxes` that is not the number of images; or RoI heads
            that compute their boxes in a way of their own.
    """
    if hasattr(model, "predict_raw"):
        return model.predict_raw(inputs, boxes)
    assert not model.training, "predict_raw is inference: call eval() first"
    check_images(model, inputs)
    predict_boxes = find_predict_boxes(type(model.roi_heads))
    if predict_boxes is None:
        raise ValueError(
            f"predict_raw does not know how {type(model.roi_heads).__name__} computes its boxes; "
            "it supports heads with a method predict_boxes(features, proposals), and subclasses of "
            "StandardROIHeads and CascadeROIHeads that keep their _forward_box"
        )
    images = model.preprocess_image(inputs)
    sizes = [
        (x.get("height", h), x.get("width", w))
        for x, (h, w) in zip(inputs, images.image_sizes, strict=True)
    ]
    features = model.backbone(images.tensor)
    if boxes is not None:
        proposals = _as_proposals(boxes, sizes, images.image_sizes, model.device)
    elif model.proposal_generator is not None:
        proposals, _ = model.proposal_generator(images, features, None)
    else:
        proposals = [x["proposals"].to(model.device) for x in inputs]
    boxes, scores = predict_boxes(model.roi_heads, features, proposals)
    return [
        (_scale_and_clip(b.unflatten(1, (-1, 4)), network, original), s)
        for b, s, network, original in zip(boxes, scores, images.image_sizes, sizes, strict=True)
    ]


def _as_proposals(boxes, sizes, network_sizes, device) -> list[Instances]:
    """Convert boxes in pixels of the original images to Instances in network input pixels."""
    if len(boxes) != len(sizes):
        raise ValueError(
            f"boxes: expected one (R, 4) tensor per image, {len(sizes)} in all; got {len(boxes)}"
        )
    proposals = []
    for b, original, network in zip(boxes, sizes, network_sizes, strict=True):
        b = b.tensor if isinstance(b, Boxes) else b
        if not isinstance(b, torch.Tensor) or b.dim() != 2 or b.shape[1] != 4:
            given = tuple(b.shape) if isinstance(b, torch.Tensor) else type(b).__name__
            raise ValueError(
                f"boxes: expected Boxes or a tensor (R, 4) for each image, in a list; got {given}"
            )
        b = b.to(device)
        proposals.append(
            Instances(network, proposal_boxes=Boxes(_scale_and_clip(b, original, network)))
        )
    return proposals


def _scale_and_clip(boxes: torch.Tensor, old, new) -> torch.Tensor:
    """Scale boxes (..., 4) from an image of size `old`, (height, width), to one of size `new`, and
    clip them to it."""
    scale = boxes.new_tensor([new[1] / old[1], new[0] / old[0]] * 2)
    return torch.minimum((boxes * scale).clamp(min=0), boxes.new_tensor([new[1], new[0]] * 2))
