"""Whole networks under torch.autocast, as Detectron2's SOLVER.AMP trains them."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

QUICK = Path(__file__).parents[2] / "configs" / "quick"


@pytest.mark.parametrize("name", ["faster_rcnn", "rfcn"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_trains_and_detects(cfg, name, channels_last, device):
    cfg.merge_from_file(str(QUICK / f"warped_shapes_{name}_R_18_dconv3_dpool.yaml"))
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    instances = Instances((96, 128), gt_classes=torch.tensor([0, 1]))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [60, 30, 120, 90]]))
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    inputs = [{"image": image, "instances": instances}] * 2

    offsets = {}
    for module_name, module in model.named_modules():
        if module_name.endswith(("conv_offset", "offset_maps", "offset_fc")):
            module.register_forward_hook(
                lambda module, args, output, key=module_name: offsets.update({key: output.dtype})
            )
    with EventStorage(), torch.autocast(device.type, dtype=torch.bfloat16):
        loss = sum(model(inputs).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert len(offsets) >= 4 and set(offsets.values()) == {torch.float32}

    model.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        (detections,) = model(inputs[:1])
    assert len(detections["instances"]) > 0
