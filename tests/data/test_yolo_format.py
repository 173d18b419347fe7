import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

YOLO = "{FORMAT: yolo, ROOT: set}"
NAMES = "names: [cat, dog]\n"


@pytest.fixture
def write_yolo(root):
    """Write set/<image> of 60 x 40 pixels, and set/<label> if text is given; return both paths."""

    def write(image, text=None, label=None, exif=None, size=(60, 40)):
        image = root / "set" / image
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(image, exif=exif or Image.Exif())
        usual = str(image.relative_to(root / "set")).replace("images/", "labels/")
        label = (root / "set" / (label or usual)).with_suffix(".txt")
        if text is not None:
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
        return image, label

    return write


@pytest.fixture
def write_yaml(root):
    def write(text, name="data.yaml"):
        (root / "set").mkdir(exist_ok=True)
        (root / "set" / name).write_text(text)
        return root / "set" / name

    return write


def ids(name):
    return [record["image_id"] for record in DatasetCatalog.get(name)]


def test_fractions_become_corners(write_yolo, write_yaml, register, root):
    write_yaml("train: images\n" + NAMES)
    write_yolo("images/a.jpg", "1 0.5 0.5 1 1\n\n0.0 0.25 0.5 0.1 0.2\n")
    register(yolo_literal=YOLO)
    (record,) = DatasetCatalog.get("yolo_literal")
    boxes = [a.pop("bbox") for a in record["annotations"]]
    assert boxes == [pytest.approx([0, 0, 60, 40]), pytest.approx([12, 16, 18, 24])]
    common = {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    assert record == {
        "file_name": str(root / "set/images/a.jpg"),
        "image_id": "images/a.jpg",
        "width": 60,
        "height": 40,
        "annotations": [{"category_id": 1, **common}, {"category_id": 0, **common}],
    }
    meta = MetadataCatalog.get("yolo_literal")
    assert (meta.thing_classes, meta.evaluator_type) == (["cat", "dog"], "coco")


def test_polygons_become_boxes(write_yolo, write_yaml, register):
    write_yaml("train: images\n" + NAMES)
    write_yolo("images/a.jpg", "0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5\n")
    register(yolo_polygon=YOLO)
    (annotation,) = DatasetCatalog.get("yolo_polygon")[0]["annotations"]
    assert annotation["bbox"] == pytest.approx([6, 4, 54, 36])


def test_keypoints_are_left_out(write_yolo, write_yaml, register):
    write_yaml("train: images\nkpt_shape: [2, 2]\n" + NAMES)
    write_yolo("images/a.jpg", "0 0.5 0.5 0.5 0.5 0.1 0.1 0.9 0.9\n")
    register(yolo_keypoints=YOLO)
    (annotation,) = DatasetCatalog.get("yolo_keypoints")[0]["annotations"]
    assert annotation["bbox"] == pytest.approx([15, 10, 45, 30])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("train: images/train", ["images/train/a.jpg", "images/train/sub/b.png"]),
        ("path: .\ntrain: images/train", ["images/train/a.jpg", "images/train/sub/b.png"]),
        ("path: /of/another/machine\ntrain: images/val", ["images/val/c.jpg"]),
        ("train: ../images/val", ["images/val/c.jpg"]),
        ("train: ['images/val', images/train/sub]", ["images/val/c.jpg", "images/train/sub/b.png"]),
        ("train: lists/some.txt", ["images/val/c.jpg", "images/train/a.jpg"]),
        ("train: lists/beside.txt", ["lists/d.jpg"]),
    ],
)
def test_splits_as_tools_write_them(write_yolo, write_yaml, register, root, content, expected):
    for image in ("train/a.jpg", "train/sub/b.png", "val/c.jpg"):
        write_yolo(f"images/{image}", "0 0.5 0.5 0.5 0.5")
    write_yolo("lists/d.jpg", "0 0.5 0.5 0.5 0.5")
    (root / "set/lists/some.txt").write_text("./images/val/c.jpg\n\nimages\\train\\a.jpg\n")
    (root / "set/lists/beside.txt").write_text("./d.jpg\n")
    write_yaml(f"{content}\n{NAMES}")
    register(yolo_split=YOLO)
    assert ids("yolo_split") == expected
    assert all(len(record["annotations"]) == 1 for record in DatasetCatalog.get("yolo_split"))


def test_without_a_yaml(write_yolo, register, root):
    write_yolo("photos/a.jpg", "1 0.5 0.5 0.5 0.5")  # as labelImg: beside the image
    write_yolo("images/b.jpg", "0 0.5 0.5 0.5 0.5", label="images/b.txt")
    (root / "set/classes.txt").write_text("cat\ndog\n")
    fields = "FORMAT: yolo, ROOT: set, ANNOTATIONS: '', CLASSES: classes.txt"
    register(
        yolo_photos=f"{{{fields}, SPLIT: photos}}",
        yolo_images=f"{{{fields}, SPLIT: images}}",
        yolo_nowhere=f"{{{fields}}}",
    )
    assert DatasetCatalog.get("yolo_photos")[0]["annotations"][0]["category_id"] == 1
    assert DatasetCatalog.get("yolo_images")[0]["annotations"][0]["category_id"] == 0
    with pytest.raises(FileNotFoundError, match="set/train: no such folder or list .* from SPLIT"):
        DatasetCatalog.get("yolo_nowhere")
    with pytest.raises(ValueError, match="FORMAT yolo needs ANNOTATIONS.* or CLASSES"):
        register(yolo_bare="{FORMAT: yolo, ANNOTATIONS: ''}")


def test_empty_and_missing_labels(write_yolo, write_yaml, register, warnings):
    write_yaml("train: images\n" + NAMES)
    write_yolo("images/a.jpg", "0 0.5 0.5 0.5 0.5")
    write_yolo("images/b.jpg", "")
    write_yolo("images/c.jpg")
    register(yolo_empty=YOLO)
    assert [len(record["annotations"]) for record in DatasetCatalog.get("yolo_empty")] == [1, 0, 0]
    assert warnings() == [
        "yolo_empty: 1 image without a label file, taken as one without objects: c.jpg"
    ]


def test_no_label_at_all_is_an_error(write_yolo, write_yaml, register, root):
    write_yaml("train: images\n" + NAMES)
    write_yolo("images/a.jpg")
    register(yolo_unlabelled=YOLO)
    expected = f"^{root}/set/labels/a.txt: no such file, nor one for any other of the 1 images"
    with pytest.raises(FileNotFoundError, match=expected):
        DatasetCatalog.get("yolo_unlabelled")


def test_size_is_turned_by_exif(write_yolo, write_yaml, register):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    write_yaml("train: images\n" + NAMES)
    write_yolo("images/a.jpg", "0 0.5 0.25 1 0.5", exif=exif)
    register(yolo_exif=YOLO)
    (record,) = DatasetCatalog.get("yolo_exif")
    assert (record["width"], record["height"]) == (40, 60)
    assert record["annotations"][0]["bbox"] == pytest.approx([0, 0, 40, 30])


def test_odd_boxes_are_counted(write_yolo, write_yaml, register, warnings):
    write_yaml("train: images\n" + NAMES)
    write_yolo("images/a.jpg", "0 0.5 0.5 0 0.5\n0 0 0.5 0.5 0.5\n0 0.5 0.5 1.0001 1\n")
    register(yolo_odd=YOLO)
    (record,) = DatasetCatalog.get("yolo_odd")
    boxes = [a["bbox"] for a in record["annotations"]]
    assert boxes == [pytest.approx([0, 10, 15, 30]), pytest.approx([0, 0, 60, 40])]
    assert warnings() == [
        "yolo_odd: 1 box without area inside the image, dropped: a.txt",
        "yolo_odd: 1 box reaching beyond the image, clipped to it: a.txt",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.5 0.5", "has the class 2; expected an index from 0 to 1, for cat, dog"),
        ("-1 0.5 0.5 0.5 0.5", "has the class -1; expected"),
        ("0.5 0.5 0.5 0.5 0.5", "has the class 0.5; expected"),
        ("cat 0.5 0.5 0.5 0.5", "must hold numbers, got 'cat 0.5 0.5 0.5 0.5'"),
        ("0 0.5 0.5 0.5 nan", "must hold finite numbers"),
        ("0 0.5 0.5 0.5", "has 3 numbers after the class; expected 4"),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 5 numbers after the class; expected 4"),
        ("0 30 20 10 8", "must hold fractions .* got 30, which looks like pixels"),
    ],
)
def test_bad_line_is_named(write_yolo, write_yaml, register, line, message):
    write_yaml("train: images\n" + NAMES)
    _, label = write_yolo("images/a.jpg", f"0 0.5 0.5 0.5 0.5\n{line}\n")
    register(yolo_bad=YOLO)
    with pytest.raises(ValueError, match=f"^{re.escape(str(label))}: line 2 {message}"):
        DatasetCatalog.get("yolo_bad")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not YAML"),
        ("- a", "expected a mapping with train, val and names"),
        ("train: images", "names must be a list of class names, or {index: name}"),
        ("train: images\nnames: [yes, dog]", "names must hold text, got [True, 'dog']"),
        ("train: images\nnames: [cat, cat]", "a name occurs twice in cat, cat"),
        ("train: images\nnames: {0: cat, 2: dog}", "the keys of names must be the indices 0 to 1"),
        ("train: images\nnc: 3\nnames: [cat, dog]", "nc is 3, but names has 2 classes"),
        ("train: images\nnames: {\u00b2: cat}", "the keys of names must be the indices 0 to 0"),
        ("names: " + "[" * 5000, "not YAML"),
        (b"names: [\xff]", "not a text file in UTF-8"),
    ],
)
def test_bad_yaml_is_named(write_yolo, write_yaml, register, content, message):
    write_yolo("images/a.jpg", "")
    file = write_yaml("")
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    register(yolo_bad_yaml=YOLO)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {message}')}"):
        DatasetCatalog.get("yolo_bad_yaml")


def test_names_by_index_and_classes_instead(write_yolo, write_yaml, register):
    write_yaml("train: images\nnc: '2'\nnames:\n  1: dog\n  0: 10\n")
    write_yolo("images/a.jpg", "1 0.5 0.5 0.5 0.5")
    register(yolo_index=YOLO, yolo_classes="{FORMAT: yolo, ROOT: set, CLASSES: [a, b, c]}")
    for name, classes in (("yolo_index", ["10", "dog"]), ("yolo_classes", ["a", "b", "c"])):
        DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == classes


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("val: images", FileNotFoundError, "set/train: no such .*SPLIT.* has the splits val$"),
        ("train: nowhere", FileNotFoundError, "set/nowhere: no such .* from train of .*data.yaml"),
        ("train: labels", ValueError, "set/labels: holds no image, from train of .*data.yaml"),
        ("train: list.txt", FileNotFoundError, "set/images/b.jpg: no such file, from line 2 of .*"),
        ("train: twice.txt", ValueError, "twice.txt: line 2 lists images/a.jpg a second time"),
        ("train: blank.txt", ValueError, "blank.txt: this split lists no image"),
    ],
)
def test_wrong_split_is_named(write_yolo, write_yaml, register, root, content, error, message):
    write_yolo("images/a.jpg", "")
    (root / "set/list.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    (root / "set/twice.txt").write_text("images/a.jpg\nimages/a.jpg\n")
    (root / "set/blank.txt").write_text("\n")
    write_yaml(f"{content}\n{NAMES}")
    register(yolo_wrong=YOLO)
    with pytest.raises(error, match=message):
        DatasetCatalog.get("yolo_wrong")


def test_missing_yaml_and_broken_image_are_named(write_yolo, write_yaml, register, root):
    image, _ = write_yolo("images/a.jpg", "")
    image.write_text("no image")
    register(yolo_missing=YOLO)
    with pytest.raises(FileNotFoundError, match="set/data.yaml: no such file, from ANNOTATIONS"):
        DatasetCatalog.get("yolo_missing")
    write_yaml("train: images\n" + NAMES)
    with pytest.raises(ValueError, match=f"{image}: not a readable image"):
        DatasetCatalog.get("yolo_missing")
