import json
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

COCO = "{FORMAT: coco, ROOT: set, IMAGES: images, ANNOTATIONS: instances.json}"
WITH_CLASSES = COCO[:-1] + ", CLASSES: [%s]}"


@pytest.fixture
def content():
    """A json with gaps in its ids, a crowd, and unordered categories, one of which is unused."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 60, "height": 40},
            {"id": 3, "file_name": "sub/a.jpg", "width": 50, "height": 30},
        ],
        "categories": [
            {"id": 9, "name": "dog"},
            {"id": 4, "name": "cat"},
            {"id": 0, "name": "animals"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 15]},
            {"id": 5, "image_id": 3, "category_id": 4, "bbox": [0, 0, 50, 30], "iscrowd": 1,
             "segmentation": {"size": [30, 50], "counts": [0, 1500]}},
        ],
    }  # fmt: skip


@pytest.fixture
def write(root):
    def write(content, text=None):
        (root / "set/images/sub").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(root / "set/images/b.png")
        Image.new("RGB", (50, 30)).save(root / "set/images/sub/a.jpg")
        file = root / "set/instances.json"
        file.write_text(text or json.dumps(content))
        return file

    return write


def test_dicts_and_metadata(write, content, register, root):
    write(content)
    register(coco_literal=COCO)
    a, b = DatasetCatalog.get("coco_literal")
    assert (a["image_id"], a["file_name"]) == (3, str(root / "set/images/sub/a.jpg"))
    assert (a["width"], a["height"]) == (50, 30)
    (crowd,) = a["annotations"]
    assert crowd["iscrowd"] == 1
    assert crowd["segmentation"]["size"] == [30, 50]
    assert b["annotations"] == [
        {"bbox": [10, 5, 20, 15], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": 0}
    ]
    meta = MetadataCatalog.get("coco_literal")
    assert meta.thing_classes == ["animals", "cat", "dog"]
    assert meta.thing_dataset_id_to_contiguous_id == {0: 0, 4: 1, 9: 2}
    assert meta.image_root == str(root / "set/images")


def test_classes_choose_order_and_leave_out_unused(write, content, register):
    write(content)
    register(coco_order=WITH_CLASSES % "dog, cat")
    a, b = DatasetCatalog.get("coco_order")
    assert [a["annotations"][0]["category_id"], b["annotations"][0]["category_id"]] == [1, 0]
    meta = MetadataCatalog.get("coco_order")
    assert meta.thing_classes == ["dog", "cat"]
    assert meta.thing_dataset_id_to_contiguous_id == {0: 0, 1: 1}  # not the order of ids


def test_unknown_classes(write, content, register):
    file = write(content)
    register(coco_typo=WITH_CLASSES % "dog, kat", coco_subset=WITH_CLASSES % "cat")
    message = f"{file}: has no class 'kat' of CLASSES; it has animals, cat, dog"
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get("coco_typo")
    message = f"{file}: annotation 1 has the class 'dog', unknown to CLASSES cat. Add it to "
    message += "CLASSES, or remove its objects from the annotations to train on fewer classes"
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get("coco_subset")


def test_odd_boxes_are_counted_and_listed(write, content, register, warnings):
    common = {"image_id": 7, "category_id": 9}
    content["annotations"] = [
        {"id": 1, "bbox": [10, 5, 0, 15], **common},
        {"id": 2, "bbox": [50, 30, 20, 20], **common, "difficult": 1},
        {"id": 3, "bbox": [0.5, 0.5, 59.51, 39.5], **common},  # overhangs by rounding
    ]
    write(content)
    register(coco_odd=COCO)
    a, b = DatasetCatalog.get("coco_odd")
    assert a["annotations"] == []
    clipped, rounded = b["annotations"]
    assert (clipped["bbox"], clipped["bbox_mode"]) == ([50, 30, 60, 40], BoxMode.XYXY_ABS)
    assert clipped["difficult"] == 1
    assert (rounded["bbox"], rounded["bbox_mode"]) == ([0.5, 0.5, 60, 40], BoxMode.XYXY_ABS)
    assert [message for message in warnings() if "coco_odd" in message] == [
        "coco_odd: 1 box without area inside the image, dropped: b.png",
        "coco_odd: 1 box reaching beyond the image, clipped to it: b.png",
        "coco_odd: 1 object marked difficult (VOC AP ignores them, and training does with "
        "INPUT.DROP_DIFFICULT): b.png",
    ]


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_unparsable_json_is_named(write, register, text):
    file = write({}, text="placeholder")
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    register(coco_text=COCO)
    with pytest.raises(ValueError, match=f"^{file}: not a json file"):
        DatasetCatalog.get("coco_text")


def _set(part, key, value):
    def change(content):
        content[part][0][key] = value

    return change


def _drop(part, key):
    return lambda content: content[part][0].pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "with a list of objects named 'annotations'"),
        (lambda c: c.update(images={}), "with a list of objects named 'images'"),
        (lambda c: c.update(categories=["cat"]), "with a list of objects named 'categories'"),
        (lambda c: c.update(images=[]), "holds no image"),
        (_drop("images", "id"), "every entry of 'images' needs a unique id"),
        (_set("annotations", "id", 5), "every entry of 'annotations' needs a unique id"),
        (_set("categories", "name", "cat"), "every category needs a unique name, got ['cat', "),
        (_drop("images", "file_name"), "image 7 has no file_name"),
        (_drop("images", "width"), "image 7 needs a positive width and height"),
        (_set("images", "height", 0), "image 7 needs a positive width and height"),
        (_drop("annotations", "image_id"), "annotation 1 has image_id None, which is not an id"),
        (
            _set("annotations", "category_id", 2),
            "annotation 1 has category_id 2, which is not an id",
        ),
        (_drop("annotations", "bbox"), "annotation 1 needs a bbox of four finite numbers"),
        (_set("annotations", "bbox", [1, 2, 3]), "got [1, 2, 3]"),
        (_set("annotations", "bbox", [1, 2, 3, "4"]), "annotation 1 needs a bbox of four finite"),
        (_set("annotations", "bbox", [1, 2, 3, float("nan")]), "got [1, 2, 3, nan]"),
        (_set("annotations", "segmentation", [1, 2, 3, 4, 5, 6]), "neither polygons nor"),
        (_set("annotations", "segmentation", {"size": [1, 2]}), "neither polygons nor"),
        (_set("annotations", "ignore", 1), "annotation 1 is marked 'ignore'"),
    ],
)
def test_bad_content_names_file_and_id(write, content, register, change, message):
    change(content)
    file = write(content)
    register(coco_bad=COCO)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{re.escape(message)}"):
        DatasetCatalog.get("coco_bad")


def test_wrong_paths_are_named(write, content, register, root):
    write(content)
    register(
        coco_json="{FORMAT: coco, ROOT: set, IMAGES: images, ANNOTATIONS: other.json}",
        coco_folder="{FORMAT: coco, ROOT: set, IMAGES: other, ANNOTATIONS: instances.json}",
        coco_image="{FORMAT: coco, ROOT: set, IMAGES: images/sub, ANNOTATIONS: instances.json}",
    )
    for name, message in {
        "coco_json": "set/other.json: no such file, from ANNOTATIONS",
        "coco_folder": "set/other: no such folder, from IMAGES",
        "coco_image": "set/images/sub/sub/a.jpg: no such file, from IMAGES and a file_name of ",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"{root}/{message}"):
            DatasetCatalog.get(name)
