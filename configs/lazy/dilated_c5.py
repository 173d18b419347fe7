"""Parts shared by networks on a dilated conv5: ../Base-RCNN-DilatedC5.yaml, with ResNet-101."""

from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead

from d2_deformable.modeling import DeformResNet

pixels = {"pixel_mean": [103.06, 115.90, 123.15], "pixel_std": [1.0, 1.0, 1.0]}  # BGR

backbone = L(DeformResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(ResNet.make_default_stages)(depth=101, stride_in_1x1=True, norm="FrozenBN"),
    out_features=["res4", "res5_reduced"],
    freeze_at=2,
    res5_dilation=2,
    reduced_channels=1024,
    reduced_init_std=0.01,
    deform_num_layers=0,
)

anchor_generator = L(DefaultAnchorGenerator)(
    sizes=[[128, 256, 512]], aspect_ratios=[0.5, 1.0, 2.0], strides=[16], offset=0.5
)

anchor_matcher = L(Matcher)(
    thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
)

rpn = L(RPN)(
    in_features=["res4"],
    head=L(StandardRPNHead)(in_channels=1024, num_anchors=9, conv_dims=[512]),
    anchor_generator=anchor_generator,
    anchor_matcher=anchor_matcher,
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_boundary_thresh=0,
    batch_size_per_image=256,
    positive_fraction=0.5,
    pre_nms_topk=(6000, 6000),
    post_nms_topk=(300, 300),
    nms_thresh=0.7,
    smooth_l1_beta=0.1111,
)


def dconv(model, last: int):
    """Make the last `last` 3x3 convolutions deformable (MODEL.RESNETS.DEFORM_NUM_LAYERS)."""
    model.backbone.deform_num_layers = last
