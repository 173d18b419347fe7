"""Networks of Detectron2's model zoo give the same on this package's backbone, deformable or not.

Only MODEL.BACKBONE.NAME changes. Sizes are small, weights are random and copied.
"""

import pytest
import torch
from converted import randomize
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage

from d2_deformable.modeling.meta_arch.fcos import FCOS
from yamls import CONFIGS, load

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_STD": [57.4, 57.1, 58.4],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,  # group normalisation needs 32 channels
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [16],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.RETINANET.NUM_CLASSES": 3,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}
DCONV = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]}
# {name: (Detectron2's YAML, changes)}
ZOO = {
    "retinanet": ("COCO-Detection/retinanet_R_50_FPN_1x", {}),
    "retinanet dconv": ("COCO-Detection/retinanet_R_50_FPN_1x", DCONV),
    "keypoint": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", {"MODEL.ROI_HEADS.NUM_CLASSES": 1}),
    "panoptic": ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", {}),
    "cascade mask": ("Misc/cascade_mask_rcnn_R_50_FPN_1x", {}),
    "resnext": ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x", {}),
    "mask dconv 1x": ("Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5", {}),
    "mask dconv 3x": ("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5", {}),
    "resnext gn dconv": ("Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv", {}),
    "panoptic gn dconv": ("Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x", {}),
}


def small(cfg, changes):
    groups = cfg.MODEL.RESNETS.NUM_GROUPS
    width = {"MODEL.RESNETS.WIDTH_PER_GROUP": 1 if groups == 32 else 32}
    for key, value in (SMALL | width | changes).items():
        cfg.merge_from_list([key, value])
    return cfg


def inputs(cfg, size=(64, 96)):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[8.0, 8, 40, 50], [40, 20, 90, 60]])
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.zeros(2, dtype=torch.int64))
    instances.gt_masks = BitMasks(torch.rand(2, *size, generator=generator) > 0.5)
    points = torch.cat([boxes[:, None, :2].expand(2, 17, 2), torch.full((2, 17, 1), 2.0)], dim=2)
    instances.gt_keypoints = Keypoints(points)
    image = torch.randint(0, 256, (3, *size), generator=generator)
    classes = torch.randint(0, 5, size, generator=generator)
    return [{"image": image, "instances": instances, "sem_seg": classes}]


def losses(model, batch):
    torch.manual_seed(0)  # of the sampling
    with EventStorage():
        return model.train()(batch)


@torch.no_grad()
def outputs(model, batch):
    (found,) = model.eval()(batch)
    fields = dict(found["instances"].get_fields())
    fields["boxes"] = fields.pop("pred_boxes").tensor
    return fields | {name: found[name] for name in ("sem_seg",) if name in found}


def assert_equal(ours, theirs, exact):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if exact:
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name].shape == value.shape, name
            difference = (ours[name].float() - value.float()).abs().max()
            assert difference <= 1e-3 * value.float().abs().max(), name


def assert_same_network(ours, theirs, batch, exact, loss=True):
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not (loaded.missing_keys or loaded.unexpected_keys)
    assert_equal(outputs(ours, batch), outputs(theirs, batch), exact)
    if loss:
        assert_equal(losses(ours, batch), losses(theirs, batch), exact)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_networks_are_the_same(name):
    file, changes = ZOO[name]
    cfg = small(load(model_zoo.get_config_file(f"{file}.yaml")), changes)
    try:
        theirs = randomize(build_model(cfg))
    except ImportError as error:  # main needs its own compiled code even on the CPU
        pytest.skip(str(error))
    for parameter, value in theirs.named_parameters():
        if "offset" in parameter:
            torch.nn.init.normal_(value, std=0.05)
    cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
    ours = build_model(cfg)
    deformable = any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    # Sums run in another order in another operator. Detectron2's cannot be trained on the CPU.
    assert_same_network(ours, theirs, inputs(cfg), exact=not deformable, loss=not deformable)


@pytest.mark.skipif(FCOS is None, reason="Detectron2 0.5 has no FCOS")
def test_fcos_is_that_of_the_lazy_config():
    try:
        lazy = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    except RuntimeError as error:
        pytest.skip(f"a source tree without installed configs: {error}")
    theirs = instantiate(lazy.model)
    cfg = load(CONFIGS / "COCO-Detection/fcos_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    assert_same_network(build_model(cfg), randomize(theirs), inputs(cfg), exact=True)


def test_top_levels():
    cfg = small(load(CONFIGS / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"), {})
    x = torch.zeros(1, 3, 64, 64)
    levels = {}
    for block in ("", "LastLevelMaxPool", "LastLevelP6", "LastLevelP6P7"):
        for feature in ("res5", "p5"):
            cfg.MODEL.FPN.TOP_BLOCK, cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = block, feature
            backbone = build_model(cfg).backbone
            maps = backbone(x)
            assert {n: tuple(m.shape[1:]) for n, m in maps.items()} == {
                n: (s.channels, -(-64 // s.stride), -(-64 // s.stride))
                for n, s in backbone.output_shape().items()
            }
            levels[block, feature] = list(maps)
            if block.startswith("LastLevelP"):
                channels = {"res5": 256, "p5": 32}[feature]
                assert backbone.top_block.p6.in_channels == channels
    four = ["p2", "p3", "p4", "p5"]
    assert all(
        found == four + (["p6", "p7"] if block == "LastLevelP6P7" else ["p6"])
        for (block, _), found in levels.items()
    )


@pytest.mark.parametrize(
    ("key", "value"), [("TOP_BLOCK", "LastLevelP7"), ("TOP_BLOCK_IN_FEATURE", "res4")]
)
def test_bad_top_levels_say_what_to_do(key, value):
    cfg = small(load(CONFIGS / "COCO-Detection/retinanet_R_50_FPN_1x.yaml"), {})
    cfg.MODEL.FPN[key] = value
    with pytest.raises(ValueError, match=f"{key} is '{value}'.*; expected one of LastLevelMaxPool"):
        build_model(cfg)
