"""Soft-NMS in RoI heads."""

from detectron2.config import configurable
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import nn

from ...compat import require_private
from ..soft_nms import SoftNMS

require_private(StandardROIHeads, "_forward_box")
require_private(CascadeROIHeads, "_forward_box")


class SoftNMSMixin:
    """Gives RoI heads the argument `soft_nms`, from TEST.SOFT_NMS.

    List it before a class that has the `_forward_box` of `StandardROIHeads` or `CascadeROIHeads`.
    The heads need a method `predict_boxes`, such as `predict_standard` or `predict_cascade`.
    """

    @configurable
    def __init__(self, *, soft_nms: SoftNMS | None = None, **kwargs):
        super().__init__(**kwargs)
        self.soft_nms = soft_nms

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "soft_nms": SoftNMS.from_config(cfg)}

    def _forward_box(self, features, proposals, *targets):
        if self.training or self.soft_nms is None:
            return super()._forward_box(features, proposals, *targets)
        boxes, scores = self.predict_boxes(features, proposals)
        predictor = self.box_predictor
        if isinstance(predictor, nn.ModuleList):  # a cascade, whose stages share their thresholds
            predictor = predictor[-1]
        return self.soft_nms.detect(
            boxes,
            scores,
            [p.image_size for p in proposals],
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
