"""Every YAML builds and has the right parameters; one of each kind runs a training step.

test_config_recipes.py and test_derived_recipes.py check the values of its keys.
"""

import math
import re
import shlex
from unittest.mock import patch

import pytest
import torch
import yaml
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

import train_net
from d2_deformable.engine import build_optimizer, check_settings
from d2_deformable.engine.optimizer import lr_factors
from d2_deformable.modeling.meta_arch.fcos import FCOS
from yamls import (
    CONFIGS,
    DEEPLAB,
    FPN,
    MODELS,
    QUICK,
    SEGMENTATION,
    STRIDE_16,
    THREE_X,
    VARIANTS,
    YAMLS,
    load,
    parts,
    plain_twin,
    relative,
)

RELEASED_FPN_AND_RESNEXT = [
    "R_101_FPN_ohem",
    "R_101_FPN_ohem_dcn",
    "X_101_32x4d_FPN_1x_dconv_c3-c5",
]
# Detectron2 0.5 has no FCOS: its YAMLs are refused by name.
WITHOUT_FCOS = [p for p in MODELS if FCOS is None and p.stem.startswith("fcos")]
BUILD = [p for p in MODELS if p not in WITHOUT_FCOS]

# One of each kind: deeper networks, other data sets and schedules only repeat their layers.
KINDS = [
    *(
        p
        for p in STRIDE_16 + FPN
        if p.parent.name == "COCO-Detection"
        and "_R_50" in p.stem
        and p not in THREE_X + WITHOUT_FCOS
    ),
    *(CONFIGS / f"COCO-Detection/faster_rcnn_{n}.yaml" for n in RELEASED_FPN_AND_RESNEXT),
    *(CONFIGS / f"COCO-Detection/class_aware_rpn_R_101{v}.yaml" for v in ("", "_dconv3")),
    *(CONFIGS / f"COCO-Detection/{n}_AIR_dconv3_dpool.yaml" for n in ("rfcn", "faster_rcnn")),
    CONFIGS / "VOC-Detection/rfcn_R_101_dconv3_dpool_3x3.yaml",
    CONFIGS / "VOC-Detection/class_aware_rpn_R_101_1x1.yaml",
]

_models = {}  # YAMLs that differ only in their recipe share a model


def without_memory(path, overrides=()):
    """Build a YAML's model on the meta device, which has shapes but no numbers."""
    cfg = load(path)
    cfg.merge_from_list([*overrides])
    cfg.MODEL.DEVICE = "meta"
    key = cfg.MODEL.dump()
    if key not in _models:
        # Random numbers are not kept on this device, but drawing them takes most of the time.
        undrawn = {name: lambda self, *_, **__: self for name in ("normal_", "uniform_")}
        with torch.device("meta"), patch.multiple(torch.Tensor, **undrawn):
            _models[key] = build_model(cfg)
    return _models[key]


@pytest.mark.parametrize("path", BUILD, ids=relative)
def test_builds(path):
    cfg = load(path)
    check_settings(cfg)
    build_optimizer(cfg, without_memory(path))  # SOLVER.LR_MULTIPLIERS finds its layers


@pytest.mark.parametrize("path", WITHOUT_FCOS, ids=relative)
def test_without_fcos_the_version_that_has_it_is_named(path):
    for build in (check_settings, build_model):
        with pytest.raises(ValueError, match="build_fcos needs .* Detectron2's main .* 0.5 lacks"):
            build(load(path))


def test_lines_fit_a_screen():
    assert len(YAMLS) > 100
    for path in YAMLS:
        assert not [line for line in path.read_text().splitlines() if len(line) > 100], path


def test_bases_stay_inside_configs():
    for path in YAMLS:
        bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
        for base in [bases] if isinstance(bases, str) else bases:
            file = (path.parent / base).resolve()
            assert file.is_relative_to(CONFIGS) and file.is_file(), (path, base)


RATED = [p for p in STRIDE_16 + FPN + SEGMENTATION if p in BUILD and p not in THREE_X]


@pytest.mark.parametrize("path", RATED, ids=relative)
def test_learning_rates_of_layers(path):
    """As released: R-FCN's reduction learns at 3 times the rate, RoI offsets at 0.01 times, offsets
    and masks of modulated convolutions at 0.1 times, and DeepLab's biases at twice the rate."""
    model = without_memory(path)
    expected = {}
    if path in DEEPLAB:
        expected = {f"sem_seg_head.{layer}.bias": 2.0 for layer in ("hidden", "predictor")}
    elif path.stem.startswith("rfcn") and path not in FPN:
        expected = {f"backbone.reduction.{p}": 3.0 for p in ("weight", "bias")}
    elif {"dpool", "dcn"} & {*parts(path)} and "rfcn" not in path.stem:
        levels = [f"{i}." for i in range(4)] if "dcn" in parts(path) else [""]
        layers = [f"roi_heads.box_pooler.roi_pool.{level}offset_fc" for level in levels]
        expected = {f"{layer}.{p}": 0.01 for layer in layers for p in ("weight", "bias")}
    if "mdconv" in path.stem:
        names = (name for name, _ in model.named_parameters() if "conv_offset" in name)
        expected |= dict.fromkeys(names, 0.1)
    factors = lr_factors(model, load(path).SOLVER.LR_MULTIPLIERS)
    names = {p: name for name, p in model.named_parameters()}
    assert {names[p]: f for p, f in factors.items() if f != 1} == expected


# ---- Parameters ----------------------------------------------------------------------------------


def num_parameters(module):
    """Number of weights, biases and affine pairs of batch norms, which are buffers if frozen."""
    frozen = [m for m in module.modules() if isinstance(m, FrozenBatchNorm2d)]
    trained = sum(p.numel() for p in module.parameters())
    return trained + sum(m.weight.numel() + m.bias.numel() for m in frozen)


# Paper table 4, with Detectron2's heads: the number of all parameters, of those without the RPN
# (which the paper trains separately on VOC), and of those that the YAML adds to its plain twin. In
# the paper the growth on VOC is 2.4 M for R-FCN and 1.6 M for Faster R-CNN.
PARAMETERS = [
    ("VOC-Detection/class_aware_rpn_R_101", 49_432_865, 49_432_865, 0),
    ("VOC-Detection/class_aware_rpn_R_101_dconv3", 49_681_751, 49_681_751, 248_886),
    ("VOC-Detection/class_aware_rpn_R_101_1x1", 44_828_961, 44_828_961, -4_603_904),
    ("VOC-Detection/class_aware_rpn_R_101_dconv3_1x1", 45_077_847, 45_077_847, -4_355_018),
    ("VOC-Detection/rfcn_R_101", 50_596_150, 45_853_961, 0),
    ("VOC-Detection/rfcn_R_101_dconv3", 50_845_036, 46_102_847, 248_886),
    ("VOC-Detection/rfcn_R_101_dpool", 52_806_050, 48_063_861, 2_209_900),
    ("VOC-Detection/rfcn_R_101_dconv3_dpool", 53_054_936, 48_312_747, 2_458_786),
    ("VOC-Detection/faster_rcnn_R_101", 61_766_098, 57_023_909, 0),
    ("VOC-Detection/faster_rcnn_R_101_dconv3", 62_014_984, 57_272_795, 248_886),
    ("VOC-Detection/faster_rcnn_R_101_dpool", 62_995_508, 58_253_319, 1_229_410),
    ("VOC-Detection/faster_rcnn_R_101_dconv3_dpool", 63_244_394, 58_502_205, 1_478_296),
    ("VOC-Detection/rfcn_R_101_dconv3_dpool_3x3", 50_225_936, 45_483_747, -370_214),
    ("COCO-Detection/class_aware_rpn_R_101", 49_840_700, 49_840_700, 0),
    ("COCO-Detection/rfcn_R_101", 53_617_345, 48_867_461, 0),
    ("COCO-Detection/rfcn_R_101_dconv3_dpool", 62_103_131, 57_353_247, 8_485_786),
    ("COCO-Detection/faster_rcnn_R_101", 62_081_293, 57_331_409, 0),
    ("COCO-Detection/faster_rcnn_R_101_dconv3_dpool", 63_559_589, 58_809_705, 1_478_296),
    ("VOC-SemanticSegmentation/deeplab_R_101", 44_619_861, 44_619_861, 0),
    ("VOC-SemanticSegmentation/deeplab_R_101_dconv3", 44_868_747, 44_868_747, 248_886),
    ("VOC-SemanticSegmentation/deeplab_R_101_atrous4", 44_619_861, 44_619_861, 0),
    ("Cityscapes-SemanticSegmentation/deeplab_R_101", 44_617_811, 44_617_811, 0),
    ("COCO-Detection/rfcn_AIR", 73_449_985, 68_700_101, 0),
    ("COCO-Detection/rfcn_AIR_dconv3_dpool", 81_852_827, 77_102_943, 8_402_842),
    ("COCO-Detection/rfcn_AIR_dconv9_dpool", 82_184_711, 77_434_827, 8_734_726),
    ("COCO-Detection/faster_rcnn_AIR", 81_913_933, 77_164_049, 0),
    ("COCO-Detection/faster_rcnn_AIR_dconv3_dpool", 83_309_285, 78_559_401, 1_395_352),
]


@pytest.mark.parametrize("name, total, without_rpn, growth", PARAMETERS)
def test_parameters(name, total, without_rpn, growth):
    path = CONFIGS / f"{name}.yaml"
    model, plain = without_memory(path), without_memory(plain_twin(path))
    assert num_parameters(model) == total
    rpn = getattr(model, "proposal_generator", None)  # class-aware RPN is one network
    assert total - (num_parameters(rpn) if rpn else 0) == without_rpn
    assert total - num_parameters(plain) == growth


RECIPES = (CONFIGS.parent / "docs/recipes.md").read_text().replace("\\\n", " ")


def table_4():
    """{YAML on VOC: parameters and growth with 1 and with 4 groups, in docs/recipes.md}."""
    files = {
        "class-aware RPN": "class_aware_rpn_R_101",
        "class-aware RPN without the 3x3 convolution (`_1x1`)": "class_aware_rpn_R_101_1x1",
        "Faster R-CNN": "faster_rcnn_R_101",
        "R-FCN": "rfcn_R_101",
        "DeepLab": "deeplab_R_101",
    }
    row = r"^\| (.+) \| \d+\.\d M \| ([\d,]+) \| \d\.\d M \| ([\d,]+) \| ([\d,]+) \|$"
    found = re.findall(row, RECIPES, re.MULTILINE)
    numbers = {files[name]: [int(n.replace(",", "")) for n in row] for name, *row in found}
    assert numbers.keys() == set(files.values())
    return numbers


@pytest.mark.parametrize("name, row", table_4().items())
def test_parameters_in_the_documentation(name, row):
    folder = "VOC-SemanticSegmentation" if "deeplab" in name else "VOC-Detection"
    network, head, _ = name.partition("_1x1")
    pooling = "_dpool" if network in ("faster_rcnn_R_101", "rfcn_R_101") else ""
    plain = CONFIGS / folder / f"{name}.yaml"
    deformable = CONFIGS / folder / f"{network}_dconv3{pooling}{head}.yaml"
    model = without_memory(plain)
    rpn = getattr(model, "proposal_generator", None)
    total = num_parameters(model)
    of_groups = [
        num_parameters(without_memory(deformable, ["MODEL.RESNETS.DEFORM_NUM_GROUPS", groups]))
        for groups in (1, 4)
    ]
    growth = [n - total for n in of_groups]
    assert [total - (num_parameters(rpn) if rpn else 0), *growth] == row


# Input channels of the 3x3 convolutions, last one first.
WIDTHS = {
    "R_50": [512] * 3 + [256] * 6,
    "R_101": [512] * 3 + [256] * 23,
    "AIR": [256, 256, 512] * 3,
    "quick/R_18": [256] * 4,
    "quick/AIR": [64, 64, 128],
}
GROWING = [
    p
    for p in STRIDE_16 + SEGMENTATION + QUICK
    if p in VARIANTS and not re.search("3x3|1x1", p.stem)
]


@pytest.mark.parametrize("path", GROWING, ids=relative)
def test_a_variant_grows_by_its_offset_layers(path):
    """Without the variants with 3x3 bins or without a 3x3 layer, which shrink; PARAMETERS covers
    those."""
    network = re.search(r"R_\d+|AIR", path.stem)[0]
    widths = WIDTHS[f"quick/{network}" if path in QUICK else network]
    bins, cfg = 7 * 7, load(path)
    expected = 0
    for part in parts(path):
        if part.startswith("dconv"):
            offsets = 2 * 3 * 3
            expected += sum(offsets * (w * 3 * 3 + 1) for w in widths[: int(part[-1])])
        elif part == "mdconv_c3-c5":
            masked = 3 * 3 * 3
            expected += sum(masked * (w * 3 * 3 + 1) for w in [*widths, *[128] * 4])
        elif part == "mdpool" and "rfcn" in path.stem:
            outputs = 3 * bins * (cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1) + 3 * bins
            expected += outputs * (cfg.MODEL.RESNETS.REDUCED_CHANNELS + 1)
        elif part == "mdpool":
            expected += (cfg.MODEL.RESNETS.REDUCED_CHANNELS * bins + 1) * 1024
            expected += (1024 + 1) * 1024 + (1024 + 1) * 3 * bins
        elif part == "dpool" and "rfcn" in path.stem:
            outputs = 2 * bins * (cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1) + 2 * bins
            expected += outputs * (cfg.MODEL.RESNETS.REDUCED_CHANNELS + 1)
        elif part == "dpool":
            expected += 2 * bins * (cfg.MODEL.RESNETS.REDUCED_CHANNELS * bins + 1)
    growth = num_parameters(without_memory(path)) - num_parameters(without_memory(plain_twin(path)))
    assert growth == expected


@pytest.mark.parametrize("path", [p for p in RATED if p in FPN and p in VARIANTS], ids=relative)
def test_deformable_fpn_grows_by_its_offset_layers(path):
    cfg = load(path)
    blocks = {50: (4, 6, 3), 101: (4, 23, 3)}[cfg.MODEL.RESNETS.DEPTH]
    wider = 2 if "X_101" in path.stem else 1
    per_tap = 3 if "mdconv" in path.stem else 2  # dy, dx and a mask
    outputs = per_tap * 3 * 3 * (4 if {"group4", "dcn"} & {*parts(path)} else 1)
    bins, inputs = 7 * 7, 256 * 7 * 7
    expected = 0
    if "dconv_c3-c5" in path.stem:
        expected += sum(
            n * (outputs * wider * width * 3 * 3 + outputs)
            for n, width in zip(blocks, (128, 256, 512), strict=True)
        )
    if "dcn" in parts(path):
        expected += sum(outputs * (width * 3 * 3 + 1) for width in (128, 256, 512, 512, 512))
        expected += 4 * 2 * bins * (inputs + 1)  # on each of four levels
    if "dpool" in parts(path) and "rfcn" in path.stem:
        sets = cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1 + 1
        expected += 2 * bins * sets * (cfg.MODEL.FPN.OUT_CHANNELS + 1)
    elif "dpool" in parts(path):
        expected += 2 * bins * (inputs + 1)
    if "_mmdet" in path.stem:  # on each of four levels
        expected += 4 * ((inputs + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 2 * bins)
    if "_mdpool_mmdet" in path.stem:
        expected += 4 * ((inputs + 1) * 1024 + (1024 + 1) * bins)
    growth = num_parameters(without_memory(path)) - num_parameters(without_memory(plain_twin(path)))
    assert growth == expected


COMMANDS = re.findall(r"^python train_net.py (.*)", RECIPES, re.MULTILINE)
# Offset groups, dilation and bias learning rate of offset layers, and the parameters of RoI
# offsets: */symbols/resnet_v1_101_*_dcn.py of the released code.
RELEASED = [
    ("rfcn_R_101_dconv3_dpool", 4, 2, 1.0, (2 * 49 * 21 + 2 * 49) * (1024 + 1)),
    ("faster_rcnn_R_101_dconv3_dpool", 4, 2, 1.0, 2 * 49 * (256 * 49 + 1)),
    ("deeplab_R_101_dconv3", 1, 1, 2.0, 0),
]


@pytest.mark.parametrize("name, groups, dilation, rate, of_rois", RELEASED)
def test_released_deformable_layers_by_override(name, groups, dilation, rate, of_rois):
    """The commands of docs/recipes.md; the one for detectors is also checked with Faster R-CNN."""
    detector, deeplab, *_ = (train_net.parse_args(shlex.split(c)) for c in COMMANDS)
    args = deeplab if name.startswith("deeplab") else detector
    path = (CONFIGS.parent / args.config_file).with_stem(name)
    assert path in MODELS
    model = without_memory(path, args.opts)
    layers = {n: m for n, m in model.named_modules() if n.endswith(".conv_offset")}
    assert [*layers] == [f"backbone.res5.{i}.conv2.conv_offset" for i in range(3)]
    for layer in layers.values():
        assert layer.out_channels == groups * 2 * 3 * 3
        assert layer.dilation == layer.padding == (dilation, dilation)

    cfg = load(path)
    cfg.merge_from_list(args.opts)
    check_settings(cfg)
    of_yaml = lr_factors(model, load(path).SOLVER.LR_MULTIPLIERS)
    biases = {layer.bias: rate for layer in layers.values()}
    assert lr_factors(model, cfg.SOLVER.LR_MULTIPLIERS) == of_yaml | biases

    growth = num_parameters(model) - num_parameters(without_memory(plain_twin(path)))
    assert growth == 3 * groups * 2 * 9 * (512 * 9 + 1) + of_rois
    assert f"{growth:,}" in RECIPES


# ---- One step ------------------------------------------------------------------------------------

# Overrides that keep the structure of the real networks, but make them small.
SMALL = {
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_STD": [57.4, 57.1, 58.4],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RPN.CONV_DIMS": [16],
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
}
SMALL_STRIDE_16 = {
    "MODEL.RESNETS.REDUCED_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32]],
}
SMALL_FPN = {
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [16],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.RETINANET.NUM_CLASSES": 3,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}


DETECTORS = [p for p in QUICK + KINDS if p not in DEEPLAB]


def train_one_step(cfg, model, inputs):
    """Train one step, check every loss and gradient, and return the losses."""
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for name, p in trainable.items() if p.grad is None]
    assert not missing, "unused parameters break distributed training"
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())
    optimizer.step()
    return losses


@pytest.mark.parametrize("path", DETECTORS, ids=relative)
def test_trains_and_detects(path):
    cfg = load(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    if path in KINDS:
        small = SMALL | (SMALL_FPN if path in FPN else SMALL_STRIDE_16)
        resnets = cfg.MODEL.RESNETS
        if resnets.DEFORM_LAYERS:  # which a smaller network lacks
            small |= {"MODEL.RESNETS.DEPTH": resnets.DEPTH}
        if resnets.NUM_GROUPS > 1:
            small |= {"MODEL.RESNETS.WIDTH_PER_GROUP": 1}
        if cfg.MODEL.RETINANET.NORM == "GN":  # 32 groups of more than one value
            small |= {"MODEL.FPN.OUT_CHANNELS": 64}
        if not cfg.MODEL.RPN.CONV_DIMS:
            small.pop("MODEL.RPN.CONV_DIMS")
        cfg.merge_from_list([x for item in small.items() for x in item])
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):  # random and unnormalised residuals would explode
            module.weight.fill_(0.5)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [60, 30, 120, 90]]))
    instances.gt_classes = torch.tensor([0, 1])
    if cfg.MODEL.MASK_ON:
        triangles = [[10, 10, 60, 10, 35, 70], [60, 90, 120, 90, 90, 30]]
        instances.gt_masks = PolygonMasks([[triangle] for triangle in triangles])
    if cfg.MODEL.KEYPOINT_ON:
        instances.gt_classes = torch.tensor([0, 0])
        corners, sizes = instances.gt_boxes.tensor[:, None].split(2, dim=2)
        points = corners + (sizes - corners) * torch.rand(2, 17, 2)
        instances.gt_keypoints = Keypoints(torch.cat([points, torch.full((2, 17, 1), 2.0)], dim=2))
    inputs = [{"image": image, "instances": instances, "height": 96, "width": 128}] * 2
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        inputs[0]["sem_seg"] = torch.randint(0, 54, (96, 128))

    train_one_step(cfg, model, inputs)

    model.eval()
    with torch.no_grad():
        (detections,) = model(inputs[:1])
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        assert len(detections["proposals"]) > 0
        return
    detections = detections["instances"]
    assert len(detections) > 0
    assert detections.pred_classes.max() < cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert detections.has("pred_masks") == cfg.MODEL.MASK_ON
    assert detections.has("pred_keypoints") == cfg.MODEL.KEYPOINT_ON


SMALL_SEGMENTATION = {"MODEL.SEM_SEG_HEAD.CONVS_DIM": 16, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3}


@pytest.mark.parametrize("path", DEEPLAB, ids=relative)
def test_trains_and_segments(path):
    cfg = load(path)
    cfg.MODEL.DEVICE = "cpu"
    if path not in QUICK:
        small = {k: v for k, v in SMALL.items() if "RPN" not in k and "ROI" not in k}
        small |= SMALL_SEGMENTATION
        cfg.merge_from_list([x for item in small.items() for x in item])
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    model = build_model(cfg)
    labels = torch.randint(0, classes, (75, 100))
    labels[:, 50:] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    image = torch.randint(0, 256, (3, 75, 100), dtype=torch.uint8)
    inputs = [{"image": image, "sem_seg": labels, "height": 50, "width": 60}] * 2

    (loss,) = train_one_step(cfg, model, inputs).values()
    # Small random weights hardly tell classes apart.
    assert loss.item() == pytest.approx(math.log(classes), rel=0.3)

    model.eval()
    with torch.no_grad():
        (output,) = model(inputs[:1])
    assert output["sem_seg"].shape == (classes, 50, 60)
    assert torch.isfinite(output["sem_seg"]).all()
