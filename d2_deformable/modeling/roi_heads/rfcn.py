"""R-FCN's RoI heads, plain and deformable (paper sec. 2.2 and 2.3).

The layer layout is that of the released rfcn/symbols/resnet_v1_101_rfcn_dcn.py, with Detectron2's
conventions: background is the last class, and there is one set of box maps. (The released network
has a second set that is never used.)
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from ...compat import require_private
from ...layers import PSRoIPredictor
from .._checks import check_config
from .ohem import check_losses, loss_per_roi, select_hard_examples
from .predict_boxes import decode
from .soft_nms import SoftNMSMixin

require_private(StandardROIHeads, "_forward_box", "_init_box_head", "_sample_proposals")

POOLER_TYPES = ("PSROIPool", "PSROIAveragePool", "DeformPSROIPool")


class RFCNOutputLayers(FastRCNNOutputLayers):
    """Class scores and box deltas by position-sensitive voting instead of linear layers.

    Losses, box decoding and NMS are those of `FastRCNNOutputLayers`.

    Args:
        input_shape: channels and stride of the feature map.
        resolution: bins per side k.
        deformable: move the bins by learned offsets: K + 1 sets for the class scores and one for
            the boxes (paper sec. 2.3).
        interpolate: without offsets, average bilinear samples, as deformable pooling does, instead
            of whole cells.
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
        input_shape: ShapeSpec,
        *,
        resolution: int = 7,
        deformable: bool = False,
        interpolate: bool = False,
        gamma: float = 0.1,
        samples_per_part: int = 4,
        round_rois: bool = True,
        **kwargs,
    ):
        if not (input_shape.channels and input_shape.stride):
            raise ValueError(
                f"RFCNOutputLayers needs channels and stride of its feature map; got {input_shape}"
            )
        super().__init__(ShapeSpec(channels=1), **kwargs)

        def predictor(num_outputs, offset_classes):
            return PSRoIPredictor(
                input_shape.channels,
                num_outputs,
                resolution,
                spatial_scale=1.0 / input_shape.stride,
                offset_classes=offset_classes if deformable else 0,
                interpolate=interpolate,
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
            "deformable": c.POOLER_TYPE == "DeformPSROIPool",
            "interpolate": c.POOLER_TYPE == "PSROIAveragePool",
            "gamma": c.DEFORM_GAMMA,
            "samples_per_part": c.DEFORM_SAMPLES_PER_PART,
            "round_rois": c.ROUND_ROIS,
        }

    def forward(self, x: torch.Tensor, boxes):
        """
        Args:
            x: features (N, C, H, W).
            boxes: N Boxes in input pixels, R in all.

        Returns:
            class logits (R, K + 1), background last, and box deltas (R, 4), or (R, 4 * K) when
            not class-agnostic.
        """
        rois = convert_boxes_to_pooler_format(boxes)
        return self.cls_score(x, rois), self.bbox_pred(x, rois)


@ROI_HEADS_REGISTRY.register()
class RFCNHeads(SoftNMSMixin, StandardROIHeads):
    """R-FCN's heads: no layer with weights follows the pooling, so a RoI costs next to nothing.

    MODEL.ROI_BOX_HEAD.POOLER_TYPE is "PSROIPool", "DeformPSROIPool", or "PSROIAveragePool"
    (bilinear samples without offsets: the fair baseline of "DeformPSROIPool").

    Args:
        ohem: train on the `batch_size_per_image` proposals with the highest loss instead of a
            random sample (MODEL.ROI_HEADS.SAMPLING "ohem").
        box_in_features: the name of the one feature map, in a list.
        kwargs: `soft_nms` and the arguments of `StandardROIHeads`; `box_predictor` is a
            `RFCNOutputLayers`, and there is no box pooler and no box head.

    Raises:
        ValueError: a value that these heads cannot have.
    """

    @configurable
    def __init__(self, *, box_in_features: list[str], ohem: bool = False, **kwargs):
        _one_feature_map(box_in_features)
        super().__init__(box_in_features=box_in_features, box_pooler=None, box_head=None, **kwargs)
        self.ohem = ohem
        if ohem:
            check_losses(self.box_predictor)

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_config(cfg)
        sampling = cfg.MODEL.ROI_HEADS.SAMPLING
        if sampling not in ("random", "ohem"):
            raise ValueError(f"MODEL.ROI_HEADS.SAMPLING is {sampling!r}; choose 'random' or 'ohem'")
        return {**super().from_config(cfg, input_shape), "ohem": sampling == "ohem"}

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        return {
            "box_in_features": in_features,
            "box_predictor": RFCNOutputLayers(cfg, input_shape[_one_feature_map(in_features)]),
        }

    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        """With OHEM, return all proposals that the matcher does not ignore, as candidates."""
        if not self.ohem:
            return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        candidates = (matched_labels != -1).nonzero()[:, 0]
        classes = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes):
            classes = torch.where(matched_labels == 1, gt_classes[matched_idxs], classes)
        return candidates, classes[candidates]

    def _forward_box(self, features, proposals):
        if not self.training and self.soft_nms:
            return super()._forward_box(features, proposals)
        x = features[self.box_in_features[0]]
        if self.training and self.ohem:
            with torch.no_grad():
                predictions = self._predict(x, proposals)
                losses = loss_per_roi(self.box_predictor, predictions, proposals)
            # The few selected RoIs run again, with gradients: cheaper than gradients for all.
            proposals = select_hard_examples(proposals, losses, self.batch_size_per_image)

        predictions = self._predict(x, proposals)
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
                for instances, pred_boxes in zip(proposals, boxes, strict=True):
                    instances.proposal_boxes = type(instances.proposal_boxes)(pred_boxes)
        return losses

    def predict_boxes(self, features, proposals):
        """Predict as in inference, before score threshold and NMS; see `predict_standard`."""
        predictions = self._predict(features[self.box_in_features[0]], proposals)
        return decode(self.box_predictor, predictions, proposals)

    def _predict(self, x, proposals):
        return self.box_predictor(x, [p.proposal_boxes for p in proposals])


def _one_feature_map(in_features) -> str:
    if len(in_features) != 1:
        raise ValueError(
            "RFCNHeads pools from one feature map, but MODEL.ROI_HEADS.IN_FEATURES is "
            f"{list(in_features)}: name one"
        )
    return in_features[0]
