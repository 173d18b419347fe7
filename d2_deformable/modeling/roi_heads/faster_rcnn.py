"""Faster R-CNN's RoI heads with deformable RoI pooling (paper sec. 2.2 and 2.3).

Everything except the pooling is Detectron2's: six values of POOLER_TYPE replace the box pooler.
"""

from functools import partial

from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import nn

from ...compat import require_private
from ...layers import DeformRoIAlign, DeformRoIPool, ModulatedDeformRoIPool, RoIAveragePool
from .._checks import check_config
from ..poolers import DeformROIPooler, LegacyROIPooler, ROIAveragePooler
from .ohem import OHEMMixin
from .predict_boxes import predict_cascade, predict_standard
from .soft_nms import SoftNMSMixin

require_private(StandardROIHeads, "_init_box_head")
require_private(CascadeROIHeads, "_init_box_head")

POOLER_TYPES = (
    "DeformROIPool",
    "ModulatedDeformROIPool",
    "ROIAveragePool",
    "LegacyROIPool",
    "DeformROIAlign",
    "ModulatedDeformROIAlign",
)


class DeformPoolerMixin:
    """Adds six values of POOLER_TYPE to a Detectron2 ROIHeads class:

    - "DeformROIPool", the paper's pooling
    - "ModulatedDeformROIPool", the same with a factor per bin (Deformable ConvNets v2)
    - "ROIAveragePool", the same without offsets
    - "LegacyROIPool", the max pooling of the released plain network
    - "DeformROIAlign" and "ModulatedDeformROIAlign", mmdetection's pooling

    List it before a class that has the `_init_box_head` of `StandardROIHeads`; this may be a class
    of another project: `class MyDeformHeads(DeformPoolerMixin, MyHeads)`.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        c = cfg.MODEL.ROI_BOX_HEAD
        if c.POOLER_TYPE not in POOLER_TYPES:
            return super()._init_box_head(cfg, input_shape)
        check_config(cfg)
        # The parent builds heads and predictors with a pooler type that it knows.
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
        ret = super()._init_box_head(plain, input_shape)
        shapes = [input_shape[f] for f in ret["box_in_features"]]
        scales = tuple(1.0 / shape.stride for shape in shapes)
        if c.POOLER_TYPE == "LegacyROIPool":
            ret["box_pooler"] = LegacyROIPooler(c.POOLER_RESOLUTION, scales)
            return ret
        if c.POOLER_TYPE == "ROIAveragePool":
            layer = RoIAveragePool(c.POOLER_RESOLUTION, **_sampling(c))
            ret["box_pooler"] = ROIAveragePooler(layer, scales)
            return ret
        ret["box_pooler"] = DeformROIPooler(
            _roi_pool(c, channels=[shape.channels for shape in shapes]), scales=scales
        )
        return ret


def _roi_pool(c, channels):
    """Build the layer of MODEL.ROI_BOX_HEAD: one for all levels, or one per level as in the
    released FPN and in mmdetection."""
    if c.POOLER_TYPE.endswith("DeformROIPool"):
        layer = partial(
            DeformRoIPool if c.POOLER_TYPE == "DeformROIPool" else ModulatedDeformRoIPool,
            output_size=c.POOLER_RESOLUTION,
            gamma=c.DEFORM_GAMMA,
            **_sampling(c),
        )
        if not c.DEFORM_OFFSETS_PER_LEVEL:
            return layer(channels[0])
        return nn.ModuleList([layer(n) for n in channels])
    layer = partial(
        DeformRoIAlign,
        output_size=c.POOLER_RESOLUTION,
        modulated=c.POOLER_TYPE == "ModulatedDeformROIAlign",
        gamma=c.DEFORM_GAMMA,
        sampling_ratio=c.POOLER_SAMPLING_RATIO,
    )
    return nn.ModuleList([layer(n) for n in channels])


def _sampling(c) -> dict:
    return {"samples_per_part": c.DEFORM_SAMPLES_PER_PART, "round_rois": c.ROUND_ROIS}


@ROI_HEADS_REGISTRY.register()
class DeformROIHeads(OHEMMixin, DeformPoolerMixin, SoftNMSMixin, StandardROIHeads):
    """Detectron2's StandardROIHeads (Fast and Mask R-CNN) with deformable RoI pooling, OHEM and
    TEST.SOFT_NMS."""

    predict_boxes = predict_standard


@ROI_HEADS_REGISTRY.register()
class DeformCascadeROIHeads(OHEMMixin, DeformPoolerMixin, SoftNMSMixin, CascadeROIHeads):
    """Detectron2's CascadeROIHeads with deformable RoI pooling, shared by its stages, OHEM and
    TEST.SOFT_NMS."""

    predict_boxes = predict_cascade
