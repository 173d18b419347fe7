"""Use with config functions, heads and networks of other plug-ins, in either order."""

import importlib

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads, build_model
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage

from d2_deformable import add_deformable_config
from d2_deformable.layers import DeformConv2d, DeformRoIPool
from d2_deformable.modeling import DeformPoolerMixin


def add_neighbour_config(cfg):
    """Add keys under every node that has some of ours."""
    for node in (
        cfg.MODEL.RESNETS,
        cfg.MODEL.BACKBONE,
        cfg.MODEL.ROI_HEADS,
        cfg.MODEL.ROI_BOX_HEAD,
    ):
        node.NEIGHBOUR = CfgNode({"ON": False})
    for node in (cfg.SOLVER, cfg.DATASETS, cfg.TEST):
        node.NEIGHBOUR = 1.0


def add_dependent_config(cfg):
    """The config function of a plug-in that builds on this one and has other defaults."""
    add_deformable_config(cfg)
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 3
    cfg.SOLVER.LR_MULTIPLIERS = [["conv_offset", 0.1]]


def projects(name):
    """detectron2.projects.<name>. A wheel of 0.5 has no projects; some need further packages."""
    try:
        return importlib.import_module(f"detectron2.projects.{name}")
    except ModuleNotFoundError as error:
        pytest.skip(f"detectron2.projects.{name}: {error}")


def config_function(plugin):
    if plugin == "neighbour":
        return add_neighbour_config
    project, function = plugin
    return getattr(projects(project), function)


@pytest.mark.parametrize(
    "plugin",
    [
        "neighbour",
        ("point_rend", "add_pointrend_config"),
        ("deeplab", "add_deeplab_config"),
        ("panoptic_deeplab", "add_panoptic_deeplab_config"),
    ],
    ids=lambda plugin: plugin if isinstance(plugin, str) else plugin[0],
)
def test_either_order_gives_the_same_config(plugin):
    theirs, alone = config_function(plugin), get_cfg()
    add_deformable_config(alone)
    ours_first, ours_last = get_cfg(), get_cfg()
    add_deformable_config(ours_first)
    theirs(ours_first)
    theirs(ours_last)
    add_deformable_config(ours_last)
    assert ours_first == ours_last

    def leaves(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, CfgNode) and value:
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    plain, merged = dict(leaves(get_cfg())), dict(leaves(ours_last))
    ours = {key: value for key, value in leaves(alone) if key not in plain}
    assert "SOLVER.LR_MULTIPLIERS" in ours and ours.items() <= merged.items()


@pytest.mark.parametrize("again", [add_deformable_config, add_dependent_config])
def test_a_second_call_keeps_what_was_set(again):
    cfg = get_cfg()
    add_dependent_config(cfg)
    cfg.MODEL.RESNETS.DEFORM_BORDER = "legacy"
    cfg.DATASETS.CUSTOM.mine = CfgNode({"FORMAT": "coco"})
    before = cfg.clone()
    again(cfg)
    assert cfg == before


def test_a_key_of_the_same_name_keeps_its_value():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 2
    add_deformable_config(cfg)
    assert cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS == 2
    assert cfg.SOLVER.LR_MULTIPLIERS == []


def trains_and_detects(cfg, batch):
    model = build_model(cfg)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    deformable = [m for m in model.modules() if isinstance(m, DeformConv2d | DeformRoIPool)]
    assert deformable
    for layer in deformable:
        assert all(p.grad is not None for p in layer.parameters())
    with torch.no_grad():
        return model, losses, model.eval()(batch)


def fpn(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.REDUCED_CHANNELS = 0
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "DeformROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "DeformROIPool"
    return cfg


def with_masks(batch):
    for image in batch:
        masks = torch.zeros(len(image["instances"]), 96, 128, dtype=torch.bool)
        for mask, box in zip(masks, image["instances"].gt_boxes.tensor.int(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = True
        image["instances"].gt_masks = BitMasks(masks)
    return batch


def test_pointrends_mask_head_on_deformable_pooling(rfcn_cfg, batch):
    projects("point_rend").add_pointrend_config(rfcn_cfg)
    cfg = fpn(rfcn_cfg)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""  # it samples by itself
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = cfg.MODEL.FPN.OUT_CHANNELS
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = True
    cfg.MODEL.POINT_HEAD.FC_DIM = 16
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    _, losses, found = trains_and_detects(cfg, with_masks(batch))
    assert "loss_mask_point" in losses
    assert found[0]["instances"].has("pred_masks")


@pytest.mark.parametrize(
    "project, head",
    [("deeplab", "DeepLabV3PlusHead"), ("deeplab", "DeepLabV3Head"), ("", "SemSegFPNHead")],
)
def test_segmentation_on_the_deformable_backbone(rfcn_cfg, batch, project, head):
    cfg = rfcn_cfg
    if project:
        projects(project).add_deeplab_config(cfg)
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res5"] if "Plus" in head else ["res5"]
        cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 8
        cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 4 if "Plus" in head else 16
        cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"
    else:
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res5"]
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = head
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 8
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    cfg.MODEL.RESNETS.REDUCED_CHANNELS = 0
    for image in batch:
        image["sem_seg"] = torch.randint(3, (96, 128))
    model, losses, found = trains_and_detects(cfg, batch)
    assert set(losses) == {"loss_sem_seg"} and found[0]["sem_seg"].shape == (3, 96, 128)


def test_the_mixin_serves_heads_of_other_plugins(rfcn_cfg, batch):
    class NeighbourHeads(StandardROIHeads):
        """Heads of a plug-in that knows nothing of this one."""

    class DeformNeighbourHeads(DeformPoolerMixin, NeighbourHeads):
        pass

    add_neighbour_config(rfcn_cfg)
    cfg = fpn(rfcn_cfg)
    cfg.MODEL.ROI_HEADS.NAME = "DeformNeighbourHeads"
    ROI_HEADS_REGISTRY.register(DeformNeighbourHeads)
    try:
        model, _, _ = trains_and_detects(cfg, batch)
    finally:
        ROI_HEADS_REGISTRY._obj_map.pop("DeformNeighbourHeads")
    assert isinstance(model.roi_heads.box_pooler.roi_pool, DeformRoIPool)
