"""The YAML of `d2-deformable new` trains as it is."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from d2_deformable.cli.main import main
from d2_deformable.config import read_config
from d2_deformable.data import register_custom_datasets
from d2_deformable.engine import preflight
from d2_deformable.model_zoo.new_config import SIZES, new_config
from drawn import WRITERS, write_drawn


def write(text, tmp_path):
    file = tmp_path / "new.yaml"
    file.write_text(text)
    cfg = read_config(file)
    register_custom_datasets(cfg)
    return file, cfg


@pytest.mark.parametrize("kind", WRITERS)
def test_trains_on_every_format(kind, tmp_path, capsys):
    root = write_drawn(tmp_path / f"new_{kind}", kind, {"all": 5})
    file = tmp_path / "new.yaml"
    main(["new", "--data", str(root), "--format", kind, "--output", str(file)])
    assert f"d2-deformable train --config-file {file}" in capsys.readouterr().out
    output = tmp_path / "output"
    main(["train", "--config-file", str(file), "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(output)])
    assert (output / "model_final.pth").is_file()
    results = (output / "metrics.json").read_text()
    assert ("sem_seg/mIoU" if kind == "mask" else "bbox/AP50") in results


@pytest.mark.slow
def test_learns_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_drawn(tmp_path / "learns", "voc", {"train": 16, "val": 4})
    main(["new", "--data", str(root), "--format", "voc"])
    main(["train", "--config-file", "learns_small.yaml"])
    metrics = (tmp_path / "output/learns_small/metrics.json").read_text()
    assert float(re.findall(r'"bbox/AP50": ([\d.]+)', metrics)[-1]) > 80


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["csv", "mask"])
def test_every_size_passes_the_checks(kind, size, tmp_path):
    root = write_drawn(tmp_path / f"sized_{kind}", kind, {"train": 2, "val": 1})
    text = new_config(root, kind, size)
    _, cfg = write(text, tmp_path)
    preflight(cfg)
    assert "PART" not in text
    assert {"small": 18, "medium": 50, "large": 101}[size] == cfg.MODEL.RESNETS.DEPTH
    assert cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS == 3
    head = cfg.MODEL.SEM_SEG_HEAD if kind == "mask" else cfg.MODEL.ROI_HEADS
    assert (3 if kind == "mask" else 2) == head.NUM_CLASSES
    weights = {"small": "d2_deformable://", "medium": "/MSRA/R-50", "large": "/MSRA/R-101"}
    assert weights[size] in cfg.MODEL.WEIGHTS
    assert (cfg.TEST.VOC_METRIC, cfg.TEST.SEM_SEG_RESOLUTION) == ("area", "full")


def test_the_checkpoint_fits_where_it_should(tmp_path):
    """With three sizes and three ratios, only layers of the class count differ."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    root = write_drawn(tmp_path / "fits", "csv", {"train": 2, "val": 1})
    _, cfg = write(new_config(root, "csv"), tmp_path)
    cfg.MODEL.DEVICE = "cpu"
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]) == 3
    checkpointer = DetectionCheckpointer(build_model(cfg))
    file = checkpointer.path_manager.get_local_path(cfg.MODEL.WEIGHTS)
    incompatible = checkpointer._load_model(torch.load(file, weights_only=True))
    assert {name for name, *_ in incompatible.incorrect_shapes} == {
        f"roi_heads.box_predictor.cls_score.{layer}_maps.{kind}"
        for layer in ("score", "offset")
        for kind in ("weight", "bias")
    }


@pytest.fixture
def csv_set(tmp_path):
    """Write a csv data set of blank images and one box each; return its folder."""

    def csv_set(name, image_size, box_sizes, label="bolt"):
        root = tmp_path / name
        (root / "images").mkdir(parents=True)
        rows = []
        for i, (width, height) in enumerate(box_sizes):
            Image.new("RGB", image_size).save(root / f"images/{i}.png")
            rows.append(f"{i}.png,0,0,{width},{height},{label}")
        (root / "all.csv").write_text("\n".join(rows))
        return root

    return csv_set


@pytest.mark.parametrize(
    ("side", "expected"),
    [(8, 400), (30, 400), (64, 288), (300, 160)],  # 576 * 32 / 64 = 288
)
def test_image_size_follows_the_objects(csv_set, tmp_path, side, expected):
    root = csv_set(f"objects_{side}", (700, 576), [(side, side)] * 6)
    _, cfg = write(new_config(root, "csv"), tmp_path)
    assert expected == cfg.INPUT.MIN_SIZE_TEST
    assert len(cfg.INPUT.MIN_SIZE_TRAIN) >= 3 and expected in cfg.INPUT.MIN_SIZE_TRAIN
    assert max(cfg.INPUT.MIN_SIZE_TRAIN) * 700 / 576 <= cfg.INPUT.MAX_SIZE_TRAIN


def test_small_images_are_not_enlarged(csv_set, tmp_path):
    root = csv_set("little", (300, 192), [(8, 8)] * 6)
    _, cfg = write(new_config(root, "csv"), tmp_path)
    assert cfg.INPUT.MIN_SIZE_TEST == 192


def test_anchors_follow_the_objects(csv_set, tmp_path):
    # Upright boxes, three times as high as wide, of many sizes.
    root = csv_set("upright", (400, 400), [(w, 3 * w) for w in range(10, 130, 4)])
    text = new_config(root, "csv")
    _, cfg = write(text, tmp_path)
    scale = cfg.INPUT.MIN_SIZE_TEST / 400
    (sizes,), (ratios,) = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    assert len(sizes) == 4 and max(np.divide(sizes[1:], sizes[:-1])) <= 2
    assert sizes[0] < 20 * 3**0.5 * scale and sizes[-1] > 110 * 3**0.5 * scale
    assert ratios == [2.0, 3.0, 4.5]
    (chosen, own), *_ = re.findall(r"IoU of ([\d.]+) on[\s#]+average, ([\d.]+)", text)
    assert float(chosen) > float(own) + 0.05


def test_the_schedule_follows_the_number_of_images(tmp_path):
    from d2_deformable.model_zoo.new_config import Choices, _choose_schedule

    found = {}
    for images in (4, 50, 500, 5000, 100_000):
        choices = Choices(read_config(write_base(tmp_path)))
        _choose_schedule(choices, images)
        solver, test = choices.cfg.SOLVER, choices.cfg.TEST
        found[images] = solver.MAX_ITER
        assert solver.WARMUP_ITERS <= solver.MAX_ITER / 20
        assert solver.WARMUP_ITERS < solver.STEPS[0] < solver.STEPS[1] < solver.MAX_ITER
        assert 0 < solver.CHECKPOINT_PERIOD <= test.EVAL_PERIOD < solver.MAX_ITER
    assert found == {4: 200, 50: 700, 500: 3200, 5000: 15000, 100_000: 300_000}


def write_base(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text("VERSION: 2\nSOLVER: {IMS_PER_BATCH: 4, WARMUP_ITERS: 1000}\n")
    return file


@pytest.mark.parametrize(("label", "flip"), [("left glove", "none"), ("bright spot", "horizontal")])
def test_sided_classes_are_not_mirrored(csv_set, tmp_path, label, flip):
    root = csv_set(f"sided_{flip}", (64, 64), [(20, 20)] * 3, label)
    _, cfg = write(new_config(root, "csv"), tmp_path)
    assert flip == cfg.INPUT.RANDOM_FLIP


def test_a_divided_set_says_so(tmp_path):
    root = write_drawn(tmp_path / "divided", "csv", {"all": 5})
    text = new_config(root, "csv")
    assert "PART: train" in text and "PART: val" in text
    assert "PART divides it by the images' names" in text
    assert "# 4 images to train on, 1 to test on, 2 classes." in text


def test_an_existing_file_is_kept(tmp_path):
    root = write_drawn(tmp_path / "kept", "csv", {"all": 5})
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(SystemExit, match="mine.yaml: exists already"):
        main(["new", "--data", str(root), "--format", "csv", "--output", str(file)])
    assert file.read_text() == "mine"


def test_no_object_is_an_error(tmp_path):
    root = tmp_path / "nothing"
    root.mkdir()
    Image.new("RGB", (9, 9)).save(root / "a.png")
    (root / "train.csv").write_text("a.png,,,,,")
    (root / "val.csv").write_text("a.png,,,,,")
    with pytest.raises(ValueError, match="nothing: no object in 1 image to train on"):
        new_config(root, "csv")


def write_categories(root, names):
    """Give the json of a drawn COCO set further categories, which no object has."""
    (file,) = root.glob("*.json")
    content = json.loads(file.read_text())
    content["categories"] += [{"id": 90 + i, "name": name} for i, name in enumerate(names)]
    file.write_text(json.dumps(content))


def test_categories_without_objects_are_named(tmp_path):
    root = write_drawn(tmp_path / "unused", "coco", {"all": 5})
    write_categories(root, ["jellyfish", "starfish"])
    text = new_config(root, "coco")
    comment = "# Left out, since no object of the json has them: parts, jellyfish, starfish."
    _, after = text.split(comment)  # once, for the training set
    assert after.lstrip().startswith("CLASSES: [bolt, nut]")
    assert comment not in new_config(root, "coco", given={"CLASSES": ["nut", "bolt"]})
    assert "Left out" not in new_config(write_drawn(tmp_path / "csv", "csv", {"all": 5}), "csv")


def test_few_images_are_called_uncertain(tmp_path):
    few = "# So few images give uncertain results: better label at least 20"
    counts = {"enough": (20, 5), "few_train": (19, 5), "few_test": (20, 4)}
    found = {}
    for name, (train, val) in counts.items():
        root = write_drawn(tmp_path / name, "csv", {"train": train, "val": val})
        found[name] = few in new_config(root, "csv")
    assert found == {"enough": False, "few_train": True, "few_test": True}


def flat(text):
    return re.sub(r"[\s#]+", " ", text)


def test_what_starts_anew_is_said_only_where_it_does(tmp_path, csv_set):
    skip = "Skip loading"
    boxes = [(20, 20), (30, 20), (40, 30), (50, 30)] * 4
    root = csv_set("eight", (128, 128), boxes)
    rows = (root / "all.csv").read_text().splitlines()
    classes = "abcdefgh" * 2  # as many as the packaged network has
    (root / "all.csv").write_text("\n".join(f"{r[:-4]}{c}" for r, c in zip(rows, classes)))
    expected = {"eight": False, "one": True}
    csv_set("one", (128, 128), boxes)
    found = {n: flat(new_config(tmp_path / n, "csv")) for n in expected}
    assert {n: skip in text for n, text in found.items()} == expected
    assert "depend on the number of classes" in found["one"]
    assert skip not in flat(new_config(tmp_path / "one", "csv", "medium"))
    masks = new_config(write_drawn(tmp_path / "masks", "mask", {"train": 2, "val": 1}), "mask")
    assert skip not in flat(masks) and "the head starts anew" in flat(masks)
