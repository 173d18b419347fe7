"""R-FCN's RoI heads, plain and deformable (paper sec. 2.2 and 2.3).

The layer layout is that of the released rfcn/symbols/resnet_v1_101_rfcn_dcn.py, with Detectron2's
conventions: background is the last class, and there is one set of box maps. (The released network
has a second set that is never used.)
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from ...compat import require_private
from ...layers import PSRoIPredictor
from .._checks import check_config
from ..poolers import LevelPooler
from .ohem import OHEMMixin
from .predict_boxes import decode
from .soft_nms import SoftNMSMixin

require_private(StandardROIHeads, "_forward_box", "_init_box_head")

POOLER_TYPES = ("PSROIPool", "PSROIAveragePool", "DeformPSROIPool", "ModulatedDeformPSROIPool")


class RFCNOutputLayers(FastRCNNOutputLayers):
    """Class scores and box deltas by position-sensitive voting instead of linear layers.

    Losses, box decoding and NMS are those of `FastRCNNOutputLayers`. On a feature pyramid, all
    levels share the layers, and a RoI is pooled from the level that Detectron2 assigns it to (FPN
    eq. 1).

    Args:
        input_shape: channels and stride of the feature map, or of each level, finest first.
        resolution: bins per side k.
        deformable: move the bins by learned offsets: K + 1 sets for the class scores and one for
            the boxes (paper sec. 2.3).
        interpolate: without offsets, average bilinear samples, as deformable pooling does, instead
            of whole cells.
        modulated: also give every bin a learned factor (Deformable ConvNets v2); for `deformable`.
        gamma, samples_per_part, round_rois: see `d2_deformable.ops.deform_roi_pool`.
        kwargs: arguments of `FastRCNNOutputLayers`.

    Raises:
        ValueError: a value that these layers cannot have.
    """

    cls_score: torch.nn.Module
    bbox_pred: torch.nn.Module

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | Sequence[ShapeSpec],
        *,
        resolution: int = 7,
        deformable: bool = False,
        interpolate: bool = False,
        modulated: bool = False,
        gamma: float = 0.1,
        samples_per_part: int = 4,
        round_rois: bool = True,
        **kwargs,
    ):
        shapes = [input_shape] if isinstance(input_shape, ShapeSpec) else list(input_shape)
        channels = {shape.channels for shape in shapes}
        if len(channels) != 1 or not all(shape.channels and shape.stride for shape in shapes):
            raise ValueError(
                f"RFCNOutputLayers got {input_shape}; expected channels and stride of its feature "
                "map, or of levels with equal channels"
            )
        super().__init__(ShapeSpec(channels=1), **kwargs)
        scales = [1.0 / shape.stride for shape in shapes]
        self.levels = LevelPooler(resolution, scales)

        def predictor(num_outputs, offset_classes):
            return PSRoIPredictor(
                shapes[0].channels,
                num_outputs,
                resolution,
                spatial_scale=scales[0],
                offset_classes=offset_classes if deformable else 0,
                interpolate=interpolate,
                modulated=modulated,
                gamma=gamma,
                samples_per_part=samples_per_part,
                round_rois=round_rois,
            )

        # Replace the base class's linear layers, so that no unused parameter is left.
        num_scores = self.cls_score.out_features
        self.cls_score = predictor(num_scores, num_scores)
        self.bbox_pred = predictor(self.bbox_pred.out_features, 1)

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_config(cfg)
        c = cfg.MODEL.ROI_BOX_HEAD
        if c.POOLER_TYPE not in POOLER_TYPES:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is {c.POOLER_TYPE!r}; RFCNHeads takes one of "
                f"{', '.join(POOLER_TYPES)}"
            )
        return {
            **super().from_config(cfg, input_shape),
            "resolution": c.POOLER_RESOLUTION,
            "deformable": c.POOLER_TYPE.endswith("DeformPSROIPool"),
            "interpolate": c.POOLER_TYPE == "PSROIAveragePool",
            "modulated": c.POOLER_TYPE == "ModulatedDeformPSROIPool",
            "gamma": c.DEFORM_GAMMA,
            "samples_per_part": c.DEFORM_SAMPLES_PER_PART,
            "round_rois": c.ROUND_ROIS,
        }

    def forward(self, x, boxes):
        """
        Args:
            x: a feature map (N, C, H, W), or a list of them, one per level.
            boxes: N Boxes in input pixels, R in all.

        Returns:
            class logits (R, K + 1), background last, and box deltas (R, 4), or (R, 4 * K) when
            not class-agnostic.
        """
        return self._on_levels(self.cls_score, x, boxes), self._on_levels(self.bbox_pred, x, boxes)

    def predict_offsets(self, layer: PSRoIPredictor, x, boxes):
        """Predict what `forward` moves the bins of the RoIs by.

        Args:
            layer: `cls_score` or `bbox_pred`.
            x, boxes: see `forward`.

        Returns:
            normalised shifts, see `PSRoIPredictor.predict_offsets`, and the scale (R,) of the level
            that each RoI is pooled from.
        """

        def offsets(*arguments):
            return layer.predict_offsets(*arguments).offset

        return self._on_levels(offsets, x, boxes), self.levels.scales_of(_as_list(x), boxes)

    def _on_levels(self, function, x, boxes):
        return self.levels.on_levels([function] * len(self.levels.scales), _as_list(x), boxes)


def _as_list(x) -> list[torch.Tensor]:
    return [x] if isinstance(x, torch.Tensor) else list(x)


@ROI_HEADS_REGISTRY.register()
class RFCNHeads(OHEMMixin, SoftNMSMixin, StandardROIHeads):
    """R-FCN's heads: no layer with weights follows the pooling, so a RoI costs next to nothing.

    MODEL.ROI_BOX_HEAD.POOLER_TYPE is "PSROIPool", "DeformPSROIPool", "ModulatedDeformPSROIPool"
    (with a factor per bin), or "PSROIAveragePool" (bilinear samples without offsets: the fair
    baseline of "DeformPSROIPool").

    Args:
        kwargs: arguments of `OHEMMixin`, `SoftNMSMixin` and `StandardROIHeads`; `box_predictor`
            is a `RFCNOutputLayers`, and there is no box pooler and no box head.

    Raises:
        ValueError: a value that these heads cannot have.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(box_pooler=None, box_head=None, **kwargs)

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shapes = [input_shape[name] for name in in_features]
        return {"box_in_features": in_features, "box_predictor": RFCNOutputLayers(cfg, shapes)}

    def _forward_box(self, features, proposals):
        if not self.training and self.soft_nms:
            return super()._forward_box(features, proposals)
        self.select(features, proposals)
        predictions = self.predict_ranking(features, proposals)
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
                for instances, pred_boxes in zip(proposals, boxes, strict=True):
                    instances.proposal_boxes = type(instances.proposal_boxes)(pred_boxes)
        return losses

    def predict_ranking(self, features, proposals):
        """Logits and deltas of all proposals."""
        features = [features[name] for name in self.box_in_features]
        return self.box_predictor(features, [p.proposal_boxes for p in proposals])

    def predict_boxes(self, features, proposals):
        """Predict as in inference, before score threshold and NMS; see `predict_standard`."""
        return decode(self.box_predictor, self.predict_ranking(features, proposals), proposals)
