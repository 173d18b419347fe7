"""Small networks of each kind that can be exported, from YAMLs, with random weights."""

import torch
from detectron2.modeling import build_model

from yamls import CONFIGS, load

NETWORKS = {
    "rfcn": "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml",
    "faster_rcnn": "quick/warped_shapes_faster_rcnn_R_18_dconv3_dpool.yaml",
    "class_aware_rpn": "quick/warped_shapes_class_aware_rpn_R_18_dconv3.yaml",
    "deeplab": "quick/warped_shapes_deeplab_R_18_dconv3.yaml",
    "cascade_rcnn": "COCO-Detection/cascade_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml",
    "rfcn_fpn": "COCO-Detection/rfcn_R_50_FPN_1x_dconv_c3-c5_dpool.yaml",
    "mask_rcnn": "COCO-Detection/mask_rcnn_R_50_FPN_1x_mdconv_c3-c5_dpool.yaml",
}
# Overrides that give the networks converted from the released code and from mmdetection.
CONVERTED = {
    "faster_rcnn_released": (
        "faster_rcnn",
        *("MODEL.PROPOSAL_GENERATOR.NAME", "LegacyRPN", "MODEL.RESNETS.STEM_POOL_CEIL", True),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "LegacyROIPool", "MODEL.RPN.PRE_NMS_TOPK_TEST", 100),
    ),
    "deeplab_released": ("deeplab", "MODEL.RESNETS.STEM_POOL_CEIL", True),
    "mask_rcnn_mmdetection": (
        "mask_rcnn",
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ModulatedDeformROIAlign"),
    ),
}
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 60),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
]


def small_config(name: str, *overrides):
    if name in CONVERTED:
        return small_config(*CONVERTED[name], *overrides)
    cfg = load(CONFIGS / NETWORKS[name])
    cfg.merge_from_list([*SMALL, *overrides])
    return cfg


def small_network(name: str, *overrides):
    """The network in evaluation mode; its offsets, scores and boxes are no longer near 0."""
    torch.manual_seed(0)
    model = build_model(small_config(name, *overrides)).eval()
    for parameter_name, parameter in model.named_parameters():
        if "offset" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif any(s in parameter_name for s in ("cls_score", "bbox_pred", "objectness")):
            torch.nn.init.normal_(parameter, std=0.02)  # a larger one leaves no detection
    return model


def noise(height: int, width: int) -> torch.Tensor:
    """A random image in the format that exported networks take."""
    return torch.rand(3, height, width) * 255
