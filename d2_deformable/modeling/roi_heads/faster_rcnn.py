"""Faster R-CNN's RoI heads with deformable RoI pooling (paper sec. 2.2 and 2.3).

Everything but the pooling is Detectron2's: POOLER_TYPE "DeformROIPool" exchanges the box pooler, as
does "LegacyROIPool", the max pooling of the released plain network.
"""

from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads

from ...layers import DeformRoIPool
from .._checks import check_config
from ..poolers import DeformROIPooler, LegacyROIPooler

POOLER_TYPES = ("DeformROIPool", "LegacyROIPool")


class DeformPoolerMixin:
    """Lets a Detectron2 ROIHeads class understand POOLER_TYPE "DeformROIPool" and "LegacyROIPool".

    It stands before any class with the `_init_box_head` of `StandardROIHeads`, also one of another
    project: `class MyDeformHeads(DeformPoolerMixin, MyHeads)`.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        c = cfg.MODEL.ROI_BOX_HEAD
        if c.POOLER_TYPE not in POOLER_TYPES:
            return super()._init_box_head(cfg, input_shape)
        check_config(cfg)
        # The parent builds heads and predictors around a pooler type it knows.
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
        ret = super()._init_box_head(plain, input_shape)
        shapes = [input_shape[f] for f in ret["box_in_features"]]
        scales = tuple(1.0 / shape.stride for shape in shapes)
        if c.POOLER_TYPE == "LegacyROIPool":
            ret["box_pooler"] = LegacyROIPooler(c.POOLER_RESOLUTION, scales)
            return ret
        ret["box_pooler"] = DeformROIPooler(
            DeformRoIPool(
                shapes[0].channels,
                c.POOLER_RESOLUTION,
                gamma=c.DEFORM_GAMMA,
                samples_per_part=c.DEFORM_SAMPLES_PER_PART,
                round_rois=c.ROUND_ROIS,
            ),
            scales=scales,
        )
        return ret


@ROI_HEADS_REGISTRY.register()
class DeformROIHeads(DeformPoolerMixin, StandardROIHeads):
    """Detectron2's StandardROIHeads (Fast and Mask R-CNN) with POOLER_TYPE "DeformROIPool"."""


@ROI_HEADS_REGISTRY.register()
class DeformCascadeROIHeads(DeformPoolerMixin, CascadeROIHeads):
    """Detectron2's CascadeROIHeads with POOLER_TYPE "DeformROIPool", shared by its stages."""
