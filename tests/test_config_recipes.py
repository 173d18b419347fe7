"""Every number of every plain recipe: the defaults, except for the tables below.

NETWORK, DETECTOR, DATA_SET and BACKBONE define the recipes at stride 16. Recipes with a feature
pyramid equal Detectron2's own. test_derived_recipes.py checks the others. Paths are those of the
released code.
"""

import re

import pytest
import torch
from detectron2 import model_zoo
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_lr_scheduler

from yamls import (
    CONFIGS,
    FPN,
    MODELS,
    PAPER,
    PLAIN,
    SEGMENTATION,
    STRIDE_16,
    detector,
    flat,
    load,
    relative,
)

# ---- Stride 16 -----------------------------------------------------------------------------------

# Settings that R-FCN, Faster R-CNN and (for the parts that it has) class-aware RPN share.
NETWORK = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    # The trunk: */symbols/resnet_v1_101_*.py, lib/utils/image.py.
    "MODEL.BACKBONE.NAME": "build_deform_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.OUT_FEATURES": ["res4", "res5_reduced"],
    "MODEL.RESNETS.REDUCED_INIT_STD": 0.01,
    "INPUT.FORMAT": "BGR",  # the order of Detectron2's MSRA weights; the released code reads RGB
    "MODEL.PIXEL_MEAN": [103.06, 115.90, 123.15],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    # Deformable layers: paper sec. 2.1 and 2.2, */symbols/resnet_v1_101_*_dcn.py. The paper has one
    # group of offsets (by the parameters in its table 4); the released code has 4.
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.RESNETS.DEFORM_BORDER": "zero",
    "MODEL.RESNETS.DEFORM_OFFSET_DILATION": 0,
    "MODEL.ROI_BOX_HEAD.DEFORM_GAMMA": 0.1,
    "MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART": 4,
    "MODEL.ROI_BOX_HEAD.ROUND_ROIS": True,
    # The RPN: paper sec. 2.3, get_rpn of the symbols, operator_py/proposal.py.
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.CONV_DIMS": [512],
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.IOU_LABELS": [0, -1, 1],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,  # sigma 3
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 6000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 300,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    # RoIs: paper sec. 4.1, core/rcnn.py.
    "MODEL.ROI_HEADS.IN_FEATURES": ["res5_reduced"],
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    # Training and test: experiments/*/cfgs/*.yaml, config/config.py.
    "INPUT.MIN_SIZE_TRAIN": (600,),
    "INPUT.MAX_SIZE_TRAIN": 1000,
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.ENABLED": False,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_METHOD": "constant",
    "SOLVER.WARMUP_FACTOR": 0.1,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
}

DETECTOR = {
    # The separate network of the paper's VOC detectors, sec. 4.1.
    "rpn": {
        "MODEL.META_ARCHITECTURE": "ProposalNetwork",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    },
    # Paper sec. 2.3, rfcn/symbols/resnet_v1_101_rfcn.py, operator_py/box_annotator_ohem.py.
    "rfcn": {
        "MODEL.RESNETS.REDUCED_CHANNELS": 1024,
        "MODEL.ROI_HEADS.NAME": "RFCNHeads",
        "MODEL.ROI_HEADS.SAMPLING": "ohem",
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
        "MODEL.ROI_HEADS.IOU_LABELS": [0, 1],
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "PSROIPool",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "SOLVER.LR_MULTIPLIERS": [["reduction", 3.0]],
    },
    # Paper sec. 2.3, faster_rcnn/symbols/resnet_v1_101_rcnn.py.
    "faster": {
        "MODEL.RESNETS.REDUCED_CHANNELS": 256,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.SAMPLING": "random",
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.1, 0.5],
        "MODEL.ROI_HEADS.IOU_LABELS": [-1, 0, 1],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
        "SOLVER.LR_MULTIPLIERS": [],
    },
    # Paper sec. 2.3 and 4.1; its code was not released.
    "class_aware": {
        "MODEL.META_ARCHITECTURE": "ClassAwareRPN",
        "MODEL.RESNETS.OUT_FEATURES": ["res5_reduced"],
        "MODEL.RESNETS.REDUCED_CHANNELS": 1024,
        "MODEL.RPN.IN_FEATURES": ["res5_reduced"],
        "SOLVER.LR_MULTIPLIERS": [],
    },
}

# experiments/*/cfgs/*.yaml; test_image_visits shows where the schedules come from.
DATA_SET = {
    "VOC-Detection": {
        "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
        "DATASETS.TEST": ("voc_2007_test",),
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[128, 256, 512]],
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.BASE_LR": 0.002,
        "SOLVER.MAX_ITER": 57900,
        "SOLVER.STEPS": (40000,),
        "INPUT.DROP_DIFFICULT": True,
        "TEST.DETECTIONS_PER_IMAGE": 300,
        "TEST.VOC_METRIC": "07",
    },
    "COCO-Detection": {
        "DATASETS.TRAIN": ("coco_2017_train",),
        "DATASETS.TEST": ("coco_2017_val",),
        "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.004,
        "SOLVER.MAX_ITER": 244000,
        "SOLVER.STEPS": (163000,),
        "TEST.DETECTIONS_PER_IMAGE": 100,
    },
}

BACKBONE = {
    f"R_{depth}": {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.WEIGHTS": f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl",
    }
    for depth in (50, 101)
} | {
    # Paper appendix A; the normalisation is that of `d2-deformable train imagenet`.
    "AIR": {
        "MODEL.BACKBONE.NAME": "build_aligned_inception_resnet_backbone",
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.WEIGHTS": "output/imagenet_AIR_101/backbone.pth",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    }
}


@pytest.mark.parametrize("path", [p for p in PLAIN if p in STRIDE_16], ids=relative)
def test_plain_stride_16(path):
    backbone = BACKBONE[re.search(r"R_\d+|AIR", path.stem)[0]]
    ours = NETWORK | DETECTOR[detector(path)] | DATA_SET[path.parent.name] | backbone
    assert flat(load(path)) == flat(load()) | ours


# Images until the learning rate drops, images in total, learning rate per image.
IMAGE_VISITS = {
    ("VOC-Detection", "released"): (159.9e3, 231.7e3, 0.0005),
    ("VOC-Detection", "paper"): (160e3, 240e3, 0.001),
    ("COCO-Detection", "released"): (1.307e6, 1.96e6, 0.0005),
    ("COCO-Detection", "paper"): (1.28e6, 1.92e6, 0.001),
    ("VOC-SemanticSegmentation", "released"): (8 * 2 * 10582, 12 * 2 * 10582, 0.0005),
    ("VOC-SemanticSegmentation", "paper"): (160e3, 240e3, 0.001),
    ("Cityscapes-SemanticSegmentation", "released"): (40.336 * 2 * 2975, 53 * 2 * 2975, 0.0005),
    ("Cityscapes-SemanticSegmentation", "paper"): (240e3, 360e3, 0.001),
}


@pytest.mark.parametrize("path", STRIDE_16 + SEGMENTATION, ids=relative)
def test_image_visits(path):
    recipe = "paper" if path in PAPER else "released"
    solver = load(path).SOLVER
    (drop,) = solver.STEPS
    images = solver.IMS_PER_BATCH
    actual = (drop * images, solver.MAX_ITER * images, solver.BASE_LR / images)
    assert actual == pytest.approx(IMAGE_VISITS[path.parent.name, recipe], rel=0.01)


@pytest.mark.parametrize(
    "name, gpus", [("VOC-Detection/rfcn_R_50", 4), ("COCO-Detection/rfcn_R_50", 8)]
)
def test_recipe_on_another_number_of_gpus(name, gpus):
    """SOLVER.REFERENCE_WORLD_SIZE rescales; warm-up on one GPU is as released for one."""
    cfg = load(CONFIGS / f"{name}.yaml")
    cfg.SOLVER.REFERENCE_WORLD_SIZE = gpus
    one = DefaultTrainer.auto_scale_workers(cfg, 1).SOLVER
    scaled = [one.IMS_PER_BATCH, one.WARMUP_ITERS, one.MAX_ITER, one.BASE_LR]
    assert scaled == pytest.approx([1, 1000 * gpus, cfg.SOLVER.MAX_ITER * gpus, 0.0005])


# ---- Segmentation --------------------------------------------------------------------------------

# DeepLab: paper sec. 2.3, deeplab/symbols/resnet_v1_101_deeplab.py. The trunk and the settings of
# deformable layers are NETWORK's, although the released DeepLab predicts its offsets differently
# (dilation 1, biases at twice the rate).
DEEPLAB_NETWORK = {
    key: value
    for key, value in NETWORK.items()
    if key.startswith(("MODEL.BACKBONE", "MODEL.RESNETS", "MODEL.PIXEL", "SOLVER"))
} | {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 1024,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 16,
    "MODEL.SEM_SEG_HEAD.NORM": "",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "SOLVER.LR_MULTIPLIERS": [["sem_seg_head.*bias", 2.0]],
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": 0.002,
}

# The names and their order are those of the VOC 2012 devkit.
VOC_CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]

# deeplab/cfgs/*.yaml, lib/dataset/{pascal_voc,cityscape}.py.
SEGMENTATION_SET = {
    "VOC-SemanticSegmentation": {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 21,
        "DATASETS.TRAIN": ("voc_2012_aug_sem_seg_train",),
        "DATASETS.TEST": ("voc_2012_sem_seg_val",),
        **{
            f"DATASETS.CUSTOM.{name}.{field}": value
            for name, masks, split in (
                ("voc_2012_aug_sem_seg_train", "SegmentationClassAug", "train_aug"),
                ("voc_2012_sem_seg_val", "SegmentationClass", "val"),
            )
            for field, value in {
                "FORMAT": "mask",
                "ROOT": "VOC2012",
                "IMAGES": "JPEGImages",
                "MASKS": masks,
                "SPLIT": f"ImageSets/Segmentation/{split}.txt",
                "CLASSES": VOC_CLASSES,
            }.items()
        },
        "INPUT.CROP.ENABLED": False,
        "INPUT.MIN_SIZE_TRAIN": (360,),
        "INPUT.MAX_SIZE_TRAIN": 600,
        "INPUT.MIN_SIZE_TEST": 360,
        "INPUT.MAX_SIZE_TEST": 600,
        "SOLVER.MAX_ITER": 63500,
        "SOLVER.STEPS": (42300,),
        "SOLVER.WARMUP_METHOD": "linear",  # no effect, since it has 0 iterations
        "SOLVER.WARMUP_FACTOR": 0.001,
        "SOLVER.WARMUP_ITERS": 0,
        "TEST.SEM_SEG_RESOLUTION": "resized_ground_truth",
    },
    "Cityscapes-SemanticSegmentation": {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
        "DATASETS.TRAIN": ("cityscapes_fine_sem_seg_train",),
        "DATASETS.TEST": ("cityscapes_fine_sem_seg_val",),
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [768, 1024],
        "INPUT.MIN_SIZE_TRAIN": (768,),  # size of the crop
        "INPUT.MAX_SIZE_TRAIN": 1024,
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TEST": 2048,
        "SOLVER.MAX_ITER": 78800,
        "SOLVER.STEPS": (60000,),
        "TEST.SEM_SEG_RESOLUTION": "resized_prediction",
    },
}


@pytest.mark.parametrize("path", [p for p in PLAIN if p in SEGMENTATION], ids=relative)
def test_plain_segmentation(path):
    ours = DEEPLAB_NETWORK | SEGMENTATION_SET[path.parent.name] | BACKBONE["R_101"]
    assert flat(load(path)) == flat(load()) | ours


def test_no_warm_up_starts_at_the_full_rate():
    cfg = load(CONFIGS / "VOC-SemanticSegmentation/deeplab_R_101.yaml")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    rates = build_lr_scheduler(cfg, optimizer)
    assert rates.get_last_lr() == [cfg.SOLVER.BASE_LR]


# ---- Feature pyramid -----------------------------------------------------------------------------


# Detectron2's YAML that a plain one equals, with ResNet-50.
DETECTRON2 = {
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    # Not Detectron2's: their recipe is that of
    "rfcn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "fcos": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}
RFCN_FPN = {
    "MODEL.ROI_HEADS.NAME": "RFCNHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.ROI_HEADS.SAMPLING": "ohem",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "PSROIPool",
}
# configs/common/models/fcos.py of Detectron2 main.
FCOS = {
    "MODEL.META_ARCHITECTURE": "build_fcos",
    "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "p5",
    "MODEL.RETINANET.NORM": "GN",
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.2,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.6,
}
# As Detectron2's faster_rcnn_X_101_32x8d_FPN_3x.yaml, but for images and weights of timm.
RESNEXT = {
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.WEIGHTS": "output/resnext101_32x4d.pth",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
}
RELEASED_FPN = CONFIGS / "COCO-Detection/faster_rcnn_R_101_FPN_ohem.yaml"


@pytest.mark.parametrize("path", [p for p in PLAIN if p in FPN and p != RELEASED_FPN], ids=relative)
def test_plain_fpn_is_detectron2s(path):
    expected = load(model_zoo.get_config_file(DETECTRON2[detector(path)]))
    expected.MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
    if "cascade_rcnn" in path.stem:
        expected.MODEL.MASK_ON = False
    if "R_101" in path.stem:
        expected.MODEL.RESNETS.DEPTH = 101
        expected.MODEL.WEIGHTS = expected.MODEL.WEIGHTS.replace("R-50", "R-101")
    ours = {"rfcn": RFCN_FPN, "fcos": FCOS}.get(detector(path), {})
    if "X_101" in path.stem:
        ours = RESNEXT
    assert flat(load(path)) == flat(expected) | ours


def test_released_fpn():
    """fpn/symbols/resnet_v1_101_fpn_rcnn.py, operator_py/pyramid_proposal.py, train_end2end.py and
    experiments/fpn/cfgs/resnet_v1_101_coco_trainval_fpn_end2end_ohem.yaml."""
    ours = {
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
        "MODEL.PIXEL_MEAN": [103.06, 115.90, 123.15],
        "MODEL.FPN.TOP_BLOCK": "LastLevelP6",
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.PROPOSAL_GENERATOR.NAME": "LegacyRPN",
        "MODEL.RPN.CONV_DIMS": [512],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 12000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 2000,
        "MODEL.RPN.BOUNDARY_THRESH": -1,
        "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,
        "MODEL.ROI_HEADS.NAME": "DeformROIHeads",
        "MODEL.ROI_HEADS.SAMPLING": "ohem",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
        "INPUT.MIN_SIZE_TRAIN": (800,),
        "INPUT.MAX_SIZE_TRAIN": 1280,
        "INPUT.MIN_SIZE_TEST": 800,
        "INPUT.MAX_SIZE_TEST": 1280,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 205200,
        "SOLVER.STEPS": (117300, 175900),
        "SOLVER.WARMUP_METHOD": "constant",
        "SOLVER.WARMUP_FACTOR": 0.1,
        "SOLVER.WARMUP_ITERS": 250,
        "SOLVER.WEIGHT_DECAY": 0.0001,
        "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    }
    like = load(CONFIGS / "COCO-Detection/faster_rcnn_R_101_FPN_1x.yaml")
    assert flat(load(RELEASED_FPN)) == flat(like) | ours
    images = 117266  # of trainval35k that have an object; each also flipped
    epochs = [n * 8 / (2 * images) for n in (117300, 175900, 205200)]
    assert epochs == pytest.approx([4, 6, 7], rel=1e-3)


# ---- All -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODELS, ids=relative)
def test_schedule_ends_after_its_last_step(path):
    solver = load(path).SOLVER
    milestones = [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER]
    assert milestones == sorted(set(milestones))
