import pytest
from PIL import Image

from d2_deformable.cli.main import main
from d2_deformable.model_zoo import get_config_file
from drawn import write_drawn


@pytest.fixture
def check(tmp_path, capsys):
    """Run `d2-deformable data check` and return (status, stdout, stderr)."""

    def check(*args):
        status = 0
        try:
            main(["data", "check", "--output", str(tmp_path / "sheet.png"), *map(str, args)])
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().out

    return check


def test_a_folder(check, tmp_path):
    root = write_drawn(tmp_path / "checked", "yolo", {"train": 3, "val": 2})
    status, out = check("--data", root, "--format", "yolo")
    assert status == 0
    assert "checked_train: 3 images, 6 objects" in out and "checked_val: 2 images" in out
    assert Image.open(tmp_path / "sheet.png").width > 600
    (root / "images/val/val_1.jpg").write_bytes(b"")
    status, out = check("--data", root, "--format", "yolo", "SPLIT", "val")
    assert "checked_all: 1 image, " in out
    assert "training would stop" in status, "text as the status means 1"
    assert "ERROR: " in out and "val_1.jpg" in out


def test_a_config(check, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = get_config_file("quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml")
    sizes = "DATASETS.CUSTOM.warped_shapes_%s.NUM_IMAGES"
    overrides = [sizes % "train", 3, sizes % "val", 2]
    status, out = check(config, *overrides, "INPUT.MIN_SIZE_TRAIN", "(320,)")
    assert status == 0 and "an anchor overlaps by IoU >= 0.7" in out
    status, out = check(config, *overrides, "DATASETS.TEST", "('warped_shapes_vla',)")
    assert "did you mean warped_shapes_val" in status


def test_wrong_use(check, tmp_path):
    assert "give a CONFIG, or --data and --format" in check()[0]
    assert "give a CONFIG, or --data and --format" in check("--data", tmp_path)[0]
    message = check("--data", tmp_path, "--format", "voc", "SPLIT")[0]
    assert "SPLIT: a field without a value" in message
