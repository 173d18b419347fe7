"""MODEL.DEFORM_MODULES makes plain networks of Detectron2 deformable, from the config alone."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model as build_plain
from detectron2.modeling.backbone import BasicStem
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from d2_deformable.analysis.effective_dilation import EffectiveDilation
from d2_deformable.analysis.record import inspect_image
from d2_deformable.analysis.sampling import conv_sampling_points, offset_lengths
from d2_deformable.checkpoint import load_model
from d2_deformable.config import changes
from d2_deformable.engine import OffsetHealth, Trainer, build_optimizer
from d2_deformable.engine.offset_health import deformable_layers
from d2_deformable.engine.preflight import check_settings
from d2_deformable.layers import DeformConv2d, deform_modules
from d2_deformable.modeling import build_model

LEVELS = ["p3", "p4", "p5"]
SMALL = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128]], "MODEL.RPN.IN_FEATURES", LEVELS),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.IN_FEATURES", LEVELS),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", 1, "MODEL.ROI_BOX_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NORM", "GN"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
    *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 6),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [16, 16], "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3),
    *("MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", 6),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", LEVELS, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
    *("MODEL.RETINANET.IN_FEATURES", LEVELS, "MODEL.RETINANET.NUM_CONVS", 2),
    *("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
]
SIZE = {"height": 64, "width": 96}
RCNN = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
SEGMENTOR = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"]
RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
HEADS = {
    "mask": ([*RCNN, "MODEL.MASK_ON", True], r"roi_heads\.mask_head", 2),
    "keypoint": ([*RCNN, "MODEL.KEYPOINT_ON", True], "keypoint_head", 2),
    "rpn": (RCNN, "rpn_head", 1),
    "box": (RCNN, "box_head", 1),
    "fpn": (RCNN, r"backbone\.fpn_output", 3),
    "resnet": (RCNN, r"bottom_up\.res[45]", 8),
    "semantic": (SEGMENTOR, "sem_seg_head", 4),
    "panoptic": (
        ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True],
        "sem_seg_head|mask_head",
        6,
    ),
    "retinanet": (RETINANET, "^head", 6),
    "towers": (RETINANET, r"subnet\.2$", 2),
}
heads = pytest.mark.parametrize("name", HEADS)


@pytest.fixture
def small(cfg):
    def make(name, **options):
        overrides, regex, _ = HEADS[name]
        cfg.merge_from_list([*SMALL, *overrides])
        cfg.MODEL.DEFORM_MODULES = [[regex, options]]
        return cfg

    return make


def layers(model):
    return [name for name, m in model.named_modules() if isinstance(m, DeformConv2d)]


def batch():
    """Two images of 64 x 96 with an object, its mask and key points, and labels of all pixels."""
    found = []
    for x0 in (8.0, 40.0):
        objects = Instances((64, 96))
        objects.gt_boxes = Boxes(torch.tensor([[x0, 8.0, x0 + 40, 56.0]]))
        objects.gt_classes = torch.tensor([1])
        masks = torch.zeros(1, 64, 96, dtype=torch.bool)
        masks[:, 12:50, int(x0) + 4 : int(x0) + 30] = True
        objects.gt_masks = BitMasks(masks)
        points = [[x0 + 10, 20.0, 2.0], [x0 + 20, 30.0, 2.0], [x0 + 30, 40.0, 2.0]]
        objects.gt_keypoints = Keypoints(torch.tensor([points]))
        image = torch.rand(3, 64, 96) * 255
        labels = torch.randint(0, 4, (64, 96))
        found.append({"image": image, "instances": objects, "sem_seg": labels} | SIZE)
    return found


def results(model, inputs):
    """All tensors that the model finds."""
    with torch.no_grad():
        outputs = model.eval()(inputs)
    tensors = []
    for output in outputs:
        tensors += [value for value in output.values() if isinstance(value, torch.Tensor)]
        if found := output.get("instances"):
            fields = found.get_fields().values()
            tensors += [value.tensor if hasattr(value, "tensor") else value for value in fields]
    assert tensors and sum(tensor.numel() for tensor in tensors)
    return tensors


def move(model):
    for layer in deformable_layers(model).values():
        nn.init.normal_(layer.conv_offset.weight, std=0.1)
    return model


@heads
def test_a_plain_checkpoint_gives_the_plain_results(small, name, tmp_path):
    cfg = small(name, groups=4)
    plain = build_plain(cfg)
    assert not layers(plain), "Detectron2's function does not know the key"
    DetectionCheckpointer(plain, tmp_path).save("plain")
    model = build_model(cfg)
    assert len(layers(model)) == HEADS[name][2]
    assert all(layer.offset_groups == 4 for layer in deformable_layers(model).values())
    DetectionCheckpointer(model).load(str(tmp_path / "plain.pth"))
    names = plain.state_dict().keys()
    assert all(".conv_offset." in key for key in model.state_dict().keys() - names)
    inputs = batch()[:1]
    expected, actual = results(plain, inputs), results(model, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    # Moved offsets change what is found, so the new layers are those that run.
    moved = results(move(model), inputs)
    shapes = [t.shape for t in moved] == [t.shape for t in expected]
    assert not shapes or not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(moved, expected, strict=True)
    )


@heads
def test_two_training_steps_move_every_offset_layer(small, name):
    cfg = small(name, modulated=True)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        for _ in range(2):
            losses = model(batch())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for layer_name, layer in deformable_layers(model).items():
        assert layer.conv_offset.weight.abs().max() > 0, layer_name


def test_the_trainer_and_a_checkpoint_of_its_own(small, tmp_path):
    cfg = small("mask", groups=2)
    model = Trainer.build_model(cfg)
    assert layers(model) == [f"roi_heads.mask_head.mask_fcn{i}" for i in (1, 2)]
    DetectionCheckpointer(move(model), tmp_path).save("own")
    inputs = batch()[:1]
    loaded = load_model(cfg, tmp_path / "own.pth")
    for a, b in zip(results(loaded, inputs), results(model, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_a_config_of_detectron2_alone_builds_its_network():
    cfg = get_cfg()
    cfg.merge_from_list([*SMALL, *RCNN, "MODEL.DEVICE", "cpu"])
    assert not layers(build_model(cfg))


def test_preflight_checks_the_options(small):
    with pytest.raises(ValueError, match="DEFORM_MODULES holds .*'group' is no option"):
        check_settings(small("mask", group=4))


def test_the_key_is_written_and_read(cfg):
    cfg.merge_from_list(["MODEL.DEFORM_MODULES", "[['mask_head', {'groups': 4}]]"])
    assert cfg.MODEL.DEFORM_MODULES == [["mask_head", {"groups": 4}]]
    assert CfgNode.load_cfg(cfg.dump()).MODEL.DEFORM_MODULES == cfg.MODEL.DEFORM_MODULES
    assert changes(cfg)["MODEL"]["DEFORM_MODULES"] == cfg.MODEL.DEFORM_MODULES


def test_lazy_config():
    net = LazyCall(BasicStem)(in_channels=3, out_channels=4)
    cfg = LazyCall(deform_modules)(model=net, modules=[["stem", {"groups": 3, "clamp": 1}]])
    cfg = LazyConfig.apply_overrides(DictConfig({"model": cfg}), ["model.modules.0.0=con.1"])
    model = instantiate(cfg.model)
    assert layers(model) == ["conv1"] and model.conv1.offset_groups == 3


def test_analyses_see_the_layers_of_heads(small):
    """A head that runs on a pyramid has one row, and its finest map; crops of RoIs have none."""
    cfg = small("rpn")
    cfg.MODEL.DEFORM_MODULES = [["rpn_head|box_head|res5"]]
    model = move(build_model(cfg)).eval()
    rpn = "proposal_generator.rpn_head.conv"
    inputs = {"image": torch.rand(3, 64, 96) * 255} | SIZE
    inspection = inspect_image(model, inputs)
    names = [conv.name for conv in inspection.record.convs]
    assert names.count(rpn) == 3 and not any("roi_heads" in name for name in names)
    assert offset_lengths(inspection)[rpn].values.shape == (8, 12)
    stack = [conv.name for conv in inspection.record.stack(9)]
    assert stack == [name for name in names if name != rpn], "figure 5 follows the backbone"
    table = EffectiveDilation(model)
    assert table.add(inputs, None)[rpn].values.shape == (8, 12)
    assert table.layers[rpn].deformable
    assert table.layers[rpn].columns["all"].count == 8 * 12 + 4 * 6 + 2 * 3


def test_sampling_points_of_a_head_alone(small):
    """They are those of one layer, on its finest map."""
    model = move(build_model(small("towers"))).eval()
    inspection = inspect_image(model, {"image": torch.rand(3, 64, 96) * 255})
    assert len(inspection.record.convs) == 6
    (conv,) = inspection.record.stack(3)
    assert conv.name.endswith("subnet.2") and conv.output_size == (8, 12)
    assert conv_sampling_points(inspection, (32, 32)).points.shape == (1, 9, 2)


def test_health_judges_a_head_by_its_largest_map(small, caplog):
    """Offsets of 2 cells are far for the map of 2 x 3 only."""
    model = build_model(small("rpn"))
    (layer,) = deformable_layers(model).values()
    with torch.no_grad():
        layer.conv_offset.bias[::2] = 2.0
    health = OffsetHealth(model, period=1, max_outside=1.0)
    with EventStorage() as storage:
        health.trainer = type("Loop", (), {"iter": 0, "max_iter": 1, "storage": storage})
        health.before_step()
        model(batch())
        health.after_step()
    assert "healthy" in health.in_words and "running" not in caplog.text
