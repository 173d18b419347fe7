"""Faster R-CNN (paper sec. 2.3): ../Base-faster_rcnn.yaml, with ResNet-101 and the 20 classes of
VOC."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers

from d2_deformable.layers import DeformRoIPool
from d2_deformable.modeling import DeformROIHeads, DeformROIPooler

from .dilated_c5 import backbone, dconv, pixels, rpn

backbone.reduced_channels = 256

model = L(GeneralizedRCNN)(
    backbone=backbone,
    proposal_generator=rpn,
    roi_heads=L(StandardROIHeads)(
        num_classes=20,
        batch_size_per_image=128,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(  # background overlaps an object by at least 0.1
            thresholds=[0.1, 0.5], labels=[-1, 0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["res5_reduced"],
        box_pooler=L(ROIPooler)(
            output_size=7, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIPool"
        ),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels=256, height=7, width=7),
            conv_dims=[],
            fc_dims=[1024, 1024],
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=1024),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            smooth_l1_beta=1.0,
            test_score_thresh=0.001,
            test_nms_thresh=0.3,
            test_topk_per_image=300,
        ),
    ),
    **pixels,
    input_format="BGR",
)


def dpool(model):
    """Pool with learned offsets (MODEL.ROI_BOX_HEAD.POOLER_TYPE DeformROIPool)."""
    model.roi_heads._target_ = DeformROIHeads
    model.roi_heads.box_pooler = L(DeformROIPooler)(
        roi_pool=L(DeformRoIPool)(channels=256, output_size=7), scales=[1 / 16]
    )
