"""Files in the layouts of Detectron2's model zoo: this package's models with the weights of
Detectron2's detectors find the same objects."""

import pickle
import re

import pytest
import torch
from converted import randomize
from detectron2 import model_zoo
from detectron2.modeling import build_model
from torch import nn
from torchvision.ops import deform_conv2d

from d2_deformable.checkpoint import StrictCheckpointer, load_model, read_weights
from d2_deformable.checkpoint.convert import ConversionError, convert_checkpoint
from d2_deformable.engine import read_config
from yamls import CONFIGS

SMALL = """
MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 16
MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
MODEL.RPN.POST_NMS_TOPK_TEST 50 TEST.DETECTIONS_PER_IMAGE 20 MODEL.PIXEL_STD [57.0,57.0,57.0]
"""
RES345 = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"]
RES34 = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, False]"]
MODULATED = ["MODEL.RESNETS.DEFORM_MODULATED", "True"]
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
DCONV = "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50"
# Detectron2's config and further keys of both -> this package's config, or None for Detectron2's
# config with the backbone of this package.
DETECTORS = {
    "faster_FPN": ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", [], "faster_rcnn_R_50_FPN_1x"),
    "mask_FPN": (f"{MASK}_FPN_1x.yaml", [], "mask_rcnn_R_50_FPN_1x"),
    "cascade_FPN": (CASCADE, ["MODEL.MASK_ON", "False"], "cascade_rcnn_R_50_FPN_1x"),
    "cascade_mask_FPN": (CASCADE, [], None),
    "faster_C4": ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", [], None),
    "mask_C4": (f"{MASK}_C4_1x.yaml", [], None),
    "faster_DC5": ("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", [], None),
    "mask_DC5": (f"{MASK}_DC5_1x.yaml", [], None),
    "dconv": (DCONV, [], "mask_rcnn_R_50_FPN_1x_dconv_c3-c5"),
    "mdconv": (DCONV, MODULATED, "mask_rcnn_R_50_FPN_1x_mdconv_c3-c5_dpool"),
}
PLAIN = [name for name in DETECTORS if "dconv" not in name]


def their_config(name, overrides=()):
    file, keys, _ = DETECTORS[name]
    return read_config(model_zoo.get_config_file(file), [*SMALL.split(), *keys, *overrides])


def our_config(name, overrides=()):
    """The same detector with this package's ResNet."""
    _, keys, ours = DETECTORS[name]
    keys = [*SMALL.split(), *keys, *overrides]
    if ours is None:
        cfg = their_config(name, overrides)
        cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("build_", "build_deform_")
        return cfg
    if ours.endswith("_dpool"):  # Detectron2 has no deformable RoI pooling
        heads = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
        keys += [*heads, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"]
    return read_config(CONFIGS / f"COCO-Detection/{ours}.yaml", keys)


@pytest.fixture(autouse=True)
def their_modulated_convolution(monkeypatch):
    """Detectron2's operator does not run on the CPU."""

    def modulated(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups):
        assert weight.shape[1] * groups == x.shape[1]
        return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    from detectron2.layers import deform_conv

    monkeypatch.setattr(deform_conv, "modulated_deform_conv", modulated)


def detector(cfg):
    """A detector with random weights and statistics, and different scores."""
    model = randomize(build_model(cfg))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 0.02 if "conv2_offset" in name else (2 / parameter[0].numel()) ** 0.5
            nn.init.normal_(parameter, std=scale)
    return model


def zoo_file(state, file, protocol=2):
    arrays = {name: value.numpy() for name, value in state.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    file.write_bytes(pickle.dumps(content, protocol))
    return file


def loaded(cfg, file):
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(file))
    return model.eval()


@torch.no_grad()
def assert_same_objects(model, expected, exact=False):
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1)) * 255
    found, reference = (m([{"image": image}])[0]["instances"] for m in (model, expected))
    assert len(found) == len(reference) > 5
    assert reference.scores.max() - reference.scores.min() > 1e-3, "scores are too uniform"
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-4}
    for name, value in reference.get_fields().items():
        ours = found.get(name)
        if name == "pred_boxes":
            ours, value = ours.tensor, value.tensor
        if name == "pred_masks":
            assert (ours != value).float().mean() < (1e-9 if exact else 1e-3)
        else:
            torch.testing.assert_close(ours, value, msg=name, **tolerance)


@pytest.mark.parametrize("name", DETECTORS)
def test_loads_through_MODEL_WEIGHTS(name, tmp_path):
    theirs = detector(their_config(name))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    model = loaded(our_config(name), file)
    assert_same_objects(model, theirs, exact=name in PLAIN)


@pytest.mark.parametrize("modulated", [[], MODULATED], ids=["dconv", "mdconv"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_loads_into_a_deformable_model(name, modulated, tmp_path, caplog):
    theirs = detector(their_config(name))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    stages = RES34 if name.endswith("C4") else RES345  # their C4's head is plain
    model = loaded(our_config(name, [*stages, *modulated]), file)
    assert_same_objects(model, theirs)
    assert re.search(
        r"model_final.pkl is from a network .* are zero in (10|13) layers", caplog.text
    )


def test_modulated_layers_by_name(tmp_path):
    """MODEL.DEFORM_MODULES makes Detectron2's plain network its modulated one."""
    theirs = detector(their_config("mdconv"))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    by_name = [[r"res[345].*conv2$", {"modulated": True}]]
    cfg = their_config("mask_FPN", ["MODEL.DEFORM_MODULES", str(by_name)])
    assert_same_objects(load_model(cfg, file), theirs)
    convert_checkpoint("detectron2", file, tmp_path / "converted.pth", cfg)
    assert_same_objects(load_model(cfg, tmp_path / "converted.pth"), theirs)


def test_a_deformable_file_loads_where_a_head_is_deformable_too(tmp_path, caplog):
    """What is deformable by MODEL.RESNETS stays as it is, even if a regex matches it as well."""
    theirs = detector(their_config("mdconv"))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    modules = ["MODEL.DEFORM_MODULES", "[['conv2$'], ['mask_head', {'groups': 2}]]"]
    pooler = ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"]
    cfg = our_config("mdconv", [*modules, *pooler])
    assert_same_objects(load_model(cfg, file), theirs)
    assert "offsets are zero in 7 layers" in caplog.text
    convert_checkpoint("detectron2", file, tmp_path / "converted.pth", cfg)
    assert_same_objects(load_model(cfg, tmp_path / "converted.pth"), theirs)


def test_another_file_than_the_zoos_must_hold_the_offsets(tmp_path):
    state = detector(their_config("faster_FPN")).state_dict()
    torch.save({"model": state}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="pth is from another network, .* 26 not in the file"):
        loaded(our_config("faster_FPN", RES345), tmp_path / "model.pth")


def converted(name, file, overrides=(), target="converted.safetensors", **kwargs):
    """This package's model with the converted weights of a Detectron2 file."""
    cfg = our_config(name, overrides)
    conversion = convert_checkpoint("detectron2", file, file.with_name(target), cfg, **kwargs)
    return loaded(cfg, file.with_name(target)), conversion


@pytest.mark.parametrize("name", ["mask_FPN", "mask_C4", "faster_DC5", "dconv", "mdconv"])
def test_converted(name, tmp_path):
    theirs = detector(their_config(name))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    model, conversion = converted(name, file)
    assert_same_objects(model, theirs, exact=name in PLAIN)
    assert conversion.written == [tmp_path / "converted.safetensors"]
    assert "conv2_offset" not in "".join(read_weights(tmp_path / "converted.safetensors"))


@pytest.mark.parametrize("modulated", [[], MODULATED], ids=["dconv", "mdconv"])
def test_converted_into_a_deformable_model(modulated, tmp_path):
    theirs = detector(their_config("faster_FPN"))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    model, conversion = converted("faster_FPN", file, [*RES345, *modulated])
    assert_same_objects(model, theirs)
    assert re.search(r"res5.2.conv2.conv_offset.bias +\d+ +zero: as without", conversion.table())


def caffe2_names(state) -> dict:
    """Convert a Mask R-CNN with FPN to Detectron's names and layout.

    The background comes first, and normalisation is affine.
    """
    result = {}
    for name, value in state.items():
        if "running" in name:
            continue
        for pattern, new in {
            r"^backbone\.bottom_up\.": "",
            r"^stem\.conv1\.norm\.": "res_conv1_bn.",
            r"^stem\.": "",
            r"(res\d\.\d)\.shortcut": r"\1.branch1",
            r"(res\d\.\d)\.conv(\d)": lambda m: f"{m[1]}.branch2{'abc'[int(m[2]) - 1]}",
            r"\.norm\.": "_bn.",
            r"_bn\.weight": "_bn_s",
            r"^backbone\.fpn_lateral5": "fpn_inner_res5_2_sum",
            r"^backbone\.fpn_lateral(\d)": lambda m: f"fpn_inner_res{m[1]}_9_sum_lateral",
            r"^backbone\.fpn_output(\d)": r"fpn_res\1_9_sum",
            r"^proposal_generator\.rpn_head\.conv": "conv_rpn_fpn2",
            r"^proposal_generator\.rpn_head\.objectness_logits": "rpn_cls_logits_fpn2",
            r"^proposal_generator\.rpn_head\.anchor_deltas": "rpn_bbox_pred_fpn2",
            r"^roi_heads\.box_head\.fc1": "fc6",
            r"^roi_heads\.box_head\.fc2": "fc7",
            r"^roi_heads\.box_predictor\.": "",
            r"^roi_heads\.mask_head\.mask_fcn": "_[mask]_fcn",
            r"^roi_heads\.mask_head\.deconv": "conv5_mask",
            r"^roi_heads\.mask_head\.predictor": "mask_fcn_logits",
            r"\.weight$": "_w",
            r"\.bias$": "_b",
        }.items():
            name = re.sub(pattern, new, name)
        if name.startswith("cls_score"):
            value = torch.cat([value[-1:], value[:-1]])
        elif name.startswith(("bbox_pred", "mask_fcn_logits")):
            value = torch.cat([value[: 4 if name.startswith("bbox") else 1], value])
        result[name.replace(".", "_")] = value.numpy()
        result[f"{name.replace('.', '_')}_momentum"] = value.numpy()
    return result


@pytest.mark.parametrize("deformable", [[], RES345], ids=["plain", "deformable"])
@pytest.mark.parametrize("way", ["MODEL.WEIGHTS", "convert"])
def test_names_of_caffe2(way, deformable, tmp_path):
    theirs = detector(their_config("mask_FPN"))
    # Make normalisation affine, as in the file. Detectron2 reads such a file ignoring epsilon.
    for module in theirs.modules():
        if hasattr(module, "running_var"):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps if way == "convert" else 1)
    content = {"blobs": caffe2_names(theirs.state_dict()), "cfg": "MODEL:\n  TYPE: x\n"}
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps(content, 2))
    if way == "convert":
        model, conversion = converted("mask_FPN", file, deformable)
        assert "affine in the file" in conversion.table()
    else:
        model = loaded(our_config("mask_FPN", deformable), file)
    assert_same_objects(model, theirs)


def test_a_backbone_of_caffe2(tmp_path):
    """A file like ImageNetPretrained/MSRA/R-50.pkl, with a classifier and an unused bias."""
    theirs = detector(their_config("faster_FPN"))
    state = {k: v for k, v in theirs.state_dict().items() if "bottom_up" in k}
    blobs = caffe2_names(state) | {"fc1000_w": torch.zeros(3, 8).numpy()}
    blobs |= {"fc1000_b": torch.zeros(3).numpy(), "conv1_b": torch.zeros(8).numpy()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs, 2))
    cfg, target = our_config("faster_FPN", RES345), tmp_path / "b.pth"
    conversion = convert_checkpoint("detectron2", tmp_path / "R-50.pkl", target, cfg)
    table = " ".join(conversion.table().split())
    assert "fc1000_w ImageNet classifier" in table and "conv1_b Detectron has no bias" in table
    assert "roi_heads.box_head.fc1.weight initial values the file holds a backbone only" in table
    weights, name = read_weights(target), "backbone.bottom_up.res4.3.conv2.weight"
    assert torch.equal(weights[name], state[name])
    with pytest.raises(ConversionError, match="MODEL.RESNETS.NORM to FrozenBN instead of BN"):
        cfg = our_config("faster_FPN", ["MODEL.RESNETS.NORM", "BN"])
        convert_checkpoint("detectron2", tmp_path / "R-50.pkl", target, cfg)


def test_other_classes_are_refused_or_initialised(tmp_path):
    file = zoo_file(detector(their_config("mask_FPN")).state_dict(), tmp_path / "model_final.pkl")
    other = ["MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    with pytest.raises(ConversionError, match=r"'roi_heads.box_predictor.cls_score.weight' would"):
        converted("mask_FPN", file, other)
    assert [path.name for path in tmp_path.iterdir()] == ["model_final.pkl"]
    kept = ["roi_heads.box_predictor", "roi_heads.mask_head.predictor"]
    cfg = our_config("mask_FPN", other)
    target = tmp_path / "converted.pth"
    conversion = convert_checkpoint("detectron2", file, target, cfg, keep=kept)
    assert conversion.table().count("initial values") >= 6
    assert "roi_heads.box_head.fc1.weight" in read_weights(target)
    assert not any(name.startswith(tuple(kept)) for name in read_weights(target))


@pytest.mark.parametrize(
    ("name", "into", "overrides", "message"),
    [
        ("dconv", "mask_FPN", [], "26 tensors of the file have no place .*conv2_offset"),
        ("mdconv", "dconv", [], r"conv_offset.weight' would be \(27, .* it is \(18, "),
        ("faster_FPN", "mask_FPN", [], "tensors of the model are not in the file: .*mask_head"),
        ("mask_FPN", "faster_FPN", [], "tensors of the file have no place .*mask_head"),
        ("faster_FPN", "faster_DC5", [], "."),
        ("faster_FPN", "faster_FPN", ["MODEL.RESNETS.DEPTH", "101"], "not in the file: .*res4.6"),
    ],
)
def test_another_network_is_refused(name, into, overrides, message, tmp_path):
    file = zoo_file(detector(their_config(name)).state_dict(), tmp_path / "model_final.pkl")
    with pytest.raises(ConversionError, match=f"model_final.pkl: .*{message}"):
        converted(into, file, overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["model_final.pkl"]


def test_a_pkl_does_not_run_when_training_loads_it(tmp_path):
    """`Trainer` loads MODEL.WEIGHTS with SafeCheckpointer, the base class of the one used here."""
    sign = tmp_path / "sign"

    class Hostile:
        def __reduce__(self):
            return sign.touch, ()

    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {}, "__author__": Hostile()}))
    with pytest.raises(ValueError, match=r"model.pkl .* it names pathlib\."):
        loaded(our_config("faster_FPN"), tmp_path / "model.pkl")
    assert not sign.exists()


def test_weights_that_do_not_fit_are_named(tmp_path):
    """In MODEL.WEIGHTS, torch compares the renamed offset layers, not Detectron2."""
    file = zoo_file(detector(their_config("dconv")).state_dict(), tmp_path / "model_final.pkl")
    with pytest.raises(ValueError, match=r"another network.*conv_offset.*\[18, .*\[27, "):
        loaded(our_config("dconv", MODULATED), file)


def test_a_config_with_another_border(tmp_path):
    theirs = detector(their_config("dconv"))
    file = zoo_file(theirs.state_dict(), tmp_path / "model_final.pkl")
    cfg = our_config("dconv", ["MODEL.RESNETS.DEFORM_BORDER", "legacy"])
    convert_checkpoint("detectron2", file, tmp_path / "converted.pth", cfg)
    cfg = read_config(tmp_path / "converted.yaml")
    assert_same_objects(loaded(cfg, tmp_path / "converted.pth"), theirs)
