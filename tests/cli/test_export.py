"""d2-deformable export, on the detector that comes with the package."""

import re
import sys

import pytest
import torch
from PIL import Image

from d2_deformable.cli import export
from d2_deformable.cli.main import main
from d2_deformable.data.warped_shapes import WarpedShapesFormat
from yamls import CONFIGS

YAML = CONFIGS / "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
WEIGHTS = "d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth"
SMALL = ("INPUT.MIN_SIZE_TEST", "96", "MODEL.DEVICE", "cpu")


@pytest.fixture
def run(tmp_path, capsys):
    """run(kind, *arguments) -> the printed text; the command writes tmp_path / "file"."""

    def run(kind, *argv):
        given = "--config-file", YAML, "--weights", WEIGHTS, "--format", kind
        given = *given, "--output", tmp_path / "file", *argv, *SMALL
        main(["export", *map(str, given)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def photo(tmp_path_factory):
    pixels, _ = WarpedShapesFormat(image_size=128, seed=3).draw(0)
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(pixels[:, :100]).save(file)
    return file


@pytest.mark.parametrize(
    "kind", ["torchscript", "onnx", pytest.param("torch_export", marks=pytest.mark.slow)]
)
def test_a_detector_is_written_and_compared(kind, run, photo, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    # Skip log lines, which a handler that another test registered may print.
    printed = [line for line in run(kind, "--image", photo).splitlines() if line[0] != "["]
    assert printed[0] == f"wrote {tmp_path / 'file'}"
    line = r"compared with the network, on 123 x 96 pixels, (\d+) detections: boxes by .* px, .*"
    assert int(re.fullmatch(line, printed[1])[1]) > 0 and len(printed) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_without_a_photograph_there_are_drawn_shapes(run, tmp_path):
    printed = run("torchscript")
    assert "on 96 x 96 pixels" in printed and "no detections" not in printed
    assert torch.jit.load(tmp_path / "file")(torch.zeros(3, 64, 64))[0].shape == (0, 4)


def test_it_says_that_it_compared_nothing(run, photo):
    printed = run("torchscript", "--image", photo, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert "0 detections" in printed and "no detections on this image" in printed


def test_a_file_that_differs_is_removed(run, photo, tmp_path, monkeypatch):
    load = export.load_exported

    def broken(*arguments):
        network = load(*arguments)
        return lambda image: (lambda boxes, *rest: (boxes + 0.01, *rest))(*network(image))

    monkeypatch.setattr(export, "load_exported", broken)
    with pytest.raises(SystemExit, match=r"export: .* boxes by 0.01 px.*; no file is left"):
        run("torchscript", "--image", photo)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", __file__], "this image cannot be read: not an image"),
        (["--output", "nowhere/file"], "there is no folder nowhere"),
        (["MODEL.NO_SUCH", "1"], "there is no key MODEL.NO_SUCH"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "from another network"),
        (["--weights", "nowhere.pth"], "nowhere.pth: no such checkpoint"),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(arguments, message, run, tmp_path):
    with pytest.raises(SystemExit, match=f"export: .*{message}"):
        run("torchscript", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_reported_in_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match="export: .*pip install onnx"):
        run("onnx")
