"""Every YAML builds, takes one training step and detects, on synthetic input of 128 pixels."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_deformable import add_deformable_config
from d2_deformable.engine import build_optimizer

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base-"))
QUICK = [p for p in MODELS if p.parent.name == "quick"]

# What a deformable YAML may change in its plain twin.
DEFORMABLE_KEYS = {
    "MODEL.RESNETS.DEFORM_NUM_LAYERS",
    "MODEL.RESNETS.DEFORM_MODULATED",
    "MODEL.RESNETS.DEFORM_NUM_GROUPS",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "SOLVER.LR_MULTIPLIERS",
}


def load(path):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def relative(path):
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", MODELS, ids=relative)
def test_builds(path):
    with torch.device("meta"):
        cfg = load(path)
        cfg.MODEL.DEVICE = "meta"
        build_model(cfg)


@pytest.mark.parametrize("path", QUICK, ids=relative)
def test_trains_and_detects(path):
    torch.manual_seed(0)
    cfg = load(path)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [60, 30, 120, 90]]))
    instances.gt_classes = torch.tensor([0, 1])
    inputs = [{"image": image, "instances": instances, "height": 96, "width": 128}] * 2

    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        loss = sum(model(inputs).values())
    loss.backward()
    assert torch.isfinite(loss)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "unused parameters break distributed training"
    optimizer.step()

    model.eval()
    with torch.no_grad():
        (detections,) = model(inputs[:1])
    assert len(detections["instances"]) > 0
    assert detections["instances"].pred_classes.max() < cfg.MODEL.ROI_HEADS.NUM_CLASSES


ZOO = [p for p in MODELS if p.parent.name == "model_zoo"]
DEFORMABLE = [p for p in MODELS if ("dconv" in p.stem or "dpool" in p.stem) and p not in ZOO]


@pytest.mark.parametrize("path", DEFORMABLE, ids=relative)
def test_deformable_yaml_holds_only_what_makes_it_deformable(path):
    changes = yaml.safe_load(path.read_text())
    base = changes.pop("_BASE_")
    plain = path.stem.replace("_dpool", "").split("_dconv")[0] + ".yaml"
    assert base == plain and (path.parent / base).exists()
    assert set(flat(changes)) <= DEFORMABLE_KEYS


@pytest.mark.parametrize("path", ZOO, ids=relative)
def test_zoo_yaml_is_another_network_of_ours_trained_otherwise(path):
    changes = yaml.safe_load(path.read_text())
    base = path.parent / changes.pop("_BASE_")
    assert base.resolve() in MODELS and base.name == path.name
    assert set(changes) <= {"DATASETS", "SOLVER", "TEST"}, "the network is that of its base"
