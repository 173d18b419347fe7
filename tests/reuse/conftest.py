import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from d2_deformable import add_deformable_config

NUM_CLASSES = 3


@pytest.fixture
def batch():
    """Two images of 96 x 128 pixels with one or two objects, as Detectron2's models take them."""
    boxes = [[[8.0, 8, 60, 70]], [[20.0, 10, 90, 80], [50, 30, 120, 90]]]
    return [
        {
            "image": torch.randint(256, (3, 96, 128), dtype=torch.uint8),
            "height": 96,
            "width": 128,
            "instances": Instances(
                (96, 128), gt_boxes=Boxes(torch.tensor(b)), gt_classes=torch.arange(len(b))
            ),
        }
        for b in boxes
    ]


@pytest.fixture
def rfcn_cfg():
    """A small deformable R-FCN, on the CPU."""
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_STD = [57.4, 57.1, 58.4]
    cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH = 18
    resnets.STEM_OUT_CHANNELS = resnets.RES2_OUT_CHANNELS = 8
    resnets.NORM = "BN"
    resnets.OUT_FEATURES = ["res4", "res5_reduced"]
    resnets.RES5_DILATION = 2
    resnets.DEFORM_NUM_LAYERS = 3
    resnets.REDUCED_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NAME = "RFCNHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5_reduced"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "DeformPSROIPool"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    return cfg
