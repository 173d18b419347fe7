"""A recipe differs from the one it is derived from as expected, and in nothing else.

A variant differs from its plain twin by the parts of its name. A `_paper` recipe differs from the
YAML it is named after by the paper's settings, a 3x recipe from the 1x one by its schedule. A YAML
of model_zoo/ differs from one of our networks by its training.
"""

import pytest
import yaml

from yamls import (
    MODELS,
    PAPER,
    QUICK,
    THREE_X,
    VARIANTS,
    ZOO,
    bases_of,
    detector,
    flat,
    load,
    parts,
    plain_twin,
    relative,
)

# ---- The paper's training ------------------------------------------------------------------------

# Paper sec. 4.1: 30 k and 240 k iterations of 8 images; COCO training uses train + val of 2014.
PAPER_SETTINGS = {
    "VOC-Detection": {
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.008,
        "SOLVER.MAX_ITER": 30000,
        "SOLVER.STEPS": (20000,),
    },
    "COCO-Detection": {
        "DATASETS.TRAIN": ("coco_2014_train", "coco_2014_val"),
        "DATASETS.TEST": ("coco_2017_test-dev",),
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.008,
        "SOLVER.MAX_ITER": 240000,
        "SOLVER.STEPS": (160000,),
    },
    # 30 k and 45 k; the paper mentions neither a crop nor the resolution of mIoU.
    "VOC-SemanticSegmentation": {
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.008,
        "SOLVER.MAX_ITER": 30000,
        "SOLVER.STEPS": (20000,),
        "TEST.SEM_SEG_RESOLUTION": "full",
    },
    "Cityscapes-SemanticSegmentation": {
        "INPUT.CROP.ENABLED": False,
        "INPUT.MIN_SIZE_TRAIN": (1024,),
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.008,
        "SOLVER.MAX_ITER": 45000,
        "SOLVER.STEPS": (30000,),
        "TEST.SEM_SEG_RESOLUTION": "full",
    },
}


@pytest.mark.parametrize("path", PAPER, ids=relative)
def test_paper(path):
    released = path.with_stem(path.stem.removesuffix("_paper"))
    assert flat(load(path)) == flat(load(released)) | PAPER_SETTINGS[path.parent.name]


# The rows of tables 1 and 3 that name a layer or a dilation.
ROWS = [f"dconv{n}" for n in (1, 2, 3, 6)] + [f"atrous{n}" for n in (4, 6, 8)]
POOLING_ROWS = ["dpool", "dconv3_dpool"]


def test_every_row_of_tables_1_and_3_has_the_papers_training():
    expected = {
        f"{folder}/{network}_R_101{row}_paper"
        for folder, networks in {
            "VOC-Detection": ("class_aware_rpn", "faster_rcnn", "rfcn"),
            "VOC-SemanticSegmentation": ("deeplab",),
            "Cityscapes-SemanticSegmentation": ("deeplab",),
        }.items()
        for network in networks
        for row in [
            "",
            *(f"_{row}" for row in ROWS + POOLING_ROWS * ("rcnn" in network or network == "rfcn")),
        ]
    }
    ours = {relative(p).removesuffix(".yaml") for p in PAPER}
    assert {name for name in ours if not name.startswith("COCO")} == expected


# ---- Detectron2's 3x -----------------------------------------------------------------------------

SCHEDULE_3X = {"SOLVER.STEPS": (210000, 250000), "SOLVER.MAX_ITER": 270000}


@pytest.mark.parametrize("path", THREE_X, ids=relative)
def test_3x_is_1x_trained_longer(path):
    once = path.with_stem(path.stem.replace("_3x", "_1x"))
    assert flat(load(path)) == flat(load(once)) | SCHEDULE_3X
    assert yaml.safe_load(path.read_text()) == {"_BASE_": [once.name, "Base-COCO-3x.yaml"]}


# ---- Variants ------------------------------------------------------------------------------------

# The settings that a part of a name means.
CONVOLUTIONS = {
    "dconv_c3-c5": {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]},
    "mdconv_c3-c5": {
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
        "MODEL.RESNETS.DEFORM_MODULATED": True,
        "SOLVER.LR_MULTIPLIERS": [["conv_offset", 0.1]],  # DCNv2_op/example_symbol.py
    },
}
CONVOLUTIONS |= {f"dconv{n}": {"MODEL.RESNETS.DEFORM_NUM_LAYERS": n} for n in (1, 2, 3, 6, 9)}
CONVOLUTIONS |= {f"atrous{n}": {"MODEL.RESNETS.RES5_DILATION": n} for n in (4, 6, 8)}
FASTER_DPOOL = {
    "MODEL.ROI_HEADS.NAME": "DeformROIHeads",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "DeformROIPool",
    "SOLVER.LR_MULTIPLIERS": [["box_pooler.*offset_fc", 0.01]],  # paper sec. 2.3
}
# mmdetection trains its offset layers at the full rate.
MMDET_DPOOL = {
    f"{name}_mmdet": {
        "MODEL.ROI_HEADS.NAME": "DeformROIHeads",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": pooler,
    }
    for name, pooler in (("dpool", "DeformROIAlign"), ("mdpool", "ModulatedDeformROIAlign"))
}
DPOOL = {
    "rfcn": {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "DeformPSROIPool"},
    "faster": FASTER_DPOOL,
    "mask": FASTER_DPOOL,
    "cascade": FASTER_DPOOL | {"MODEL.ROI_HEADS.NAME": "DeformCascadeROIHeads"},
}
# Deformable ConvNets v2 trains its offset layers at the rate of the network.
MDPOOL = {
    "rfcn": {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ModulatedDeformPSROIPool"},
    "faster": {
        "MODEL.ROI_HEADS.NAME": "DeformROIHeads",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ModulatedDeformROIPool",
        "MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART": 2,  # DCNv2_op/example_symbol.py
    },
}
# Paper sec. 4.3. It has no limit for the longer side; 2000 is the limit for scale 1400 in the
# released tester of FPN (experiments/fpn/cfgs).
MULTI_SCALE = {
    "TEST.AUG.ENABLED": True,
    "TEST.AUG.MIN_SIZES": (480, 576, 688, 864, 1200, 1400),
    "TEST.AUG.MAX_SIZE": 2000,
    "TEST.AUG.FLIP": False,
}
BOX_AVERAGE = {
    "TEST.BOX_AVERAGE.ENABLED": True,
    "TEST.BOX_AVERAGE.ITERATIONS": 2,
    "TEST.BOX_AVERAGE.VOTE_IOU": 0.5,
}
OTHER = MMDET_DPOOL | {
    # fpn/symbols/resnet_v1_101_fpn_dcn_rcnn.py; RoI offsets learn at 0.01 of the rate.
    "dcn": {
        "MODEL.RESNETS.DEFORM_NUM_LAYERS": 3,
        "MODEL.RESNETS.DEFORM_LAYERS": ["res3.3.conv2", "res4.22.conv2"],
        "MODEL.RESNETS.DEFORM_NUM_GROUPS": 4,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "DeformROIPool",
        "MODEL.ROI_BOX_HEAD.DEFORM_OFFSETS_PER_LEVEL": True,
        "SOLVER.LR_MULTIPLIERS": [["box_pooler.*offset_fc", 0.01]],
    },
    "1x1": {"MODEL.RPN.CONV_DIMS": []},
    "group4": {"MODEL.RESNETS.DEFORM_NUM_GROUPS": 4},
    "3x3": {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3},  # figure 6
    "M": MULTI_SCALE,
    "MB": MULTI_SCALE | BOX_AVERAGE,
}


RATES = "SOLVER.LR_MULTIPLIERS"


def changes(path):
    """Settings that a YAML of configs/ must have by its name, and its plain twin lacks."""
    values = {}
    for part in parts(path):
        of_detectors = {"dpool": DPOOL, "mdpool": MDPOOL}.get(part)
        part = of_detectors[detector(path)] if of_detectors else (CONVOLUTIONS | OTHER)[part]
        rates = values.get(RATES, []) + part.get(RATES, [])
        values |= part | ({RATES: rates} if rates else {})
    rates = values.get(RATES, [])
    if path in QUICK and "dconv" in path.stem:
        # Trained from scratch, convolution offsets learn more slowly.
        rates = [["conv_offset", 0.1], *rates]
    if rates:  # those of the plain twin stay
        values[RATES] = flat(load(plain_twin(path)))[RATES] + rates
    return values


@pytest.mark.parametrize("path", VARIANTS, ids=relative)
def test_a_variant_differs_by_the_parts_of_its_name(path):
    assert flat(load(path)) == flat(load(plain_twin(path))) | changes(path)


@pytest.mark.parametrize("path", VARIANTS, ids=relative)
def test_a_variant_says_only_what_its_base_does_not(path):
    base, *test = bases_of(path)
    own = {key: value for key, value in changes(path).items() if key not in changes(base)}
    expected = {k: str(v) if isinstance(v, tuple) else v for k, v in own.items()}  # as in the YAML
    if test:
        expected = {}  # Base-COCO-M.yaml and Base-COCO-MB.yaml have these settings
    names = [file.name for file in (base, *test)]
    expected["_BASE_"] = names if test else names[0]
    assert flat(yaml.safe_load(path.read_text())) == expected


# ---- Model zoo -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ZOO, ids=relative)
def test_a_zoo_yaml_changes_only_the_training_of_its_base(path):
    changes = yaml.safe_load(path.read_text())
    base = path.parent / changes.pop("_BASE_")
    assert base.resolve() in MODELS and base.name == path.name
    assert set(changes) <= {"DATASETS", "SOLVER", "TEST"}, "the network must be that of its base"
