"""Whole networks in channels-last memory: the same results, and the format is kept."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_deformable.layers import DeformConv2d
from yamls import CONFIGS, load

NETWORKS = {
    "rfcn": "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml",
    "faster_rcnn": "quick/warped_shapes_faster_rcnn_R_18_dconv3_dpool.yaml",
    "class_aware_rpn": "quick/warped_shapes_class_aware_rpn_R_18_dconv3.yaml",
    "deeplab": "quick/warped_shapes_deeplab_R_18_dconv3.yaml",
    "air": "quick/warped_shapes_rfcn_AIR_dconv3_dpool.yaml",
    "fpn": "quick/warped_shapes_faster_rcnn_R_18_dconv3.yaml",
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def build(name, device):
    cfg = load(CONFIGS / NETWORKS[name])
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    if name == "fpn":
        cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
        levels = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = levels
        cfg.MODEL.RESNETS.RES5_DILATION, cfg.MODEL.RESNETS.REDUCED_CHANNELS = 1, 0
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        # torchvision's RoIPool does not support autocast on the CPU.
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
    torch.manual_seed(3)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.02)
    return model


def make_inputs(device) -> list:
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    instances = Instances((96, 128), gt_classes=torch.tensor([0, 1]))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [60, 30, 120, 90]]))
    classes = torch.randint(0, 2, (96, 128))
    height, width = image.shape[1:]
    record = {"image": image, "height": height, "width": width}
    return [{**record, "instances": instances, "sem_seg": classes}] * 2


def result(model, inputs) -> list:
    """The results of inference as tensors."""
    with torch.no_grad():
        outputs = model.eval()(inputs)
    if "sem_seg" in outputs[0]:
        return [output["sem_seg"] for output in outputs]
    instances = [output["instances"] for output in outputs]
    return [t for i in instances for t in (i.pred_boxes.tensor, i.scores, i.pred_classes)]


@EVERY
def test_same_results(name, device):
    model, inputs = build(name, device), make_inputs(device)
    expected = result(model, inputs)
    actual = result(model.to(memory_format=torch.channels_last), inputs)
    assert len(expected[0]) > 0
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@EVERY
def test_training_keeps_the_format(name, device):
    model, inputs = build(name, device).train(), make_inputs(device)
    model = model.to(memory_format=torch.channels_last)
    kept = {}
    for key, module in model.backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, args, output, key=key: kept.update(
                    {key: output.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    with EventStorage():
        loss = sum(model(inputs).values())
    loss.backward()
    assert len(kept) > 15 and all(kept.values())
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["class_aware_rpn", "deeplab", "air", "fpn"])
def test_autocast(name, device):
    """A training step and inference; test_autocast.py has the other networks."""
    model, inputs = build(name, device), make_inputs(device)
    model = model.to(memory_format=torch.channels_last)
    with EventStorage(), torch.autocast(device.type, dtype=torch.bfloat16):
        loss = sum(model.train()(inputs).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = result(model, inputs)
    assert len(found[0]) > 0 and all(tensor.isfinite().all() for tensor in found)
