"""Written files, loaded by a process that knows nothing but them and the operators."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2_deformable.export import export_program, export_torchscript
from d2_deformable.export.verify import are_rounding, differences, load_exported
from d2_deformable.ops import _library
from export_networks import NETWORKS, WITH_BOXES, noise, small_network

EXPORTS = {"torchscript": export_torchscript, "torch_export": export_program}
LOADS = {"torchscript": "torch.jit.load(f)", "torch_export": "torch.export.load(f).module()"}
PYRAMIDS = ("cascade_rcnn", "mask_rcnn")  # torch.export takes long over them
CASES = [
    pytest.param(format, name, marks=[pytest.mark.slow] * (name in PYRAMIDS))
    if format == "torch_export"
    else (format, name)
    for format in EXPORTS
    for name in NETWORKS
]
SIZES = (97, 127), (130, 200), (65, 160)
OPERATORS = f"torch.ops.load_library({str(_library.PATH)!r})"


def check(model, exported, sizes=SIZES):
    """How many detections there were."""
    detections = 0
    for size in sizes:
        image = noise(*size)
        found = differences(model, exported(image), image)
        assert are_rounding(found), (size, found)
        detections += found.get("detections", 0)
    return detections


def run_elsewhere(imports, format, file, images) -> list:
    """What the file gives in a process of its own that runs `imports` after `import torch`."""
    folder = Path(file).parent
    torch.save(images, folder / "images.pt")
    code = [
        "import sys, torch",
        imports,
        f"f = {str(file)!r}",
        f"network = {LOADS[format]}",
        "torch.save([network(x) for x in torch.load('images.pt')], 'outputs.pt')",
        "assert 'detectron2' not in sys.modules or 'd2_deformable' in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True, cwd=folder)
    return torch.load(folder / "outputs.pt")


@pytest.mark.parametrize(("format", "name"), CASES)
def test_files_of_every_network_take_every_size(format, name, tmp_path):
    model = small_network(name)
    EXPORTS[format](model, noise(96, 128), tmp_path / "file")
    detections = check(model, load_exported(tmp_path / "file", format))
    assert detections > 20 or name == "deeplab"


@pytest.mark.parametrize(
    ("format", "imports"),
    [
        ("torchscript", "import d2_deformable"),
        ("torchscript", f"import torchvision; {OPERATORS}"),
        ("torch_export", "import d2_deformable"),
    ],
)
def test_a_fresh_process_runs_a_detector(format, imports, tmp_path):
    model = small_network("rfcn")
    EXPORTS[format](model, noise(96, 128), tmp_path / "file")
    images = [noise(*size) for size in SIZES]
    root = Path(__file__).parents[2]
    imports = f"sys.path.insert(0, {str(root)!r}); {imports}"
    for image, outputs in zip(
        images, run_elsewhere(imports, format, tmp_path / "file", images), strict=True
    ):
        found = differences(model, outputs, image)
        assert found["detections"] > 20 and are_rounding(found)


def test_a_segmentor_needs_no_more_than_the_operators(tmp_path):
    model, image = small_network("deeplab"), noise(80, 120)
    export_torchscript(model, noise(96, 128), tmp_path / "file")
    (outputs,) = run_elsewhere(OPERATORS, "torchscript", tmp_path / "file", [image])
    assert are_rounding(differences(model, outputs, image))


@pytest.mark.parametrize("format", EXPORTS)
@pytest.mark.parametrize(
    ("name", "found", "overrides"),
    [
        ("rfcn", 0, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.1]),
        ("faster_rcnn", 1, ["TEST.DETECTIONS_PER_IMAGE", 1]),
        ("rfcn", None, ["MODEL.RPN.POST_NMS_TOPK_TEST", 1]),
        ("class_aware_rpn", 0, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.1]),
    ],
)
def test_none_and_one(format, name, found, overrides, tmp_path):
    model = small_network(name, *overrides)
    EXPORTS[format](model, noise(96, 128), tmp_path / "file")
    detections = check(model, load_exported(tmp_path / "file", format))
    assert found is None or detections == found * len(SIZES)


def test_nothing_is_found_on_one_image_and_much_on_another(tmp_path):
    """Traced where there are detections, run where there are none, and the other way round."""
    model = small_network("mask_rcnn")
    black, image = torch.zeros(3, 96, 128), noise(96, 128)
    scores = [model([{"image": x}])[0]["instances"].scores.max() for x in (black, image)]
    threshold = sum(scores).item() / 2
    assert abs(scores[0] - scores[1]) > 1e-3
    model.roi_heads.box_predictor.test_score_thresh = threshold
    for traced in (black, image):
        export_torchscript(model, traced, tmp_path / "file")
        exported = load_exported(tmp_path / "file", "torchscript")
        counts = []
        for x in (black, image):
            found = differences(model, exported(x), x)
            assert are_rounding(found)
            counts.append(found["detections"])
        assert min(counts) == 0 < max(counts)


@pytest.mark.parametrize("format", EXPORTS)
def test_a_network_in_training_mode_stays_so(format, tmp_path):
    model = small_network("rfcn").train()
    EXPORTS[format](model, noise(96, 128), tmp_path / "file")
    assert all(m.training for m in model.roi_heads.modules())
    check(model.eval(), load_exported(tmp_path / "file", format))


@pytest.mark.parametrize("format", EXPORTS)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 96, 128, dtype=torch.uint8), "image is torch.uint8"),
        (torch.zeros(1, 3, 96, 128), r"shape \(1, 3, 96, 128\); expected one image"),
    ],
)
def test_what_is_no_image_is_refused(format, image, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        EXPORTS[format](small_network("deeplab"), image, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_an_example_that_torch_export_would_specialise_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 17 x 17 pixels"):
        export_program(small_network("deeplab"), noise(16, 96), tmp_path / "file")


class Branches(torch.nn.ReLU):
    """A layer of a user's own that torch.export cannot follow."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_torch_export_cannot_follow_is_told_in_one_sentence(tmp_path):
    model = small_network("deeplab")
    model.sem_seg_head.hidden.activation = Branches()
    with pytest.raises(ValueError, match="torch.export cannot follow this network: .*torchscript"):
        export_program(model, noise(96, 128), tmp_path / "file")
    assert not list(tmp_path.iterdir())


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x


def test_what_torchscript_cannot_save_is_told_in_one_sentence(tmp_path):
    model = small_network("deeplab")
    model.sem_seg_head.hidden.activation = Identity.apply
    with pytest.raises(ValueError, match="Python function of its own.*'Identity'"):
        export_torchscript(model, noise(96, 128), tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", EXPORTS)
def test_no_folder(format, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        EXPORTS[format](small_network("deeplab"), noise(96, 128), tmp_path / "no" / "file")


@pytest.mark.parametrize("name", WITH_BOXES)
def test_the_file_holds_no_device_but_that_of_the_network(name, tmp_path):
    export_torchscript(small_network(name), noise(96, 128), tmp_path / "file")
    assert "cuda" not in str(torch.jit.load(tmp_path / "file").inlined_graph)
