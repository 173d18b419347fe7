"""Detectron2's checkpoint layouts load into plain and deformable detectors: every plain weight is
loaded, and only parameters that the file cannot hold are reported missing."""

import pickle
import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from d2_deformable.layers import DeformConv2d


def detector(cfg, num_layers):
    """A narrow Faster R-CNN on ResNet-50 with dilated res5; deformable if num_layers > 0."""
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_backbone"
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = num_layers
    cfg.MODEL.ROI_HEADS.NAME = "DeformROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "DeformROIPool" if num_layers else "ROIPool"
    model = build_model(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def c2_names(state):
    """ResNet weights with Caffe2's names, as in Detectron2's ImageNet files (R-50.pkl)."""
    names = {}
    for key, value in state.items():
        if not key.startswith("backbone.") or "running" in key:
            continue
        name = key.removeprefix("backbone.").replace("stem.conv1.norm", "res_conv1_bn")
        name = name.replace("stem.", "").replace("shortcut", "branch1")
        name = re.sub(r"(res\d\.\d\.)conv([123])", _branch, name)
        name = name.replace(".norm", "_bn").replace(".weight", "_w").replace(".bias", "_b")
        names[name.replace("_bn_w", "_bn_s").replace(".", "_")] = value.numpy()
    return names


def _branch(match):
    return f"{match[1]}branch2{'abc'[int(match[2]) - 1]}"


def save(layout, model, path):
    state = model.state_dict()
    if layout == "native":
        DetectionCheckpointer(model, str(path)).save("model")
        return path / "model.pth"
    if layout == "zoo":
        arrays = {key: value.numpy() for key, value in state.items()}
        content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    elif layout == "heuristics":  # as tools/convert-torchvision-to-d2.py writes them
        backbone = {k.removeprefix("backbone."): v.numpy() for k, v in state.items()}
        backbone = {k: v for k, v in backbone.items() if k.startswith(("stem", "res"))}
        content = {"model": backbone, "__author__": "torchvision", "matching_heuristics": True}
    else:
        content = c2_names(state)
    file = path / "model.pkl"
    file.write_bytes(pickle.dumps(content))
    return file


class RecordingCheckpointer(DetectionCheckpointer):
    """Stores the report of `load_state_dict`, which the original only logs."""

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


@pytest.mark.parametrize("num_layers", [0, 3])
@pytest.mark.parametrize("layout", ["native", "zoo", "heuristics", "caffe2"])
def test_every_plain_weight_is_loaded(cfg, tmp_path, layout, num_layers):
    source = detector(cfg, 0)
    model = detector(cfg, num_layers)
    checkpointer = RecordingCheckpointer(model)
    checkpointer.load(str(save(layout, source, tmp_path)))
    incompatible = checkpointer.incompatible

    whole = layout in ("native", "zoo")
    expected, actual = source.state_dict(), model.state_dict()
    loaded = [k for k in expected if whole or k.startswith("backbone.") and "running" not in k]
    assert len(loaded) > 100
    for key in loaded:
        assert torch.equal(actual[key], expected[key]), key
    assert not incompatible.unexpected_keys
    missing = set(incompatible.missing_keys)
    offsets = {k for k in actual if "conv_offset" in k or "offset_fc" in k}
    assert len(offsets) == (8 if num_layers else 0)
    of_heads = {k for k in actual if not whole and k.startswith(("proposal_", "roi_heads."))}
    assert missing == offsets | of_heads


def test_deformable_layers_are_where_detectron2_has_them(cfg):
    names = [n for n, m in detector(cfg, 3).named_modules() if isinstance(m, DeformConv2d)]
    assert names == [f"backbone.res5.{i}.conv2" for i in range(3)]
