"""DeepLab (paper sec. 2.3): ../Base-deeplab.yaml, with ResNet-101 and the 21 classes of VOC."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SemanticSegmentor

from d2_deformable.modeling import DeepLabHead

from .dilated_c5 import backbone, dconv, pixels

backbone.update(out_features=["res5"], reduced_channels=0)

model = L(SemanticSegmentor)(
    backbone=backbone,
    sem_seg_head=L(DeepLabHead)(
        input_shape=L("builtins.dict")(res5=L(ShapeSpec)(channels=2048, stride=16)),
        num_classes=21,
        conv_dims=1024,
        common_stride=16,
        norm="",
        ignore_value=255,
        loss_weight=1.0,
    ),
    **pixels,
)
