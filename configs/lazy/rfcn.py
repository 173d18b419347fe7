"""R-FCN (paper sec. 2.3): ../Base-rfcn.yaml, with ResNet-101 and the 20 classes of VOC."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

from d2_deformable.modeling import RFCNHeads, RFCNOutputLayers

from .dilated_c5 import backbone, dconv, pixels, rpn

model = L(GeneralizedRCNN)(
    backbone=backbone,
    proposal_generator=rpn,
    roi_heads=L(RFCNHeads)(
        num_classes=20,
        batch_size_per_image=128,
        positive_fraction=0.25,
        ohem=True,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["res5_reduced"],
        box_predictor=L(RFCNOutputLayers)(
            input_shape=L(ShapeSpec)(channels="${....backbone.reduced_channels}", stride=16),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            cls_agnostic_bbox_reg=True,
            resolution=7,
            deformable=False,
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
    """Pool with learned offsets (MODEL.ROI_BOX_HEAD.POOLER_TYPE DeformPSROIPool)."""
    model.roi_heads.box_predictor.deformable = True
