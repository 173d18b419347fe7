"""Soft-NMS in exported files: the same detections as in eager code, for any number of boxes.

ONNX files of all detectors are tested in test_onnx.py.
"""

import pytest

from d2_deformable.export import export_onnx, export_program, export_torchscript
from d2_deformable.export.verify import are_rounding, differences, load_exported
from export_networks import noise, small_network

EXPORTS = {
    "onnx": export_onnx,
    "torchscript": export_torchscript,
    "torch_export": export_program,
}
SOFT = ["TEST.SOFT_NMS.ENABLED", True, "TEST.SOFT_NMS.METHOD"]
DETECTORS = {
    "rfcn": [],
    "faster_rcnn": [],
    "class_aware_rpn": [],
    "cascade_rcnn": ["MODEL.ROI_HEADS.NAME", "DeformCascadeROIHeads"],
    "mask_rcnn": [],
}
CASES = [("torchscript", name, "gaussian") for name in DETECTORS]
CASES += [("torchscript", "rfcn", "linear")]
CASES += [
    pytest.param(
        "torch_export", "rfcn", method, marks=[] if method == "linear" else pytest.mark.slow
    )
    for method in ("linear", "gaussian")
]
CASES += [
    pytest.param("torch_export", name, "gaussian", marks=pytest.mark.slow)
    for name in DETECTORS
    if name != "rfcn"
]


def check(kind, model, image, sizes, folder) -> list[int]:
    """Compare a file with its network on images of some sizes; return numbers of detections."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    EXPORTS[kind](model, image, folder / "file")
    exported = load_exported(folder / "file", kind)
    numbers = []
    for image in [noise(*size) for size in sizes]:
        found = differences(model, exported(image), image)
        assert are_rounding(found), found
        numbers.append(found["detections"])
    return numbers


@pytest.mark.parametrize(("kind", "name", "method"), CASES)
def test_every_detector(kind, name, method, tmp_path):
    settings = [*SOFT, method, *DETECTORS[name]]
    hard, model = small_network(name, *settings[4:]), small_network(name, *settings)
    numbers = check(kind, model, noise(96, 128), [(97, 127), (128, 200), (70, 75)], tmp_path)
    assert sum(numbers) > 10
    image = noise(128, 200)
    scores = [m([{"image": image}])[0]["instances"].scores.tolist() for m in (hard, model)]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    ("most", "threshold", "expected"), [(-1, 0.0, 400), (2, 0.0, 2), (-1, 1.0, 0)]
)
def test_numbers_of_detections(kind, most, threshold, expected, tmp_path):
    settings = [*SOFT, "linear", "TEST.DETECTIONS_PER_IMAGE", most]
    model = small_network("class_aware_rpn", *settings, "TEST.SOFT_NMS.MIN_SCORE", 0.0)
    model.test_score_thresh = threshold
    (number,) = check(kind, model, noise(70, 75), [(72, 80)], tmp_path)
    assert number >= expected and (number == expected or most < 0)
