import json
import re

import numpy as np
import pycocotools.mask as coco_masks
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from PIL import Image

from d2_deformable.data.checks import AnnotationReport
from d2_deformable.data.coco import _pixels_of
from d2_deformable.data.custom import load_reported

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
        {"bbox": [10, 5, 20, 15], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "id": 1,
         "iscrowd": 0}
    ]  # fmt: skip
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
        (lambda c: c.update(images=[], annotations=[]), "holds no image"),
        (_drop("images", "id"), "every entry of 'images' needs a unique id"),
        (
            _set("images", "id", 3),
            "every entry of 'images' needs a unique id, all numbers or all text; 3 occurs twice",
        ),
        (_set("categories", "id", 4), "; 4 occurs twice"),
        (
            _set("categories", "name", "cat"),
            "every category needs a unique name, got ['cat', 'cat',"
            " 'animals']; 'cat' is that of the ids 4, 9, which all have annotations",
        ),
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
        (
            _set("annotations", "bbox", [1, 2, 3, "4 px"]),
            "annotation 1 needs a bbox of four finite",
        ),
        (_set("annotations", "bbox", [1, 2, 3, float("nan")]), "got [1, 2, 3, nan]"),
        (_set("annotations", "bbox", [1, 2, 3, 10**400]), "needs a bbox of four finite numbers"),
        (_set("annotations", "image_id", "²"), "has image_id '²', which is not an id"),
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


def test_records_are_those_of_detectron2(write, content, register, root):
    content["annotations"] += [
        {"id": 6, "image_id": 7, "category_id": 4, "bbox": [1, 1, 9, 9], "iscrowd": 0,
         "segmentation": [[1, 1, 10, 1, 10, 10]], "keypoints": [2, 3, 2, 0, 0, 0]},
    ]  # fmt: skip
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
    file = write(content)
    register(coco_same=COCO)
    theirs = load_coco_json(str(file), str(root / "set/images"), "coco_theirs")
    ours = DatasetCatalog.get("coco_same")
    for record in ours:
        assert all(isinstance(annotation.pop("id"), int) for annotation in record["annotations"])
    MetadataCatalog.remove("coco_theirs")
    assert ours == theirs


GOOD = [16, 12, 48, 12, 48, 36]


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        (None, None),
        ([], None),
        ([[]], None),
        ([[16, 12, 48, 36]], None),
        ([[16, 12, 48, 12, 48, 36, 16]], None),
        ([[16, 12, 16, 12, 16, 12]], None),
        ([GOOD, [1, 2]], [GOOD]),
        ([["16", "12.0", "48", "12", "48", "36"]], [GOOD]),
        ({"size": [60, 40], "counts": [0, 2400]}, None),  # width and height changed places
        ({"size": [40, 60], "counts": [0, 100]}, None),  # ends too early
        ({"size": [40, 60], "counts": ["2390", "10.0"]}, {"size": [40, 60], "counts": b"fZ2:"}),
        ({"size": [40, 60], "counts": "fZ2:"}, {"size": [40, 60], "counts": "fZ2:"}),
        ({"size": [40, 60], "counts": "fZ2"}, None),  # ends too early, as the next ones
        ({"size": [40, 60], "counts": "fZ"}, None),
        ({"size": [40, 60], "counts": ""}, None),
        ({"size": [40, 60], "counts": "fZ2::"}, None),  # goes on too long
        ({"size": [40, 60], "counts": "\xe9"}, None),
        ({"size": [40, 60], "counts": "o" * 30 + "0"}, None),
        ([1, 2, 3, 4, 5, 6], None),  # neither polygons nor a code, as the next ones
        ([[1, 2, None, 3, 4, 5]], None),
        ([[[1, 2], [3, 4], [5, 6]]], None),
        ("1,2,3,4,5,6", None),
        ({"size": [1, 2]}, None),
        ({"size": [40, 60], "counts": None}, None),
        ({"size": [40, 60], "counts": [-1, 2]}, None),
    ],
)
def test_a_box_stays_whatever_its_mask(write, content, register, shape, kept):
    content["annotations"][0]["segmentation"] = shape
    write(content)
    register(coco_shape=COCO)
    report = AnnotationReport()
    (annotation,) = load_reported("coco_shape", report)[1]["annotations"]
    assert annotation["bbox"] == [10, 5, 20, 15] and annotation.get("segmentation") == kept
    is_degenerate = shape not in (None, []) and kept is None
    assert report.files["maskless"] == (["b.png"] if is_degenerate else [])


def test_every_run_length_code_of_pycocotools_is_whole():
    random = np.random.default_rng(0)
    for height, width in [(1, 1), (3, 5), (40, 60), (700, 900)]:
        for share in (0, 0.001, 0.3, 1):
            mask = np.asfortranarray(random.random((height, width)) < share, np.uint8)
            assert _pixels_of(coco_masks.encode(mask)["counts"].decode()) == mask.size


def test_ids_and_numbers_as_tools_write_them(write, content, register, warnings):
    content["images"][0].update(width="60", height="40.0", id=7.0)
    content["categories"][0]["name"] = 10
    content["annotations"] = [
        {"id": 1, "image_id": "7", "category_id": 9.0, "bbox": ["996.0", 1, 2, 3]},
        {"id": 309, "image_id": 7, "category_id": 9, "bbox": ["10.5", "5", 20, 15], "iscrowd": "0"},
        {"id": 309, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": False},
        {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "difficult": "1"},
    ]
    write(content)
    register(coco_text_numbers=COCO)
    _, record = DatasetCatalog.get("coco_text_numbers")
    assert (record["width"], record["height"]) == (60, 40)
    assert [a["bbox"] for a in record["annotations"]] == [[10.5, 5, 20, 15], *[[1, 2, 3, 4]] * 2]
    assert [a["id"] for a in record["annotations"]] == [309, 309, 4]
    assert [a.get("difficult") for a in record["annotations"]] == [None, None, 1]
    assert MetadataCatalog.get("coco_text_numbers").thing_classes == ["animals", "cat", "10"]
    texts = [text for text in warnings() if "coco_text_numbers" in text]
    assert any("1 id used by several annotations, which has no effect: annotation 309" in t
               for t in texts)  # fmt: skip


@pytest.mark.parametrize("used", [True, False])
def test_the_group_category_of_roboflow(write, content, register, used):
    """Category 0 is the whole data set; here it has the name of a class."""
    content["categories"][2].update(name="dog", supercategory="none")
    if not used:
        content["annotations"] = content["annotations"][1:]
    write(content)
    register(coco_group=COCO)
    DatasetCatalog.get("coco_group")
    meta = MetadataCatalog.get("coco_group")
    assert meta.thing_classes == ["cat", "dog"]
    assert meta.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}


def test_windows_paths(write, content, register):
    content["images"][1]["file_name"] = "sub\\a.jpg"
    write(content)
    register(coco_windows=COCO)
    assert DatasetCatalog.get("coco_windows")[0]["file_name"].endswith("set/images/sub/a.jpg")


def test_keypoints(write, content, register):
    content["categories"][0]["keypoints"] = ["nose", "left_ear", "right_ear"]
    content["annotations"][0]["keypoints"] = [1, 2, 2, 3, 4, 1, 0, 0, 0]
    content["annotations"][1]["keypoints"] = [1, 2]
    write(content)
    register(coco_points=COCO)
    a, b = DatasetCatalog.get("coco_points")
    assert b["annotations"][0]["keypoints"] == [1.5, 2.5, 2, 3.5, 4.5, 1, 0.5, 0.5, 0]
    assert "keypoints" not in a["annotations"][0]
    meta = MetadataCatalog.get("coco_points")
    assert meta.keypoint_names == ["nose", "left_ear", "right_ear"]
    assert meta.keypoint_flip_map == [("left_ear", "right_ear")]


def test_negative_ids_and_ids_with_a_fraction(write, content, register):
    content["images"][0]["id"] = -1
    content["annotations"] = [
        {"id": 3.0, "image_id": "-1", "category_id": 9, "bbox": [1, 2, 3, 4]},
    ]
    write(content)
    register(coco_negative=COCO)
    record, _ = DatasetCatalog.get("coco_negative")
    assert [annotation["id"] for annotation in record["annotations"]] == [3]


@pytest.mark.parametrize("names", [5, "nose", [1, 2], {"nose": 1}])
def test_names_of_keypoints_in_another_form_are_none(write, content, register, names):
    content["categories"][0]["keypoints"] = names
    write(content)
    register(coco_names=COCO)
    DatasetCatalog.get("coco_names")
    assert not hasattr(MetadataCatalog.get("coco_names"), "keypoint_names")


def test_a_json_that_is_nested_too_deeply_is_named(write, content, register):
    file = write(content)
    file.write_text("[" * 200_000)
    register(coco_deep=COCO)
    with pytest.raises(ValueError, match=f"^{file}: not a json file"):
        DatasetCatalog.get("coco_deep")
