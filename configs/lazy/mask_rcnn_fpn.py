"""Detectron2's Mask R-CNN with FPN, on this package's ResNet-50: ../Base-RCNN-FPN.yaml."""

from detectron2 import model_zoo

from d2_deformable.modeling import DeformResNet

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.update(_target_=DeformResNet, freeze_at=2)


def dconv_stages(model, stages: list[bool]):
    """Make all 3x3 convolutions of the flagged stages, of res2 to res5, deformable
    (MODEL.RESNETS.DEFORM_ON_PER_STAGE)."""
    model.backbone.bottom_up.deform_on_per_stage = stages
