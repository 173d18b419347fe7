"""Exported files, also loaded in a process that has only the file and the operators."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from d2_deformable.export import export_program, export_torchscript
from d2_deformable.export.verify import are_rounding, differences, load_exported
from d2_deformable.ops import _library
from export_networks import CONVERTED, NETWORKS, noise, small_network

EXPORTS = {"torchscript": export_torchscript, "torch_export": export_program}
LOADS = {"torchscript": "torch.jit.load(f)", "torch_export": "torch.export.load(f).module()"}
# torch.export takes seconds per network, and longer for feature pyramids.
FILES = [("torchscript", name) for name in (*NETWORKS, *CONVERTED)]
FILES += [("torch_export", name) for name in ("rfcn", "deeplab")]
FILES += [
    pytest.param("torch_export", name, marks=pytest.mark.slow)
    for name in ("faster_rcnn", "class_aware_rpn", "cascade_rcnn", "mask_rcnn", *CONVERTED)
]
SIZES = (97, 127), (130, 200), (68, 160)
ROOT = Path(__file__).parents[2]
PACKAGE = f"sys.path.insert(0, {str(ROOT)!r}); import d2_deformable"
OPERATORS = f"torch.ops.load_library({str(_library.PATH)!r})"


def score_thresholds(model):
    """The modules that hold the score threshold."""
    return [m for m in model.modules() if hasattr(m, "test_score_thresh")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(kind, name) -> a network, its file, and an image on which it finds nothing.

    The network is exported in training mode, once for each pair.
    """

    @cache
    def written(kind, name):
        model = small_network(name)
        images = [torch.zeros(3, 96, 128), torch.full((3, 96, 128), 255.0)]
        if "deeplab" not in name:
            found = [model([{"image": x}])[0]["instances"].scores.max().item() for x in images]
            images.sort(key=dict(zip(images, found, strict=True)).get)
            for module in score_thresholds(model):
                module.test_score_thresh = (sum(found) + min(found)) / 3
        file = tmp_path_factory.mktemp("exported") / f"{name}.{kind}"
        EXPORTS[kind](model.train(), noise(97, 128)[:, 1:], file)  # a view
        assert all(m.training for m in model.children())
        return model.eval(), file, images[0]

    return written


def check(model, image, outputs) -> int:
    """Compare the exported outputs with the model's and return the number of detections."""
    found = differences(model, outputs, image)
    assert are_rounding(found), found
    return found.get("detections", 1)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_network_on_every_size(kind, name, written):
    model, file, nothing = written(kind, name)
    exported = load_exported(file, kind)
    images = [noise(*size) for size in SIZES]
    assert sum(check(model, x, exported(x)) for x in images) > 2 or "deeplab" in name
    assert check(model, nothing, exported(nothing)) == 0 or "deeplab" in name


def test_detections_do_not_depend_on_the_traced_image(written, tmp_path):
    """The network is traced on an image on which it finds nothing."""
    model, _, nothing = written("torchscript", "mask_rcnn")
    export_torchscript(model, nothing, tmp_path / "file")
    exported, image = load_exported(tmp_path / "file", "torchscript"), noise(*SIZES[0])
    assert check(model, image, exported(image)) > 0 == check(model, nothing, exported(nothing))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("faster_rcnn", ["TEST.DETECTIONS_PER_IMAGE", 1]),
        ("rfcn", ["MODEL.RPN.POST_NMS_TOPK_TEST", 1]),
        ("mask_rcnn", ["MODEL.RPN.POST_NMS_TOPK_TEST", 0]),
        ("class_aware_rpn", ["MODEL.RPN.PRE_NMS_TOPK_TEST", 2]),
        ("class_aware_rpn", []),
    ],
)
def test_few_boxes_or_many_after_few(name, overrides, tmp_path):
    model = small_network(name, *overrides)
    export_torchscript(model, noise(32, 32), tmp_path / "file")
    exported, image = load_exported(tmp_path / "file", "torchscript"), noise(*SIZES[0])
    check(model, image, exported(image))


@pytest.mark.parametrize(
    ("kind", "name", "imports"),
    [
        ("torchscript", "rfcn", PACKAGE),
        pytest.param(
            "torchscript",
            "mask_rcnn",
            f"import torchvision; {OPERATORS}",
            marks=pytest.mark.slow,
        ),
        ("torchscript", "deeplab", OPERATORS),
        pytest.param(
            "torch_export", "rfcn", f"import torchvision; {OPERATORS}", marks=pytest.mark.slow
        ),
    ],
)
def test_a_fresh_process(kind, name, imports, written, tmp_path):
    model, file, _ = written(kind, name)
    images = [noise(*size) for size in SIZES]
    torch.save(images, tmp_path / "images")
    code = [
        "import sys, torch",
        imports,
        f"f = {str(file)!r}",
        f"network = {LOADS[kind]}",
        "torch.save([network(x) for x in torch.load('images')], 'outputs')",
        f"assert 'detectron2' not in sys.modules or {imports == PACKAGE}",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True, cwd=tmp_path)
    for image, outputs in zip(images, torch.load(tmp_path / "outputs"), strict=True):
        check(model, image, outputs)


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 96, 128, dtype=torch.uint8), "image is torch.uint8"),
        (torch.zeros(1, 3, 96, 128), r"shape \(1, 3, 96, 128\); expected one image"),
    ],
)
def test_what_is_no_image_is_refused(kind, image, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        EXPORTS[kind](small_network("deeplab"), image, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_an_example_that_torch_export_would_specialise_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 20 x 20 pixels"):
        export_program(small_network("deeplab"), noise(16, 96), tmp_path / "file")


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        ("torchscript", Identity.apply, "Python function of its own.*'Identity'"),
        ("torch_export", lambda x: x if x.sum() > 0 else -x, "torch.export cannot follow this"),
    ],
)
def test_a_layer_that_no_file_can_hold(kind, layer, message, tmp_path):
    model = small_network("deeplab")
    model.sem_seg_head.hidden.activation = layer
    with pytest.raises(ValueError, match=message):
        EXPORTS[kind](model, noise(96, 128), tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", EXPORTS)
def test_no_folder(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        EXPORTS[kind](small_network("deeplab"), noise(96, 128), tmp_path / "no" / "file")
