"""Detectron2's and PyTorch's own tools work with these models as with any other."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from torch import nn

from d2_deformable import add_deformable_config
from d2_deformable.layers import DeformConv2d

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def model(rfcn_cfg):
    rfcn_cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    model = build_model(rfcn_cfg).eval()
    for m in model.modules():
        if isinstance(m, DeformConv2d):
            nn.init.normal_(m.conv_offset.weight, std=0.05)
    return model


def detect(model, batch):
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def assert_same(actual, expected):
    assert len(actual) == len(expected) and sum(map(len, expected))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        torch.testing.assert_close(a.scores, b.scores)


def test_default_predictor_on_a_yaml_of_ours(batch, tmp_path):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    DetectionCheckpointer(model, tmp_path).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    predictor = DefaultPredictor(cfg)
    image = batch[0]["image"].permute(1, 2, 0).numpy()
    assert_same([predictor(image)["instances"]], detect(model, batch[:1]))


def test_test_time_augmentation(rfcn_cfg, model, batch):
    rfcn_cfg.TEST.AUG.MIN_SIZES = (64, 96)
    inputs = [{key: image[key] for key in ("image", "height", "width")} for image in batch]
    found = detect(GeneralizedRCNNWithTTA(rfcn_cfg, model), inputs)
    assert all(len(instances) > 0 for instances in found)


def test_a_yaml_of_detectron2s_model_zoo():
    """Its YAML plus one or two keys gives the deformable twin."""
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        plain = build_model(cfg)
        cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
        renamed = build_model(cfg)
        cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 6
        cfg.MODEL.ROI_HEADS.NAME = "DeformROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "DeformROIPool"
        deformable = build_model(cfg)
    assert plain.state_dict().keys() == renamed.state_dict().keys()
    new = deformable.state_dict().keys() - plain.state_dict().keys()
    assert len(new) == 2 * 6 + 2 and not plain.state_dict().keys() - deformable.state_dict().keys()


def copies():
    def saved_whole(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_whole]


@pytest.mark.parametrize("duplicate", copies(), ids=["deepcopy", "pickle", "torch.save"])
def test_copies_of_a_model(model, batch, duplicate):
    twin = duplicate(model)
    assert_same(detect(twin, batch), detect(model, batch))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(p.abs().sum() for n, p in model.named_parameters() if "conv_offset.weight" in n)
    twin.load_state_dict(model.state_dict())
    assert_same(detect(twin, batch), detect(model, batch))

    # The copy has its own hook that renames the offset layers of Detectron2's layout.
    layout = {
        name.replace("conv1.conv_off", "conv1_off"): v for name, v in model.state_dict().items()
    }
    assert layout.keys() != model.state_dict().keys()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin.load_state_dict(layout)
    name = "backbone.res5.1.conv1.weight"
    torch.testing.assert_close(twin.state_dict()[name], before[name] / 2)
    torch.testing.assert_close(model.state_dict(), before)


@pytest.fixture
def analysis():
    reason = "detectron2.utils.analysis of 0.5 imports Caffe2"
    return pytest.importorskip("detectron2.utils.analysis", reason=reason)


def test_parameter_counts(model, analysis):
    table = analysis.parameter_count_table(model, max_depth=6)
    for name in ("conv2.conv_offset", "cls_score.offset_maps", "bbox_pred.score_maps"):
        assert name in table
    assert analysis.parameter_count(model)[""] == sum(p.numel() for p in model.parameters())


def test_flop_counts(model, batch, analysis):
    flops = analysis.FlopCountAnalysis(model, batch[:1])
    assert flops.by_module()["model.backbone.res5.1.conv2.conv_offset"] > 0


DISTRIBUTED = """
import sys

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from d2_deformable import add_deformable_config


def train(rank, folder):
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", meet, rank=rank, world_size=2)
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_file(f"{folder}/config.yaml")
    torch.manual_seed(0)
    model = DistributedDataParallel(build_model(cfg))
    torch.manual_seed(rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    boxes = Boxes(torch.tensor([[8.0, 8, 60, 70], [50, 30, 120, 90]][rank:]))
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    instances = Instances((96, 128), gt_boxes=boxes, gt_classes=classes)
    with EventStorage():
        for _ in range(2):  # the second stops where a parameter took no part in the first
            image = torch.randint(256, (3, 96, 128))
            optimizer.zero_grad()
            sum(model([{"image": image, "instances": instances}]).values()).backward()
            optimizer.step()
    torch.save(dict(model.module.named_parameters()), f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


torch.multiprocessing.start_processes(train, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_distributed_data_parallel(rfcn_cfg, tmp_path):
    """Two processes without `find_unused_parameters`; they end with the same parameters."""
    (tmp_path / "config.yaml").write_text(rfcn_cfg.dump())
    path = os.pathsep.join(sys.path)
    result = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert first.keys() == second.keys() == dict(build_model(rfcn_cfg).named_parameters()).keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert first["backbone.res5.1.conv2.conv_offset.weight"].abs().sum() > 0
