"""Whole networks in ONNX Runtime give the same results as eager code, also on untraced sizes."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.file_io import PathManager
from torch import nn

import d2_deformable
import yamls
from d2_deformable.checkpoint import StrictCheckpointer
from d2_deformable.data import shapes
from d2_deformable.data.warped_shapes import WarpedShapesFormat
from d2_deformable.export.verify import are_rounding, differences, load_exported
from d2_deformable.modeling import build_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from d2_deformable.export.onnx import export_onnx  # noqa: E402

NARROW = ["MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.RESNETS.NORM", "BN"]
SMALL_RCNN = [
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "200", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
]
SMALL_FPN = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", *SMALL_RCNN),
]
NETWORKS = {
    "quick/warped_shapes_rfcn_R_18": [],
    "quick/warped_shapes_rfcn_R_18_dconv3_dpool": [
        *("MODEL.RESNETS.DEFORM_BORDER", "legacy", "MODEL.RESNETS.DEFORM_NUM_GROUPS", "4"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"),
    ],
    "quick/warped_shapes_faster_rcnn_R_18": SMALL_RCNN,
    "quick/warped_shapes_faster_rcnn_R_18_dconv3_dpool": SMALL_RCNN,
    "quick/warped_shapes_class_aware_rpn_R_18_dconv3": [],
    "quick/warped_shapes_deeplab_R_18_dconv3": [],
    "COCO-Detection/mask_rcnn_R_50_FPN_1x_mdconv_c3-c5_dpool": [
        *(*SMALL_FPN, "MODEL.DEFORM_MODULES", "[['mask_head', {'groups': 2}]]"),
    ],
    "COCO-Detection/cascade_rcnn_R_50_FPN_1x_dconv_c3-c5": SMALL_FPN,
}
# Standard deviations given to the outputs of random layers (logits, deltas and offsets), so that
# the networks detect something.
SPREADS = {
    "objectness_logits": 2.0,
    "anchor_deltas": 0.3,
    "cls_score": 2.0,
    "cls_score.score_maps": 7.0,  # then averaged over the bins
    "bbox_pred": 1.0,
    "bbox_pred.score_maps": 3.0,
    "sem_seg_head.predictor": 1.0,
    "mask_head.predictor": 1.0,
    "conv_offset": 1.0,
    "conv2_offset": 1.0,
    "offset_maps": 1.0,
    "offset_fc": 1.0,
}
CARDS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "cards"
ZOO = "d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth"


def picture(height: int, width: int, index=0) -> torch.Tensor:
    """A BGR image (3, height, width), cropped from a picture of warped_shapes."""
    pixels, _ = WarpedShapesFormat(image_size=max(height, width, 32), seed=7).draw(index)
    pixels = torch.from_numpy(pixels[:height, :width, ::-1].copy())
    return pixels.permute(2, 0, 1).float()


def photograph(file, shorter: int) -> torch.Tensor:
    """A BGR image (3, height, width) whose shorter side has `shorter` pixels."""
    pixels = read_image(file, "BGR")
    pixels = ResizeShortestEdge(shorter).get_transform(pixels).apply_image(pixels)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()


def network(name: str, overrides=()) -> nn.Module:
    cfg = yamls.load(yamls.CONFIGS / f"{name}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return build_model(cfg).eval()


def spread(model: nn.Module, image: torch.Tensor) -> None:
    """Scale the weights of the layers in SPREADS so that on this image outputs have that spread."""

    def scale_by(std):
        def scale(layer, inputs, output):
            if output.numel() < 2:  # a pyramid level without RoIs
                return output
            with torch.no_grad():
                factor = std / output.std()
                layer.weight *= factor
                layer.bias = None if layer.bias is None else nn.Parameter(layer.bias * factor)
            return output * factor

        return scale

    hooks = []
    for name, layer in model.named_modules():
        spreads = [SPREADS[key] for key in SPREADS if f".{name}".endswith(f".{key}")]
        if spreads and hasattr(layer, "weight"):
            nn.init.normal_(layer.weight, std=0.01)
            hooks.append(layer.register_forward_hook(scale_by(spreads[-1])))
    with torch.no_grad():
        model([{"image": image, "height": 96, "width": 128}])
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The trained network of the model zoo, and its ONNX file."""
    model = network("model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool")
    StrictCheckpointer(model).load(PathManager.get_local_path(ZOO))
    file = tmp_path_factory.mktemp("onnx") / "zoo.onnx"
    export_onnx(model, picture(96, 128), file, class_names=shapes.NAMES)
    return model, file


def check(model, file, images) -> int:
    """Compare the file's outputs with the model's and return the number of detections."""
    run = load_exported(file, "onnx")
    found = [differences(model, run(image), image) for image in images]
    assert all(are_rounding(f) for f in found), found
    return sum(f.get("detections", 0) for f in found)


def test_a_trained_network_on_pictures_of_other_sizes(zoo):
    sizes = [(160, 160), (160, 160), (160, 160), (97, 131), (224, 150), (33, 40), (16, 17)]
    images = [picture(*size, index=i) for i, size in enumerate(sizes)]
    assert check(*zoo, images) > 5


@pytest.mark.skipif(
    not CARDS.is_dir(), reason="needs the cards data set under $DETECTRON2_DATASETS"
)
def test_a_trained_network_on_photographs(zoo):
    photographs = sorted(CARDS.rglob("*.jpg"))[:120:20]
    assert check(*zoo, [photograph(p, 160 + 20 * i) for i, p in enumerate(photographs)]) > 100


def test_nothing_is_found(zoo):
    model, file = zoo
    boxes, scores, classes = load_exported(file, "onnx")(torch.zeros(3, 64, 64))
    assert boxes.shape == (0, 4)
    assert scores.shape == classes.shape == (0,)
    assert check(model, file, [torch.zeros(3, 64, 64)]) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, tmp_path):
    model = network(name, [*NARROW, *NETWORKS[name]])
    spread(model, picture(96, 96))
    file = tmp_path / "network.onnx"
    export_onnx(model, picture(64, 80), file)
    found = check(model, file, [picture(96, 96), picture(75, 130, index=1), picture(128, 40)])
    assert found > 20 or "deeplab" in name


SOFT_NMS = ["TEST.SOFT_NMS.ENABLED", "True", "TEST.SOFT_NMS.METHOD", "gaussian"]
SOFT_NMS_HEADS = {  # Detectron2's own heads have no soft-NMS
    "quick/warped_shapes_faster_rcnn_R_18": "DeformROIHeads",
    "COCO-Detection/cascade_rcnn_R_50_FPN_1x_dconv_c3-c5": "DeformCascadeROIHeads",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "mask" in name else [])
        for name in NETWORKS
        if "deeplab" not in name
    ],
)
def test_soft_nms(name, tmp_path):
    heads = SOFT_NMS_HEADS.get(name)
    overrides = [*NARROW, *NETWORKS[name], *(["MODEL.ROI_HEADS.NAME", heads] if heads else [])]
    model = network(name, [*overrides, *SOFT_NMS])
    spread(model, picture(96, 96))
    file = tmp_path / "network.onnx"
    export_onnx(model, picture(64, 80), file)
    assert check(model, file, [picture(96, 96), picture(75, 130, index=1)]) > 20
    assert check(model, file, [torch.zeros(3, 8, 8)]) >= 0


def test_the_file_stands_alone_and_says_what_it_takes(zoo):
    model, path = zoo
    file = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(file, full_check=True)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 19)]
    assert {node.domain for node in file.graph.node} == {""}
    assert not any(tensor.external_data for tensor in file.graph.initializer)
    assert [p.name for p in path.parent.iterdir()] == [path.name]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.shape, image.type) == (
        "image",
        [3, "height", "width"],
        "tensor(float)",
    )
    assert [(o.name, o.shape, o.type) for o in session.get_outputs()] == [
        ("boxes", ["detections", 4], "tensor(float)"),
        ("scores", ["detections"], "tensor(float)"),
        ("classes", ["detections"], "tensor(int64)"),
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["input_format"] == "BGR"
    assert metadata["pixel_range"] == "0 to 255"
    assert json.loads(metadata["class_names"]) == list(shapes.NAMES)
    assert metadata["meta_architecture"] == "GeneralizedRCNN"
    assert metadata["d2_deformable"] == d2_deformable.__version__


def test_the_model_is_left_as_it_is(tmp_path):
    model = network("quick/warped_shapes_class_aware_rpn_R_18_dconv3", NARROW).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = picture(64, 64)
    export_onnx(model, image, tmp_path / "a.onnx")
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not torch.onnx.is_in_onnx_export()
    assert torch.overrides._get_current_function_mode() is None


class Spectral(nn.Module):
    """A layer for which ONNX has no operator."""

    def forward(self, x):
        return x + torch.linalg.svdvals(x).sum()


def test_a_layer_without_onnx_operators_is_named(tmp_path):
    model = network("quick/warped_shapes_deeplab_R_18_dconv3", NARROW)
    model.sem_seg_head.hidden = nn.Sequential(model.sem_seg_head.hidden, Spectral())
    with pytest.raises(ValueError, match="ONNX's own operators cannot express.*svd"):
        export_onnx(model, picture(64, 64), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


class Foreign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def symbolic(g, x):
        return g.op("lab::Identity", x).setType(x.type())


def test_an_operator_of_another_domain_is_named(tmp_path):
    model = network("quick/warped_shapes_deeplab_R_18_dconv3", NARROW)
    model.sem_seg_head.hidden.activation = Foreign.apply
    with pytest.raises(ValueError, match="without a plug-in: lab::Identity"):
        export_onnx(model, picture(64, 64), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(tmp_path, zoo, monkeypatch):
    model, _ = zoo
    with pytest.raises(ValueError, match="expected one image, float32"):
        export_onnx(model, torch.zeros(1, 3, 64, 64), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="Linear cannot be exported"):
        export_onnx(nn.Linear(2, 2), picture(64, 64), tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError):
        export_onnx(model, picture(64, 64), tmp_path / "nowhere" / "a.onnx")
    monkeypatch.setattr("d2_deformable.export.onnx.MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="holds up to 1000 bytes"):
        export_onnx(model, picture(64, 64), tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx"):
        export_onnx(model, picture(64, 64), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
