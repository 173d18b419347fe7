"""Exported files find nothing where eager code finds nothing, whichever step leaves no box."""

import pytest
import torch

from d2_deformable.export import export_onnx, export_program, export_torchscript
from d2_deformable.export.verify import are_rounding, differences, load_exported
from export_networks import CONVERTED, NETWORKS, noise, small_network

EXPORTS = {
    "onnx": export_onnx,
    "torchscript": export_torchscript,
    "torch_export": export_program,
}
DETECTORS = [name for name in (*NETWORKS, *CONVERTED) if "deeplab" not in name]
POOLER = "MODEL.ROI_BOX_HEAD.POOLER_TYPE"
# Other RoI layers than those of the networks above.
VARIANTS = [
    ("rfcn", POOLER, "PSROIPool"),
    ("rfcn", POOLER, "PSROIAveragePool"),
    ("rfcn_fpn", POOLER, "ModulatedDeformPSROIPool"),
    ("faster_rcnn", POOLER, "ROIAveragePool"),
    ("faster_rcnn", POOLER, "ModulatedDeformROIPool"),
    ("faster_rcnn", POOLER, "ROIAlignV2"),
    ("faster_rcnn", POOLER, "DeformROIAlign"),
    (
        "faster_rcnn",
        *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.RESNETS.OUT_FEATURES", ["res4"]),
        *("MODEL.RESNETS.REDUCED_CHANNELS", 0),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["res4"], POOLER, "ROIAlignV2"),
    ),
]
CASES = [(kind, (name,)) for kind in ("onnx", "torchscript") for name in DETECTORS]
CASES += [("onnx", variant) for variant in VARIANTS]
CASES += [
    pytest.param("torch_export", (name,), marks=[] if name == "rfcn" else pytest.mark.slow)
    for name in DETECTORS
    if name != "faster_rcnn_released"  # its RPN leaves boxes in all but tiny images
]


def without_boxes(model) -> None:
    """Move every box of the region proposal network by four times its anchor's size."""
    generator = getattr(model, "proposal_generator", None)
    deltas = (model.head if generator is None else generator.rpn_head).anchor_deltas
    with torch.no_grad():
        deltas.weight.zero_()
        deltas.bias.zero_()
        deltas.bias.view(-1, 4)[:, :2] = 4.0


def exported(kind, model, image, folder):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    EXPORTS[kind](model, image, folder / "file")
    return load_exported(folder / "file", kind)


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_no_proposal(kind, arguments, tmp_path):
    model = small_network(*arguments)
    without_boxes(model)
    if kind == "torch_export":  # its programs have a minimum size
        traced, sizes = noise(70, 72), [(70, 75), (75, 70)]
    else:
        traced, sizes = noise(32, 32), [(70, 75), (33, 40), (5, 7)]
    network = exported(kind, model, traced, tmp_path)
    numbers = []
    for image in [noise(*size) for size in sizes]:
        outputs = network(image)
        found = differences(model, outputs, image)
        assert are_rounding(found), found
        numbers.append(found["detections"])
    assert numbers[-1] == 0  # the released RPN keeps boxes at the border of larger images
    assert [len(x) for x in outputs] == [0] * len(outputs)
    assert len(network(noise(224, 320))[0]) > 0


@pytest.mark.parametrize("name", ["rfcn", "class_aware_rpn", "cascade_rcnn", "mask_rcnn"])
def test_no_score_above_the_threshold(name, tmp_path):
    model = small_network(name, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    image = noise(96, 96)
    outputs = exported("onnx", model, image, tmp_path)(image)
    assert [len(x) for x in outputs] == [0] * len(outputs)
    assert differences(model, outputs, image)["detections"] == 0
