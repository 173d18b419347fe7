import json

import numpy as np
import pytest
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image

from d2_deformable.config import read_config
from d2_deformable.data.inspection import inspect_datasets
from d2_deformable.data.statistics import (
    Anchors,
    Objects,
    best_overlap,
    read_anchors,
    resize_objects,
)
from d2_deformable.data.summary import summarize
from d2_deformable.model_zoo import get_config_file
from drawn import write_drawn

CAT_DOG = "{FORMAT: voc, ROOT: set, CLASSES: [cat, dog]}"


def problems(data):
    return {kind: found for kind, found in data.problems.items() if found}


def test_every_problem_is_found_with_its_file(register, write_voc, voc_object, root):
    good = voc_object("cat", (1, 1, 20, 20))
    for stem in ("a", "b"):
        write_voc(stem, good)
    write_voc("broken", good)
    write_voc("size", good, header="<size><width>99</width><height>40</height></size>")
    write_voc("turned", good)
    write_voc("empty", size=(50, 40))
    write_voc("tiny", voc_object("cat", (1, 1, 7, 7)), size=(52, 40))
    write_voc("beyond", voc_object("cat", (30, 1, 90, 30)), size=(54, 40))
    write_voc("imageless", good, suffix="")
    unknown = write_voc("unknown", voc_object("cow", (1, 1, 9, 9)))
    images = root / "set/JPEGImages"
    whole = (images / "broken.jpg").read_bytes()
    (images / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(images / "turned.jpg", exif=exif)
    register(inspect_all=CAT_DOG)
    (data,) = inspect_datasets(["inspect_all"])
    found = problems(data)
    assert data.stops_training
    assert [d["image_id"] for d in data.dicts] == ["a", "b", "beyond", "empty", "tiny"]
    imageless, unknown_class = found.pop("data")
    assert "imageless.xml: no image imageless.*" in imageless
    assert unknown_class == (
        f"{unknown}: an object has the class 'cow', unknown to CLASSES cat, dog. Add it to "
        "CLASSES, or remove its objects from the annotations to train on fewer classes"
    )
    (broken,) = found.pop("broken")
    assert broken.startswith(f"{images}/broken.jpg: this image cannot be read")
    assert found == {
        "size": [
            f"{images}/size.jpg (60 x 40; annotated as 99 x 40)",
            f"{images}/turned.jpg (40 x 60, turned by its EXIF orientation; annotated as 60 x 40)",
        ],
        "clipped": ["beyond.xml"],
        "duplicate": ["b.jpg of inspect_all = a.jpg of inspect_all"],
        "tiny": ["tiny.jpg"],
        "empty": ["empty.jpg"],
        "unused": ["dog"],
    }
    text = summarize(data, limit=1)
    assert "inspect_all: 5 images, 4 objects (0.8 per image)" in text
    assert "ERROR: 2 images of another size than in the annotations\n" in text
    assert "warning: 1 class without an object\n    dog\n" in text
    assert "    and 1 more (--all lists them)" in text


def test_what_cannot_be_loaded_is_one_error(register):
    register(inspect_nowhere=CAT_DOG)
    (data,) = inspect_datasets(["inspect_nowhere"])
    assert data.stops_training and not data.dicts
    assert "Annotations: no such folder, from ANNOTATIONS" in problems(data)["data"][0]
    assert "ERROR: 1 error of the data set" in summarize(data)


def test_an_image_in_both_splits(register, tmp_path):
    root = write_drawn(tmp_path / "set", "csv", {"train": 2, "val": 1})
    image = root / "images"
    (image / "val_0.jpg").write_bytes((image / "train_1.jpg").read_bytes())
    fields = '{"FORMAT": "csv", "ROOT": "set", "IMAGES": "images", "ANNOTATIONS": "%s.csv"}'
    register(inspect_train=fields % "train", inspect_val=fields % "val")
    train, val = inspect_datasets(["inspect_train", "inspect_val"])
    assert not problems(train) and not val.stops_training
    assert val.problems["duplicate"] == ["val_0.jpg of inspect_val = train_1.jpg of inspect_train"]


def test_class_masks(register, tmp_path):
    write_drawn(tmp_path / "set", "mask", {"all": 2})
    register(inspect_mask="{FORMAT: mask, ROOT: set, CLASSES: [background, bolt, nut, screw]}")
    (data,) = inspect_datasets(["inspect_mask"])
    assert data.counts.sum() == 2 * 96 * 64 and data.counts[0] > data.counts[1] > 0
    assert data.images.tolist() == [2, 1, 1, 0]
    assert problems(data) == {"unused": ["screw"]}
    assert "2 images with class masks" in summarize(data)


def test_all_masks_wrong(register, tmp_path):
    write_drawn(tmp_path / "set", "mask", {"all": 2})
    register(inspect_wrong="{FORMAT: mask, ROOT: set, CLASSES: [background]}")
    (data,) = inspect_datasets(["inspect_wrong"])
    found = problems(data)["data"]
    assert [f"all_{i}.png: holds" in error for i, error in enumerate(found)] == [True, True]


def test_the_network_must_fit(register, tmp_path):
    write_drawn(tmp_path / "set", "csv", {"all": 1})
    fields = '{"FORMAT": "csv", "ROOT": "set", "IMAGES": "images", "ANNOTATIONS": "all.csv"}'
    register(inspect_fit=fields)
    cfg = read_config(get_config_file("quick/cards_rfcn_R_18.yaml"))
    (data,) = inspect_datasets(["inspect_fit"], cfg)
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 6, but inspect_fit has the" in data.problems["data"][0]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.classes)
    (data,) = inspect_datasets(["inspect_fit"], cfg)
    assert not data.stops_training
    # Boxes of 64 pixels' short side at the network's 240.
    assert data.objects.image_sizes.tolist() == [[360, 240]]
    assert len(data.overlaps) == 2
    text = summarize(data, read_anchors(cfg))
    assert "an anchor overlaps by IoU >= 0.7" in text and " reached" in text


def test_unknown_names():
    with pytest.raises(ValueError, match="voc_2007_trian, .*; did you mean voc_2007_train"):
        inspect_datasets(["voc_2007_trian"])


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_best_overlap_is_that_of_all_anchors(offset):
    """Against every anchor of the feature maps, as the RPN matches them."""
    rng = np.random.default_rng(0)
    width, height, strides = 200, 130, [16, 32]
    corners = rng.uniform(0, 1, (50, 2, 2)) * [width, height]
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    sizes, ratios = [[32, 64], [100]], [[0.5, 1.0, 2.0]]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=strides, offset=offset
    )
    maps = [np.zeros((1, 1, -(-height // s), -(-width // s)), np.float32) for s in strides]
    everywhere = Boxes.cat(generator([torch_of(m) for m in maps]))
    expected = pairwise_iou(Boxes(torch_of(boxes).float()), everywhere).max(dim=1).values
    objects = Objects(
        boxes, np.zeros(50, int), np.zeros(50, int), np.array([[width, height]], float)
    )
    anchors = Anchors([c.numpy() for c in generator.cell_anchors], strides, offset, 0.7)
    assert best_overlap(objects, anchors) == pytest.approx(expected.numpy(), abs=1e-5)


def torch_of(array):
    import torch

    return torch.from_numpy(array)


def test_resizing():
    objects = Objects(
        np.array([[10.0, 20, 30, 60], [0, 0, 100, 10]]),
        np.array([0, 0]),
        np.array([0, 1]),
        np.array([[100.0, 50], [400, 100]]),
    )
    resized = resize_objects(objects, 100, 300)
    assert resized.image_sizes.tolist() == [[200, 100], [300, 75]]
    assert resized.boxes.tolist() == [[20, 40, 60, 120], [0, 0, 75, 7.5]]


@pytest.mark.parametrize(
    ("config", "strides", "sides"),
    [
        ("VOC-Detection/rfcn_R_50.yaml", [16], [512]),
        (
            "COCO-Detection/faster_rcnn_R_101_FPN_1x_mdconv_c3-c5.yaml",
            [4, 8, 16, 32, 64],
            [32, 512],
        ),
    ],
)
def test_anchors_of_a_config(config, strides, sides):
    anchors = read_anchors(read_config(get_config_file(config)))
    assert anchors.strides == strides and anchors.threshold == 0.7
    areas = [cells[:, 2:].prod(axis=1) * 4 for cells in (anchors.cells[0], anchors.cells[-1])]
    assert areas[0].max() ** 0.5 == pytest.approx(sides[0]), "square root of the area"
    assert areas[-1].max() ** 0.5 == pytest.approx(sides[-1])


def test_a_network_without_anchors():
    cfg = read_config(get_config_file("quick/warped_shapes_deeplab_R_18.yaml"))
    assert read_anchors(cfg) is None


def test_parts(register, tmp_path):
    root = write_drawn(tmp_path / "set", "csv", {"all": 12})
    for i in range(7):  # images without an object
        Image.new("RGB", (20, 20 + i)).save(root / f"images/empty_{i}.jpg")
    fields = {"FORMAT": "csv", "ROOT": "set", "IMAGES": "images", "ANNOTATIONS": "all.csv"}
    fields["SPLIT"] = "images"
    parts = {f"part_{part}": json.dumps(fields | {"PART": part}) for part in ("train", "val")}
    register(part_all=json.dumps(fields), **parts)
    whole, train, val = (
        [(r["image_id"], bool(r["annotations"])) for r in data.dicts]
        for data in inspect_datasets(["part_all", "part_train", "part_val"])
    )
    assert [image for image in whole if image in train] == train
    assert sorted(train + val) == sorted(whole)
    assert [sum(objects for _, objects in part) for part in (train, val)] == [10, 2]
    assert (len(train), len(val)) == (16, 3)
    assert val == [("all_4.jpg", True), ("all_5.jpg", True), ("empty_2.jpg", False)]


def test_wrong_parts(register, tmp_path):
    write_drawn(tmp_path / "set", "csv", {"all": 1})
    fields = "{FORMAT: csv, ROOT: set, IMAGES: images, ANNOTATIONS: all.csv, PART: %s}"
    with pytest.raises(ValueError, match="PART must be one of train, val; got 'test'"):
        register(part_wrong=fields % "test")
    register(part_few=fields % "val")
    (data,) = inspect_datasets(["part_few"])
    assert "has 1 image with objects; PART val needs 2 or more" in data.problems["data"][0]
