"""Class-aware RPN (paper sec. 2.3 and 4.1): ../Base-class_aware_rpn.yaml, with ResNet-101 and the
20 classes of VOC."""

from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransform

from d2_deformable.modeling import ClassAwareRPN, ClassAwareRPNHead

from .dilated_c5 import anchor_generator, anchor_matcher, backbone, dconv, pixels

backbone.out_features = ["res5_reduced"]

model = L(ClassAwareRPN)(
    backbone=backbone,
    head=L(ClassAwareRPNHead)(
        in_channels=1024, num_anchors=9, num_classes="${..num_classes}", conv_dims=[512]
    ),
    head_in_features=["res5_reduced"],
    anchor_generator=anchor_generator,
    anchor_matcher=anchor_matcher,
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    num_classes=20,
    batch_size_per_image=256,
    positive_fraction=0.5,
    anchor_boundary_thresh=0,
    loss_weight=L("builtins.dict")(loss_cls=1.0, loss_box_reg=1.0),
    smooth_l1_beta=0.1111,
    test_score_thresh=0.001,
    test_topk_candidates=6000,
    test_nms_thresh=0.3,
    max_detections_per_image=300,
    **pixels,
)
