"""Boxes and class probabilities of RoI heads, before score threshold and NMS.

`RFCNHeads`, `DeformROIHeads` and `DeformCascadeROIHeads` offer them as the method
`predict_boxes(features, proposals)`. Detectron2's heads compute them inside `_forward_box`, without
returning them. Each function below follows one version of `_forward_box` up to the call of the
predictor's inference, and also serves as that method.
"""

from detectron2.modeling import StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads

from ...compat import require_private
from .ohem import OHEMMixin

require_private(StandardROIHeads, "_forward_box")
require_private(CascadeROIHeads, "_create_proposals_from_boxes", "_forward_box", "_run_stage")


def find_predict_boxes(kind: type):
    """Find the function (heads, features, proposals) that predicts as a class of RoI heads does.

    Returns:
        `predict_boxes` of the class, if it has one. For classes without it that keep the
        `_forward_box` of Detectron2's `StandardROIHeads` or `CascadeROIHeads`, the function that
        follows that one. None for others, including a subclass with a `_forward_box` of its own and
        no `predict_boxes` that matches it.
    """
    # OHEM changes only how RoI heads train.
    for cls in (cls for cls in kind.__mro__ if cls is not OHEMMixin):
        if "predict_boxes" in vars(cls):
            return vars(cls)["predict_boxes"]
        if "_forward_box" in vars(cls):
            return _DETECTRON2.get(vars(cls)["_forward_box"])
    return None


def predict_standard(heads, features, proposals):
    """Predict as `StandardROIHeads` does, before score threshold and NMS.

    Args:
        features: {name: (N, C, H, W)} of the backbone.
        proposals: Instances with `proposal_boxes` of N images, R in each.

    Returns:
        per image, boxes (R, 4) or, where each class has its own, (R, K * 4) in pixels of the
        network's input; and probabilities (R, K + 1), background last.
    """
    features = [features[name] for name in heads.box_in_features]
    x = heads.box_head(heads.box_pooler(features, [p.proposal_boxes for p in proposals]))
    return decode(heads.box_predictor, heads.box_predictor(x), proposals)


def predict_cascade(heads, features, proposals):
    """Predict as `CascadeROIHeads` does: boxes of the last stage, probabilities averaged over all
    stages. Arguments and results are those of `predict_standard`."""
    features = [features[name] for name in heads.box_in_features]
    sizes = [p.image_size for p in proposals]
    stages, boxes = [], None
    for k, predictor in enumerate(heads.box_predictor):
        if k > 0:
            proposals = heads._create_proposals_from_boxes(boxes, sizes)
        predictions = heads._run_stage(features, proposals, k)
        boxes, scores = decode(predictor, predictions, proposals)
        stages.append(scores)
    return boxes, [sum(scores) * (1.0 / len(stages)) for scores in zip(*stages, strict=True)]


def decode(predictor, predictions, proposals):
    """Convert the output of a `FastRCNNOutputLayers` to boxes and probabilities per image."""
    return (
        predictor.predict_boxes(predictions, proposals),
        predictor.predict_probs(predictions, proposals),
    )


_DETECTRON2 = {
    StandardROIHeads._forward_box: predict_standard,
    CascadeROIHeads._forward_box: predict_cascade,
}
