"""Detectron2's GeneralizedRCNN, which also gives what it predicts before NMS."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances

from .._checks import check_images
from ..roi_heads import RFCNHeads


@META_ARCH_REGISTRY.register()
class DeformRCNN(GeneralizedRCNN):
    """Faster R-CNN, R-FCN, Cascade and Mask R-CNN: `GeneralizedRCNN` plus `predict_raw`.

    Parameters have the names that they have there, so checkpoints fit both.
    """

    def preprocess_image(self, batched_inputs):
        """As Detectron2's.

        Raises:
            ValueError: no image.
        """
        check_images(self, batched_inputs)
        return super().preprocess_image(batched_inputs)

    @torch.no_grad()
    def predict_raw(self, inputs, boxes=None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What inference predicts before score threshold and NMS.

        Args:
            inputs: as of `forward`, N dicts.
            boxes: N Boxes or tensors (R, 4) in pixels of the original image, to score and regress
                in place of proposals; R may differ by image and be 0.

        Returns:
            per image, boxes (R, 1, 4), or (R, K, 4) where each class has its own, as
            (x0, y0, x1, y1) in pixels of the original image ("height" and "width" of the input)
            and clipped to it; and probabilities (R, K + 1), background last.

        Raises:
            ValueError: no image, or another number of `boxes` than of images; or RoI heads that
                compute their boxes in a way of their own.
        """
        assert not self.training, "predict_raw is inference: call eval() first"
        images = self.preprocess_image(inputs)
        sizes = [
            (x.get("height", h), x.get("width", w))
            for x, (h, w) in zip(inputs, images.image_sizes, strict=True)
        ]
        features = self.backbone(images.tensor)
        if boxes is not None:
            proposals = _as_proposals(boxes, sizes, images.image_sizes, self.device)
        elif self.proposal_generator is not None:
            proposals, _ = self.proposal_generator(images, features, None)
        else:
            proposals = [x["proposals"].to(self.device) for x in inputs]
        boxes, scores = _predict(self.roi_heads, features, proposals)
        return [
            (_scale_and_clip(b.unflatten(1, (-1, 4)), network, original), s)
            for b, s, network, original in zip(
                boxes, scores, images.image_sizes, sizes, strict=True
            )
        ]


def _as_proposals(boxes, sizes, network_sizes, device) -> list[Instances]:
    """Instances in pixels of the network's input, from boxes in pixels of the original images."""
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
    """Boxes (..., 4) on an image of size `old` (height, width) as they lie on one of size `new`."""
    scale = boxes.new_tensor([new[1] / old[1], new[0] / old[0]] * 2)
    return torch.minimum((boxes * scale).clamp(min=0), boxes.new_tensor([new[1], new[0]] * 2))


# ---- What the RoI heads compute up to NMS -------------------------------------------------------


def _predict(heads, features, proposals):
    """Boxes (R, 4) or (R, K * 4) and probabilities (R, K + 1) per image, in network pixels.

    Detectron2's heads keep these to themselves, inside `_forward_box`; it tells the kind of heads,
    and each function below follows one of its versions up to the call of the predictor's losses.
    """
    kinds = {
        StandardROIHeads._forward_box: _predict_standard,
        CascadeROIHeads._forward_box: _predict_cascade,
        RFCNHeads._forward_box: _predict_rfcn,
    }
    predict = kinds.get(getattr(type(heads), "_forward_box", None))
    if predict is None:
        raise ValueError(
            f"predict_raw does not know how {type(heads).__name__} computes its boxes; it knows "
            "StandardROIHeads, CascadeROIHeads, RFCNHeads and subclasses that keep their "
            "_forward_box"
        )
    return predict(heads, features, proposals)


def _predict_standard(heads, features, proposals):
    features = [features[name] for name in heads.box_in_features]
    x = heads.box_head(heads.box_pooler(features, [p.proposal_boxes for p in proposals]))
    return _decode(heads.box_predictor, heads.box_predictor(x), proposals)


def _predict_rfcn(heads, features, proposals):
    predictions = heads._predict(features[heads.box_in_features[0]], proposals)
    return _decode(heads.box_predictor, predictions, proposals)


def _predict_cascade(heads, features, proposals):
    """Boxes of the last stage, probabilities averaged over all."""
    features = [features[name] for name in heads.box_in_features]
    sizes = [p.image_size for p in proposals]
    stages, boxes = [], None
    for k, predictor in enumerate(heads.box_predictor):
        if k > 0:
            proposals = heads._create_proposals_from_boxes(boxes, sizes)
        predictions = heads._run_stage(features, proposals, k)
        boxes, scores = _decode(predictor, predictions, proposals)
        stages.append(scores)
    return boxes, [sum(scores) * (1.0 / len(stages)) for scores in zip(*stages, strict=True)]


def _decode(predictor, predictions, proposals):
    return (
        predictor.predict_boxes(predictions, proposals),
        predictor.predict_probs(predictions, proposals),
    )
