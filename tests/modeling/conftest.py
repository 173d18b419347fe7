import pytest
from detectron2.config import get_cfg

from d2_deformable import add_deformable_config


@pytest.fixture
def cfg():
    """Detectron2's and our defaults, on the CPU, without weights and without frozen layers."""
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg


@pytest.fixture
def small_rcnn_cfg(cfg):
    """A GeneralizedRCNN with three classes on a ResNet-18 at stride 16, for images of 64 x 96."""
    cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_deform_resnet_backbone"),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.RES5_DILATION", 2),
            *("MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"]),
            *("MODEL.PIXEL_STD", [57.4, 57.1, 58.4]),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]]),
            *("MODEL.RPN.IN_FEATURES", ["res4"]),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 40),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["res5"]),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3),
        ]
    )
    return cfg
