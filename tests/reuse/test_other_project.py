"""Another project as its author would write it: train_net.py, config, YAML, backbone and heads.

It has Detectron2's DefaultTrainer and data, and of ours only what it names. It trains and saves,
and `--eval-only` reads the checkpoint back, each in its own process.
"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image, ImageDraw

PROJECT = {
    "xyz/__init__.py": """
from . import modeling
from .config import add_xyz_config
""",
    "xyz/config.py": """
from detectron2.config import CfgNode as CN


def add_xyz_config(cfg):
    cfg.MODEL.RESNETS.XYZ_INITIAL_SCALE = 1.0
    cfg.MODEL.ROI_HEADS.XYZ_LOSS_WEIGHT = 1.0
    cfg.SOLVER.XYZ = CN({"PATIENCE": 3})
""",
    "xyz/modeling.py": """
import torch
from d2_deformable.modeling import RFCNHeads, build_deform_resnet_backbone
from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, Backbone


class ScaledBackbone(Backbone):
    def __init__(self, body, initial_scale):
        super().__init__()
        self.body = body
        self.scale = torch.nn.Parameter(torch.tensor(initial_scale))

    def forward(self, x):
        return {name: self.scale * feature for name, feature in self.body(x).items()}

    def output_shape(self):
        return self.body.output_shape()


@BACKBONE_REGISTRY.register()
def build_xyz_backbone(cfg, input_shape):
    body = build_deform_resnet_backbone(cfg, input_shape)
    return ScaledBackbone(body, cfg.MODEL.RESNETS.XYZ_INITIAL_SCALE)


@ROI_HEADS_REGISTRY.register()
class XYZHeads(RFCNHeads):
    @configurable
    def __init__(self, *, loss_weight, **kwargs):
        super().__init__(**kwargs)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape):
        weight = cfg.MODEL.ROI_HEADS.XYZ_LOSS_WEIGHT
        return {**super().from_config(cfg, input_shape), "loss_weight": weight}

    def _forward_box(self, features, proposals):
        result = super()._forward_box(features, proposals)
        if not self.training:
            return result
        return {f"xyz_{name}": self.loss_weight * loss for name, loss in result.items()}
""",
    "configs/Base.yaml": """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8, NORM: BN}
  RPN: {POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16, SCORE_THRESH_TEST: 0.0}
DATASETS:
  TRAIN: ("xyz_train",)
  TEST: ("xyz_val",)
DATALOADER: {NUM_WORKERS: 0}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, STEPS: [], BASE_LR: 0.001, WARMUP_ITERS: 0}
SEED: 1
VERSION: 2
""",
    "configs/faster_rcnn_fpn.yaml": """
_BASE_: Base.yaml
MODEL:
  BACKBONE: {NAME: build_deform_resnet_fpn_backbone}
  RESNETS:
    OUT_FEATURES: [res2, res3, res4, res5]
    DEFORM_ON_PER_STAGE: [False, False, True, True]
    DEFORM_MODULATED: True
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 8}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: DeformROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_FC: 1
    FC_DIM: 16
    POOLER_RESOLUTION: 3
    POOLER_TYPE: DeformROIPool
SOLVER:
  LR_MULTIPLIERS: [[offset_fc, 0.01]]
""",
    "configs/rfcn.yaml": """
_BASE_: Base.yaml
MODEL:
  BACKBONE: {NAME: build_xyz_backbone}
  RESNETS:
    OUT_FEATURES: [res4, res5_reduced]
    RES5_DILATION: 2
    REDUCED_CHANNELS: 16
    DEFORM_NUM_LAYERS: 3
    XYZ_INITIAL_SCALE: 0.5
  ANCHOR_GENERATOR: {SIZES: [[16, 32]]}
  RPN: {IN_FEATURES: [res4]}
  ROI_HEADS:
    NAME: XYZHeads
    IN_FEATURES: [res5_reduced]
    SAMPLING: ohem
    XYZ_LOSS_WEIGHT: 2.0
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 3, POOLER_TYPE: DeformPSROIPool, CLS_AGNOSTIC_BBOX_REG: True}
SOLVER:
  LR_MULTIPLIERS: [[conv_offset, 0.01]]
""",
    "train_net.py": """
import d2_deformable
from d2_deformable.engine import build_optimizer
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator

from xyz import add_xyz_config


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        # Use the slow evaluation: Detectron2 may be installed without its compiled part.
        folder = cfg.OUTPUT_DIR + "/inference"
        return COCOEvaluator(dataset_name, ("bbox",), output_dir=folder, use_fast_impl=False)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)


def main(args):
    cfg = get_cfg()
    d2_deformable.add_deformable_config(cfg)
    add_xyz_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    for name in ("xyz_train", "xyz_val"):
        register_coco_instances(name, {}, "data/objects.json", "data")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args=(args,))
""",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project's folder, with its own four images in COCO's format."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in PROJECT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_objects(folder / "data")
    return folder


def write_objects(folder):
    folder.mkdir()
    images, annotations = [], []
    for i in range(4):
        box = [8 + 4 * i, 12, 24, 20]  # (x0, y0, width, height)
        image = Image.new("RGB", (64, 64), (60, 40 * i, 90))
        corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        ImageDraw.Draw(image).rectangle(corners, fill=(220, 200, 60 * i))
        image.save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        annotation = {"id": i + 1, "image_id": i, "category_id": i % 2 + 1, "bbox": box}
        annotations.append({**annotation, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(content))


def run(project, config, *arguments):
    file = ["--config-file", f"configs/{config}.yaml"]
    overrides = ["OUTPUT_DIR", f"output/{config}"]
    result = subprocess.run(
        [sys.executable, "train_net.py", *file, *arguments, *overrides],
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    "config, losses, layers",
    [
        pytest.param(
            "faster_rcnn_fpn",
            {"loss_cls", "loss_box_reg"},
            {
                "backbone.bottom_up.res4.0.conv1.conv_offset.weight",
                "roi_heads.box_pooler.roi_pool.offset_fc.weight",
            },
            marks=pytest.mark.slow,
        ),
        (
            "rfcn",
            {"xyz_loss_cls", "xyz_loss_box_reg"},
            {
                "backbone.scale",
                "backbone.body.res5.1.conv2.conv_offset.weight",
                "roi_heads.box_predictor.cls_score.offset_maps.weight",
            },
        ),
    ],
)
def test_another_project_trains_saves_and_evaluates(project, config, losses, layers):
    run(project, config)
    output = project / "output" / config
    metrics = {}
    for line in (output / "metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert losses < metrics.keys() and all(math.isfinite(metrics[name]) for name in losses)
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    assert layers < checkpoint["model"].keys()
    rates = checkpoint["trainer"]["hooks"]["LRScheduler"]["base_lrs"]
    assert sorted(set(rates)) == pytest.approx([1e-5, 1e-3])

    detections = output / "inference/coco_instances_results.json"
    trained = json.loads(detections.read_text())
    assert trained
    detections.unlink()
    log = run(project, config, "--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth"))
    assert "not found in the checkpoint" not in log and "not used by the model" not in log
    assert json.loads(detections.read_text()) == trained
